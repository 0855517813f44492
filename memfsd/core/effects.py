"""What an adapter must do in the world after a call of the core, in the order given."""

from dataclasses import dataclass

from memfsd.uapi.units import Ino, Pfn

from .memory.page_table import FilePages

Runs = list[tuple[Pfn, int]]
"""Frame runs: (first frame, frames)."""


@dataclass(frozen=True, slots=True)
class Scrub:
    """Punch these frames out of a window (or the pool of ordinary files: None), then free them.

    The frames are CLOSING until ``Service.scrubbed`` is told: nobody can get them before they are zero (R8).
    """

    window: Ino | None
    runs: Runs

    @property
    def frame_count(self) -> int:
        return sum(count for _, count in self.runs)


@dataclass(frozen=True, slots=True, eq=False)
class Discard:
    """Pages that an ordinary file has lost, too many to free at once: ``Service.discard`` gives the Scrubs."""

    ino: Ino
    pages: FilePages


@dataclass(frozen=True, slots=True)
class ZeroBytes:
    """Write zeros into the pool of ordinary files: the tail of a page that a truncate cut."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DropWindow:
    """The sealed file is gone for good: close its window."""

    window: Ino


@dataclass(frozen=True, slots=True)
class ForgetCache:
    """The kernel's cached pages and attributes of this file no longer tell the truth."""

    ino: Ino


Effect = Scrub | Discard | ZeroBytes | DropWindow | ForgetCache
