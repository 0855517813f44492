"""Refusals name the errno as the kernel's sources write it."""

import errno

from memfsd.uapi.errors import Refused, errno_name, errno_text


def test_errnos_have_their_kernel_names() -> None:
    assert errno_name(errno.EINVAL) == "EINVAL"
    assert errno_name(errno.EOPNOTSUPP) == "EOPNOTSUPP"
    assert errno_name(errno.EAGAIN) == "EAGAIN"
    assert errno_name(4095) == "errno 4095"
    assert errno_text(errno.EBUSY) == "Device or resource busy (EBUSY)"


def test_a_refusal_shows_errno_and_reason() -> None:
    no = Refused(errno.EPERM, "the file is sealed")
    assert str(no) == "EPERM: the file is sealed"
    assert (no.errno, no.reason) == (errno.EPERM, "the file is sealed")
