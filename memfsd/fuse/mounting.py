"""The moment of the mount itself: one memfsd at a time, and flags that libfuse does not know."""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterable, Iterator

from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused

_LOCK_DEADLINE_S = 5.0
_LOCK_STEP_S = 0.01

ATTRIBUTES = {"nosymfollow": (0x200000, 0), "nodiratime": (0x80, 0), "strictatime": (0x20, 0x70)}
"""Options that libfuse does not know, as bits of mount_setattr(2) to set and to clear (linux/mount.h)."""
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100


@contextlib.contextmanager
def alone_at(path: str) -> Iterator[None]:
    """Keeps other memfsds from looking at this mount point, replacing what is there, and mounting.

    The lock is on the directory above, which a mount does not hide. Anyone who can read that may lock it as well, and
    memfsd holds it for moments only: whoever holds it for long is no memfsd, and is not waited for.
    """
    try:
        above = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield  # unreadable: one more reason why hardly anybody mounts there
        return
    try:
        until = time.monotonic() + _LOCK_DEADLINE_S
        while not _locked(above) and time.monotonic() < until:
            time.sleep(_LOCK_STEP_S)
        yield
    finally:
        os.close(above)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno != errno.EWOULDBLOCK  # a file system without locks has none to wait for
    return True


def set_attributes(path: str, names: Iterable[str]) -> None:
    """Of the mount at path. Asks nothing of the process that serves it; Refused where it may not be done."""
    to_set = to_clear = 0
    for name in names:
        to_set, to_clear = to_set | ATTRIBUTES[name][0], to_clear | ATTRIBUTES[name][1]
    if not to_set:
        return
    attr = struct.pack("QQQQ", to_set, to_clear, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), 0, attr, len(attr)) != 0:
        number = ctypes.get_errno()
        raise Refused(number, f"{quoted(path)}: {', '.join(sorted(names))} cannot be set: {os.strerror(number)}")
