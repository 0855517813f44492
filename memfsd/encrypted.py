"""memfd_encrypted(): a file that is private from birth, as Hildenbrand's proposal in the thread."""

import errno
import os
import secrets

from memfsd.common.mounts import memfsd_mounts, mount_of
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.names import XATTR_SEALS, XATTR_SOCKET

MOUNT_VARIABLE = "MEMFSD_MOUNT"
_NOT_OURS = (errno.ENOTCONN, errno.ECONNABORTED, errno.EACCES, errno.EPERM, errno.ENOENT)
"""A dead daemon's mount (or one that aborts), another user's without allow_other, one that has just gone."""


def memfd_encrypted(name: str, size: int = 0, flags: int = 0, *, mount: str | None = None) -> int:
    """An fd, open write-only, of an unlinked sealed file on a memfsd mount; size in bytes, set once.

    name is for people, as in memfd_create(2), and so are flags: 0 or os.MFD_CLOEXEC. mount is a directory on the mount:
    without it $MEMFSD_MOUNT, else the one mount of this machine that answers this user.
    OSError: EINVAL name or flags, ENODEV no mount (there), ENOTUNIQ several that answer, any of which may be somebody
    else's, or what the filesystem answers for size.
    """
    if flags & ~os.MFD_CLOEXEC:
        raise OSError(errno.EINVAL, f"memfd_encrypted: flags {flags:#x} are not 0 or MFD_CLOEXEC")
    if not name or "/" in name or "\0" in name or len(os.fsencode(name)) > 200:
        raise OSError(errno.EINVAL, "memfd_encrypted: a name has 1 to 200 bytes and no slash")
    path = os.path.join(mount_at(mount), f".{name}.{secrets.token_hex(8)}")
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


def mount_at(named: str | None) -> str:
    """The directory that a file is made in: the one named, or of $MEMFSD_MOUNT, or of the only mount that answers."""
    named = named or os.environ.get(MOUNT_VARIABLE)
    if named:
        try:
            mount_of(named)
        except Refused:
            raise OSError(errno.ENODEV, f"{quoted(named)} is not on a memfsd mount: set {MOUNT_VARIABLE}") from None
        return named
    answering = [path for path in _mounts() if _answers(path)]
    if not answering:
        raise OSError(errno.ENODEV, f"no memfsd is mounted: mount one, or set {MOUNT_VARIABLE}")
    if len(answering) > 1:
        listed = ", ".join(map(repr, answering))
        raise OSError(errno.ENOTUNIQ, f"several memfsd mounts answer: set {MOUNT_VARIABLE} to one of {listed}")
    return answering[0]


def _mounts() -> list[str]:
    """Every memfsd mount point of this machine, dead ones among them."""
    return [mount.path for mount in memfsd_mounts()]


def _answers(path: str) -> bool:
    try:
        os.getxattr(path, XATTR_SOCKET)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        return False
    return True
