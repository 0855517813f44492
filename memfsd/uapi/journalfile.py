"""The file of a journal, opened the same way by both processes: the one file that uapi touches."""

import errno
import os
import stat
from collections.abc import Callable

from .errors import Refused
from .journal import Recording
from .limits import MAX_JOURNAL_BYTES, MAX_RECORD_BYTES
from .names import XATTR_SOCKET


def open_journal(path: str) -> int:
    """An fd that appends, also to what is there. Refused names why it can not: a memfsd mount would wait for itself."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    _refuse_memfsd(os.path.dirname(path) or ".", path)
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"journal {path}: {error.strerror}") from None
    try:
        _refuse_memfsd(fd, path)
    except Refused:
        os.close(fd)
        raise
    return fd


def _refuse_memfsd(file: int | str, path: str) -> None:
    """A directory, before a file is made in it; and the file itself, which a link may have led elsewhere."""
    try:
        os.getxattr(file, XATTR_SOCKET)
    except OSError:
        return
    raise Refused(errno.EINVAL, f"journal {path}: on a memfsd mount it would wait for itself: choose another place")


def start_journal(
    fd: int, side: str, now_ns: Callable[[], int], warn: Callable[[str], None], limit_bytes: int = MAX_JOURNAL_BYTES
) -> Recording:
    """Record into an fd of `open_journal`; a line that a crash tore stays a line of its own. EFBIG when it is full."""
    status = os.fstat(fd)
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    if limit_bytes - size < MAX_RECORD_BYTES:
        raise Refused(errno.EFBIG, f"the journal has {size} bytes already, and is full: name another file")
    if size and _ends_torn(fd, size):
        os.write(fd, b"\n")
    return Recording(side, os.getpid(), lambda line: os.write(fd, line), now_ns, warn, limit_bytes - size)


def _ends_torn(fd: int, size: int) -> bool:
    try:
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True  # an empty line more does no harm
    try:
        return os.pread(reader, 1, size - 1) != b"\n"
    finally:
        os.close(reader)
