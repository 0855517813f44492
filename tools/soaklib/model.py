"""What a page may read as: exactly what was written last, or zeros if it was taken since; nothing else ever.

While a taking is under way both are allowed. A read that found zeros settles it: the old contents never come back.
"""

from dataclasses import dataclass

from soaklib.ledger import Moments
from soaklib.pattern import ZEROS, Stamp, describe, render


@dataclass(slots=True)
class Written:
    """A page's contents, and the moments around the write that made them."""

    stamp: Stamp
    ended_at_start: int
    begun_at_end: int
    hazards_ended_at_start: int


class Lost(Exception):
    """The store is gone, or has cut this VM off."""


class Wrong(Exception):
    """A page holds what it must not: the message says what, and what it may hold."""


class PageModel:
    """One alias of one page; only its owner writes it.

    takings: by the host. hazards: conversions of other pages that may destroy this one (policy recreate).
    """

    def __init__(self, stamp: Stamp, takings: Moments | None, hazards: Moments | None) -> None:
        """stamp: with generation 0. Shared pages have neither takings nor hazards."""
        self._last = stamp
        self._takings = takings
        self._hazards = hazards
        self.written: Written | None = None
        """None: the page reads as zeros."""

    def write_begin(self) -> tuple[bytes, Written]:
        """What to write now; then call write_end, or nothing when it was not written."""
        self._last = self._last._replace(generation=self._last.generation + 1)
        page = self._last.page
        takings, hazards = self._takings, self._hazards
        ended = int(takings.ended[page]) if takings else 0
        hazards_ended = int(hazards.ended[page]) if hazards else 0
        return render(self._last), Written(self._last, ended, 0, hazards_ended)

    def write_end(self, written: Written) -> None:
        written.begun_at_end = int(self._takings.begun[self._last.page]) if self._takings else 0
        self.written = written

    def read_begin(self) -> int:
        """Call before the read; its answer is for `judge`."""
        return int(self._takings.ended[self._last.page]) if self._takings else 0

    def judge(self, data: bytes, ended_before: int) -> bool:
        """Whether contents were found gone, as they may be. Wrong when this is neither of what it may be."""
        written, page = self.written, self._last.page
        if written is None:
            if data != ZEROS:
                raise Wrong(f"{self._where}: holds {describe(data)}; it must be zeros")
            return False
        if data == render(written.stamp):
            if ended_before > written.begun_at_end:
                raise Wrong(f"{self._where}: still holds {describe(data)}, though the host has taken it since")
            return False
        taken = self._takings is not None and int(self._takings.begun[page]) > written.ended_at_start
        endangered = self._hazards is not None and int(self._hazards.begun[page]) > written.hazards_ended_at_start
        if data == ZEROS and (taken or endangered):
            self.written = None
            return True
        why = "or zeros" if taken or endangered else "and nobody has taken it"
        raise Wrong(f"{self._where}: holds {describe(data)}; it must be {written.stamp}, {why}")

    def emptied(self) -> None:
        """A conversion took the contents."""
        self.written = None

    @property
    def _where(self) -> str:
        return f"file {self._last.file}, {'shared' if self._last.shared else 'private'} page {self._last.page:#x}"
