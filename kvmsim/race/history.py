"""What a guest may read: what it wrote, or zeros after a punch or where nobody wrote (R5, R8).

Each access and each taking back is an interval of time. A read may return what an access left whose interval began
before the read's ended, unless another one lies wholly between the two.
"""

from dataclasses import dataclass, field

FAILED = b"\xffFAILED\xff"
"""In the place of what a page holds when its frame has failed, or its device was removed: no guest reads it."""
Page = tuple[str, int]
"""Of a file: its name and the page's index."""


@dataclass(slots=True)
class _Change:
    value: bytes
    start: int
    end: float = float("inf")


@dataclass(slots=True)
class History:
    """What each page may hold at each moment of a run."""

    clock: int = 0
    _pages: dict[Page, list[_Change]] = field(default_factory=dict)

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def begin(self, pages: list[Page], value: bytes) -> list[_Change]:
        """A write of a value, or with zeros a taking back, is under way."""
        start = self.tick()
        changes = []
        for page in pages:
            change = _Change(value, start)
            self._pages.setdefault(page, [_Change(bytes(len(value)), -2, -1)]).append(change)
            changes.append(change)
        return changes

    def end(self, changes: list[_Change], *, happened: bool = True) -> None:
        """It is done; or it was refused, and nothing happened."""
        now = self.tick()
        for change in changes:
            change.end = now
        if not happened:
            for page in self._pages.values():
                page[:] = [change for change in page if not any(change is gone for gone in changes)]

    def check(self, page: Page, value: bytes, start: int) -> str:
        """Why a read since `start` cannot have returned this value, "" when it can."""
        now = self.tick()
        changes = self._pages.get(page, [_Change(bytes(len(value)), -2, -1)])
        allowed = {
            change.value
            for change in changes
            if change.start < now and not any(change.end < other.start and other.end < start for other in changes)
        }
        if value in allowed:
            return ""
        shown = " or ".join(sorted(_shown(one) for one in allowed))
        return f"a guest read {_shown(value)} in page {page[1]} of {page[0]}, where {shown} is right"


def _shown(value: bytes) -> str:
    text = value.rstrip(b"\0")
    return repr(text.decode(errors="replace")) if text else "zeros"
