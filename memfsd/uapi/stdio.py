"""Descriptors 0 to 2, for a program that may have been started without some of them (`memfsd mnt <&-`)."""

import os

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
