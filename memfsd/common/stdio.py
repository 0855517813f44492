"""Descriptors 0 to 2, for a program that may have been started without some of them (`memfsd mnt <&-`), or whose reader
may go away."""

import errno
import os
import select
import stat
import sys
from collections.abc import Callable

from memfsd.uapi.errors import errno_text

from .starting import INTERRUPTED, be_quiet_when_interrupted

READER_GONE = 141
"""As shells report a death by SIGPIPE: 1 has another meaning for every command."""
UNWRITABLE = 2
"""Standard output cannot be written: that is no answer, as 1 is of `memfs check` and `kvmsim run`."""
_FULL_OR_CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
_MODES = (os.O_WRONLY, os.O_RDONLY, os.O_RDWR)
"""Reading a stdin that was closed, and writing to such a stdout, stay errors. What goes to stderr is lost."""


def fill_standard_fds() -> None:
    """Puts /dev/null in the place of closed ones: call it first in every program.

    open(2) returns the lowest free number: else a memfd or a journal gets 0, 1 or 2, and the daemon that points those
    at /dev/null, or a child or library that writes to stderr, overwrites it.
    """
    for fd, mode in enumerate(_MODES):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, mode)
            assert opened == fd, "lower descriptors are filled, so this one is the lowest that is free"
            os.set_inheritable(fd, True)
    if sys.stderr is None:  # closed when Python started: print() would take standard output for it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def with_stdout(program: str, run: Callable[[], int]) -> int:
    """The exit status of run, whose OSErrors without a filename are those of standard output: READER_GONE when its
    reader went away, else UNWRITABLE, and one line on stderr. INTERRUPTED after a KeyboardInterrupt, and then nothing
    waits for who reads."""
    if sys.stdout is None:  # closed when Python started
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    try:
        status = _flushed(run)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except OSError as error:
        if error.filename is not None or not (isinstance(error, BrokenPipeError) or error.errno in _FULL_OR_CLOSED):
            raise
        _lose_the_rest()
        if isinstance(error, BrokenPipeError):
            return READER_GONE
        why = "it is not open for writing" if error.errno == errno.EBADF else errno_text(error.errno or 0)
        print(f"{program}: standard output: {why}: open it, or send it elsewhere", file=sys.stderr)
        return UNWRITABLE
    if status == INTERRUPTED:
        be_quiet_when_interrupted()
        _flush_what_finds_room()
    return status


def _flushed(run: Callable[[], int]) -> int:
    try:
        status = run()
    except KeyboardInterrupt:
        raise
    except BaseException:
        sys.stdout.flush()
        raise
    if status != INTERRUPTED:
        sys.stdout.flush()
    return status


def _flush_what_finds_room() -> None:
    """The rest is lost: one Ctrl-C ends the program, also when nobody reads."""
    try:
        if not stat.S_ISREG(os.fstat(1).st_mode):
            _do_not_wait()
        sys.stdout.flush()
    except OSError:
        _lose_the_rest()


def _do_not_wait() -> None:
    """BlockingIOError where even that cannot be had: another program's pipe or a socket, and nobody reads."""
    try:
        # An open file description of our own: O_NONBLOCK would be for everybody who has this one.
        own = os.open("/proc/self/fd/1", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        room = select.poll()
        room.register(1, select.POLLOUT)
        if not room.poll(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    else:
        os.dup2(own, 1)
        os.close(own)


def _lose_the_rest() -> None:
    """The interpreter must not try to flush to it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
