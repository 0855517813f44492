"""The VM of one file, as the store sees it: how to call it, and how to know that it is dead."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from memfsd.uapi.errors import PeerLost
from memfsd.uapi.messages import Body, Kind
from memfsd.uapi.units import Ino

_Reply = TypeVar("_Reply", bound=Body)


class PeerSilent(PeerLost):
    """Alive perhaps, but no answer before the deadline."""


class PeerGone(PeerLost):
    """The channel is closed: no answer will ever come."""


class PeerRefused(PeerLost):
    """It answered with an errno, and has done nothing."""

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno


class UpCalls(Protocol):
    """The "function pointers" that KVM gave the store. Each call has a deadline."""

    last_call_s: float
    """How long the VM took for its last call."""

    def call(self, kind: Kind, body: Body, reply: type[_Reply]) -> _Reply:
        """PeerSilent at the deadline, PeerGone at end of file, PeerRefused, PeerLost for a broken answer."""

    def shut(self) -> None:
        """Wake whoever waits here; later calls fail at once."""

    def close(self) -> None: ...


class Process(Protocol):
    """The process that paired."""

    pid: int
    uid: int

    def wait_dead(self, timeout_s: float | None, stop_fd: int | None = None) -> bool:
        """True once it has ended; False at the timeout or when stop_fd becomes readable."""


@dataclass(slots=True, eq=False)
class Peer:
    """The live VM of one file."""

    ino: Ino
    vm: str
    up: UpCalls
    process: Process
    hang_up: Callable[[], None]
    """Shut both channels, so that the session's thread sees the end."""
    said_bye: bool = False
    """The VM let go of everything: that acknowledges whatever is asked of it."""
