"""memfd_encrypted(): a file that is private from birth, as Hildenbrand's proposal in the thread."""

import errno
import os
import re
import secrets

from memfsd.uapi.names import FSTYPE, XATTR_SEALS, XATTR_SOCKET

MOUNT_VARIABLE = "MEMFSD_MOUNT"
_NOT_OURS = (errno.ENOTCONN, errno.ECONNABORTED, errno.EACCES, errno.EPERM, errno.ENOENT)
"""A dead daemon's mount (or one that aborts), another user's without allow_other, one that has just gone."""


def memfd_encrypted(name: str, size: int = 0, flags: int = 0) -> int:
    """An fd, open write-only, of an unlinked sealed file on a memfsd mount; size in bytes, set once.

    name is for people, as in memfd_create(2), and so are flags: 0 or os.MFD_CLOEXEC. The mount is
    $MEMFSD_MOUNT, else the first one of this machine that answers this user.
    OSError: EINVAL name or flags, ENODEV no mount (there), or what the filesystem answers for size.
    """
    if flags & ~os.MFD_CLOEXEC:
        raise OSError(errno.EINVAL, f"memfd_encrypted: flags {flags:#x} are not 0 or MFD_CLOEXEC")
    if not name or "/" in name or "\0" in name or len(os.fsencode(name)) > 200:
        raise OSError(errno.EINVAL, "memfd_encrypted: a name has 1 to 200 bytes and no slash")
    path = os.path.join(_mount(), f".{name}.{secrets.token_hex(8)}")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            if b"guest" not in os.getxattr(fd, XATTR_SEALS).split(b","):
                os.setxattr(fd, XATTR_SEALS, b"guest")
        finally:
            os.unlink(path)
        if size:
            os.ftruncate(fd, size)
        os.set_inheritable(fd, not flags & os.MFD_CLOEXEC)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mount() -> str:
    named = os.environ.get(MOUNT_VARIABLE)
    if named:
        try:
            os.getxattr(named, XATTR_SOCKET)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
            raise OSError(errno.ENODEV, f"{MOUNT_VARIABLE}={named} is not on a memfsd mount") from None
        return named
    for path in _mounts():
        try:
            os.getxattr(path, XATTR_SOCKET)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
        else:
            return path
    raise OSError(errno.ENODEV, f"no memfsd is mounted: mount one, or set {MOUNT_VARIABLE}")


def _mounts() -> list[str]:
    """Every memfsd mount point of this machine, dead ones among them."""
    with open("/proc/self/mounts", "rb") as lines:
        fields = [line.split(b" ") for line in lines]
    return [
        os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), path))
        for _, path, kind, *_ in fields
        if kind == f"fuse.{FSTYPE}".encode()
    ]
