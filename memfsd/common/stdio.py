"""Descriptors 0 to 2, for a program that may have been started without some of them (`memfsd mnt <&-`), or whose reader
may go away."""

import errno
import os
import sys
from collections.abc import Callable

from memfsd.uapi.errors import errno_text

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


def with_stdout(program: str, run: Callable[[], int]) -> int:
    """The exit status of run, whose OSErrors without a filename are those of standard output: READER_GONE when its
    reader went away, else UNWRITABLE, and one line on stderr."""
    if sys.stdout is None:  # closed when Python started
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or not (isinstance(error, BrokenPipeError) or error.errno in _FULL_OR_CLOSED):
            raise
        # The interpreter must not try to flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return READER_GONE
        why = "it is not open for writing" if error.errno == errno.EBADF else errno_text(error.errno or 0)
        print(f"{program}: standard output: {why}: open it, or send it elsewhere", file=sys.stderr)
        return UNWRITABLE
