"""The file of a journal or a trace, opened the same way by both processes."""

import contextlib
import errno
import fcntl
import functools
import os
import stat
from collections.abc import Callable

import msgspec

from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_JOURNAL_BYTES, MAX_RECORD_BYTES
from memfsd.uapi.names import XATTR_SOCKET

from .journal import FORMAT_VERSION, Opening, Recording, decode_entry
from .quote import quoted

_OPENING_BYTES = 4096
"""More than the first record of a journal needs."""


def open_journal(path: str) -> int:
    """An fd that appends, also to a journal that is there; while it is open, in whatever process, nobody else gets one.

    Refused names why it cannot: a memfsd mount would wait for itself; EBUSY while another process writes it; EEXIST
    for a file that is no journal; what open(2) says.
    """
    return open_record(path, "journal", _is_journal)


def open_record(path: str, what: str, is_ours: Callable[[bytes], bool]) -> int:
    """`open_journal` for any file that is recorded into: what it is called, and what its first line looks like."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    # Where a link leads, before a file is made there.
    _refuse_memfsd(os.path.dirname(os.path.realpath(path)), path, what)
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"{what} {quoted(path)}: {error.strerror}") from None
    try:
        _refuse_memfsd(fd, path, what)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            _claim(fd, path, what, is_ours)
    except OSError as error:
        os.close(fd)
        raise Refused(error.errno or errno.EIO, f"{what} {quoted(path)}: {error.strerror}") from None
    except Refused:
        os.close(fd)
        raise
    return fd


def _refuse_memfsd(file: int | str, path: str, what: str) -> None:
    """A directory, before a file is made in it; and the file itself, which a link may have led elsewhere."""
    try:
        os.getxattr(file, XATTR_SOCKET)
    except OSError:
        return
    raise Refused(
        errno.EINVAL, f"{what} {quoted(path)}: on a memfsd mount it would wait for itself: choose another place"
    )


def _claim(fd: int, path: str, what: str, is_ours: Callable[[bytes], bool]) -> None:
    """A regular file is this process's alone from now on, and only its owner can read it.

    The lock belongs to the open file description: a fork inherits it, and it ends with the last process that has it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused(
            errno.EBUSY,
            f"{what} {quoted(path)}: it is the {what} of a running process: name another file, or end that one",
        ) from None
    status = os.fstat(fd)
    if status.st_size and not is_ours(read_at(fd, _OPENING_BYTES, 0).partition(b"\n")[0]):
        raise Refused(errno.EEXIST, f"{what} {quoted(path)}: the file is there and is no {what}: name another file")
    if status.st_mode & 0o077:
        try:
            os.fchmod(fd, status.st_mode & 0o700)
        except PermissionError:
            raise Refused(
                errno.EACCES,
                f"{what} {quoted(path)}: others can read it, and you cannot change that: name another file",
            ) from None


def _is_journal(first_line: bytes) -> bool:
    try:
        entry = decode_entry(first_line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(entry, Opening) and entry.version == FORMAT_VERSION


def start_journal(
    fd: int, side: str, now_ns: Callable[[], int], warn: Callable[[str], None], limit_bytes: int = MAX_JOURNAL_BYTES
) -> Recording:
    """Record into an fd of `open_journal`; a line that a crash tore stays its own line.

    EFBIG when it is full; what write(2) says when there is no room for the first record: the file is as it was then.
    """
    status = os.fstat(fd)
    is_regular = stat.S_ISREG(status.st_mode)
    size = status.st_size if is_regular else 0
    if limit_bytes - size < MAX_RECORD_BYTES:
        raise Refused(errno.EFBIG, f"the journal has {size} bytes already, and is full: name another file")
    try:
        if size and read_at(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")
        append = appending(fd) if is_regular else functools.partial(os.write, fd)
        return Recording(side, os.getpid(), append, now_ns, warn, limit_bytes - size)
    except OSError as error:
        if is_regular:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, size)
        raise Refused(error.errno or errno.EIO, f"the journal cannot be written: {error.strerror}") from None


def appending(fd: int) -> Callable[[bytes], int]:
    """write(2), and OSError when the file does not hold all that was written: what is recorded would be lost unseen."""
    begun = os.fstat(fd)
    size = begun.st_size

    def append(line: bytes) -> int:
        nonlocal size
        written = os.write(fd, line)
        size += written
        now = os.fstat(fd)
        if (now.st_dev, now.st_ino) != (begun.st_dev, begun.st_ino):
            raise OSError(errno.EBADF, "its descriptor leads to another file")
        if now.st_size != size:
            raise OSError(errno.EIO, f"its file holds {now.st_size} bytes, not {size}: another process changed it")
        if begun.st_nlink and not now.st_nlink:
            raise OSError(errno.ENOENT, "its file was removed")
        return written

    return append


def read_at(fd: int, size_bytes: int, offset: int) -> bytes:
    """Of an fd that is open for writing only."""
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(reader, size_bytes, offset)
    finally:
        os.close(reader)
