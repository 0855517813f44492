"""Refusals name the errno as the kernel's sources write it."""

import errno

from memfsd.uapi.errors import Refused, errno_name, errno_text, one_line


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


def test_what_another_process_says_is_shown_as_one_printable_line() -> None:
    assert one_line("no room") == "no room"
    assert one_line("two\nlines\r\x1b[31mred\0") == "two lines  [31mred "
    assert len(one_line("x" * 5000)) == 300
