"""The one exception for a request that is refused."""

import errno as _errno
import os

EHWPOISON = 133
"""Memory has failed; Python's errno does not know it."""


class Refused(Exception):
    """A request that makes no sense or is not allowed: nothing was changed.

    ``errno`` is what the caller gets (FUSE, wire and command line translate it once each);
    ``reason`` is one line for a person: the thing, why, and the way out.
    """

    def __init__(self, errno: int, reason: str) -> None:
        # BaseException.__new__ has set args.
        self.errno = errno
        self.reason = reason

    def __str__(self) -> str:
        return f"{errno_name(self.errno)}: {self.reason}"


NO_RESOURCES = frozenset({_errno.EMFILE, _errno.ENFILE, _errno.ENOMEM, _errno.ENOBUFS})
"""This process or its machine has no more of something: that says nothing about a peer or a file."""


class PeerLost(Exception):
    """The other process is gone, silent past its deadline, or broke the protocol."""


_NAMES = {_errno.EOPNOTSUPP: "EOPNOTSUPP", EHWPOISON: "EHWPOISON"}


def errno_name(number: int) -> str:
    """'EINVAL' for 22; a number without a name is spelt out. 95 is EOPNOTSUPP, as the kernel's sources write it."""
    return _NAMES.get(number) or _errno.errorcode.get(number, f"errno {number}")


def one_line(text: str) -> str:
    """What another process says, fit to be shown: printable, in one line, and not too long."""
    return "".join(c if c.isprintable() else " " for c in text[:300])


def errno_text(number: int) -> str:
    return f"{os.strerror(number)} ({errno_name(number)})"
