"""KVM_CREATE_GUEST_MEMFD on a memfsd mount: create_guest_memfd() gives an fd, create_guest_memfd_at() a name."""

import errno
import fcntl
import os
import secrets

from memfsd.common.mounts import abi_of_mount
from memfsd.uapi import names
from memfsd.uapi.abi import ABIS, GmemFlag
from memfsd.uapi.errors import Refused
from memfsd.uapi.gmem_ioctls import CreateGuestMemfd

from .encrypted import mount_at


def create_guest_memfd(size: int, flags: int = 0, *, mount: str | None = None) -> int:
    """An fd, open for reading and writing and inheritable as KVM's is, of a guest_memfd without a name.

    size in bytes, fixed; flags: GmemFlag of memfsd.uapi.abi. mount as memfd_encrypted has it.
    OSError: EINVAL flags or size, EOPNOTSUPP a mount without guest_memfds (mount with abi=), and as memfd_encrypted.
    """
    asked = CreateGuestMemfd(size, flags).pack()
    path = os.path.join(mount_at(mount), f".guest_memfd.{secrets.token_hex(8)}")
    new = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            made = os.fstat(new)
            fcntl.ioctl(new, names.IOC_CREATE_GUEST_MEMFD, asked)
        finally:
            os.close(new)
        # Only from now on does an open file have what a guest_memfd has: no position, no read(2).
        fd = os.open(path, os.O_RDWR)
        os.set_inheritable(fd, True)
    finally:
        os.unlink(path)
    if os.fstat(fd).st_ino != made.st_ino:
        os.close(fd)
        raise OSError(errno.ESTALE, f"{path} was replaced while it was made")
    return fd


def create_guest_memfd_at(path: str, *, size: int, flags: GmemFlag, abi: str | None) -> str:
    """A guest_memfd with a name; the ABI that it is of. abi: the one that the mount must speak.

    If it is refused, no file is left.
    """
    is_of = abi_of_mount(os.path.dirname(path))
    if abi is not None and abi != is_of:
        raise Refused(errno.EINVAL, f"{path}: this mount is of abi={is_of}: make the file on one with abi={abi}")
    if not ABIS[is_of].is_sized_at_creation:
        raise Refused(
            errno.EOPNOTSUPP,
            f"{path}: a mount with abi={is_of} has no guest_memfds: create it with --guest, which seals it",
        )
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.ioctl(fd, names.IOC_CREATE_GUEST_MEMFD, CreateGuestMemfd(size, flags).pack())
    except OSError as error:
        os.unlink(path)
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)
    return is_of
