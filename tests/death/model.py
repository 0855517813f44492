"""What a cell of the table is. Without the deadlines of the harness, so that tests may import it."""

from dataclasses import dataclass
from enum import Enum

DEADLINES = "MEMFSD_DEATH_DEADLINES"
"""In the environment of a worker and of what it starts: SHORT, or nothing."""
SHORT = "short"
PAGE_MAP = "page-map"
"""A worker's argument: its memfsd publishes page maps."""

NO_CONNECTION, NO_PEER, NO_MORE = "no connection then", "no peer then", "ended before it could stop"
NOBODY = {NO_CONNECTION, NO_PEER, NO_MORE}


class Fault(Enum):
    KILL = "SIGKILL"
    STOP = "SIGSTOP, SIGCONT in time"
    STOP_LONG = "SIGSTOP, SIGCONT too late"
    CUT = "socket cut"


@dataclass(frozen=True, slots=True)
class Cell:
    point: str
    side: str
    """Whose point it is: "store" or "vm"."""
    scenario: str
    nth: int
    fault: Fault
    victim: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """ok: everything held. text: what became of both."""

    ok: bool
    text: str

    @property
    def harmed(self) -> bool:
        """The fault found somebody to hit."""
        return self.text not in NOBODY
