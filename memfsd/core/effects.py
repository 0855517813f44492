"""What an adapter must do in the world after a call of the core, in the order given."""

from dataclasses import dataclass

from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import Ino, Pfn, Pgoff

from .memory.page_table import FilePages
from .memory.published_map import PageMap

Runs = list[tuple[Pfn, int]]
"""Frame runs: (first frame, frames)."""


@dataclass(frozen=True, slots=True)
class Scrub:
    """Punch these frames out of a window (or the pool of ordinary files: None), then free them.

    The frames are CLOSING until ``Service.scrubbed`` is called: nobody can get them before they are zero (R8).
    into: FREE, or the state of frames that are out of service from then on.
    """

    window: Ino | None
    runs: Runs
    into: FrameState = FrameState.FREE

    @property
    def frame_count(self) -> int:
        return sum(count for _, count in self.runs)


@dataclass(frozen=True, slots=True, eq=False)
class Discard:
    """Pages that a file has lost, too many to free at once: ``Service.discard`` gives the Scrubs of a window."""

    ino: Ino
    pages: FilePages
    window: Ino | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Quarantine:
    """Pages of a file whose VM was cut off, too many to quarantine at once: ``Service.quarantine`` takes some more."""

    ino: Ino
    pages: FilePages


@dataclass(frozen=True, slots=True, eq=False)
class ReturnSlots:
    """Slots of the swap file, as frames of a table, too many to free at once: ``Service.return_slots`` frees some."""

    pages: FilePages


@dataclass(slots=True, eq=False)
class Fill:
    """Holes of a file, too many to fill at once: ``Service.fill`` fills some more, until they are or it is refused."""

    ino: Ino
    refused: Refused | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Pages that an ordinary file is to lose, and its new size, too many to take at once: ``Service.cut`` gives the
    Scrubs of some more."""

    ino: Ino


@dataclass(frozen=True, slots=True, eq=False)
class Export:
    """Pages of a file, each with its frame, that its VM has blocked: they are to go to the swap file."""

    ino: Ino
    pages: list[tuple[Pgoff, Pfn]]


@dataclass(frozen=True, slots=True)
class ZeroBytes:
    """Write zeros into the pool of ordinary files: the tail of a page that a truncate cut."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DropWindow:
    """The VM is gone for good: close the file's window, and let go of its page map."""

    window: Ino
    page_map: PageMap | None = None


@dataclass(frozen=True, slots=True)
class DropDevice:
    """The device is gone for good: close its memory. A VM that has it mapped keeps it until it ends."""

    ino: Ino


@dataclass(frozen=True, slots=True)
class ForgetCache:
    """What the kernel caches of these pages of a file is out of date, and so are its attributes. What was stored
    through a mapping is written back first. Without pages: all of the file."""

    ino: Ino
    start: Pgoff = Pgoff(0)
    end: Pgoff | None = None


Effect = (
    Scrub | Discard | Quarantine | ReturnSlots | Cut | Fill | Export | ZeroBytes | DropWindow | DropDevice | ForgetCache
)
