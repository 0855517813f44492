"""The directory of a memfsd's socket: nobody else can rename in it, or put a socket of theirs in the place of ours.

default   of root /run/memfsd, else $XDG_RUNTIME_DIR/memfsd or /tmp/memfsd-UID: real directories, made here
socket=   the user's choice: any directory where others cannot replace what they do not own
"""

import errno
import os
import stat

from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.names import FSTYPE

_ROOT, _TMP = "/run", "/tmp"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def default_socket_path() -> str:
    return f"{_default()[1]}/{os.getpid()}.sock"


def make_default() -> str:
    """The default directory, made where it is missing. Refused names what is wrong with one that is there."""
    base, path = _default()
    _check(base, owners={0, os.geteuid()}, sticky_is_enough=True)
    try:
        # Users pair with files of root's mount, so they must reach its socket.
        os.mkdir(path, 0o755 if os.geteuid() == 0 else 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"{quoted(path)}: {error.strerror}: choose a socket=PATH") from None
    _check(path, owners={os.geteuid()}, sticky_is_enough=False)
    return path


def check_chosen(path: str) -> None:
    """Refused when everybody may replace a socket in this directory."""
    mode = os.stat(path).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise Refused(errno.EPERM, f"{quoted(path)} is writable by everybody: choose another socket=PATH, or chmod it")


def _default() -> tuple[str, str]:
    """The directory that must be there, and ours in it."""
    if os.geteuid() == 0:
        return _ROOT, f"{_ROOT}/{FSTYPE}"
    base = os.environ.get("XDG_RUNTIME_DIR")
    return (base, f"{base}/{FSTYPE}") if base else (_TMP, f"{_TMP}/{FSTYPE}-{os.geteuid()}")


def _check(path: str, *, owners: set[int], sticky_is_enough: bool) -> None:
    """A directory, no link to one, of these owners, where nobody else can rename."""
    try:
        fd = os.open(path, _DIRECTORY)
    except OSError as error:
        why = error.strerror
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            why = "it is not a directory but a link or a file"
        raise Refused(error.errno or errno.EIO, f"{quoted(path)}: {why}: {_way_out(path)}") from None
    try:
        status = os.fstat(fd)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid not in owners:
            raise Refused(errno.EPERM, f"{quoted(path)} belongs to uid {status.st_uid}: {_way_out(path)}")
        if mode & _OTHERS_WRITE and not (sticky_is_enough and mode & stat.S_ISVTX):
            raise Refused(errno.EPERM, f"{quoted(path)} is writable by others (mode {mode:o}): {_way_out(path)}")
        if not sticky_is_enough and os.geteuid() != 0 and mode & 0o077:
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def _way_out(path: str) -> str:
    return f"remove {quoted(path)}, or choose a socket=PATH in a directory of yours"
