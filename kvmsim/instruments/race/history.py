"""What a guest may read: what it wrote, or zeros after a punch or where nobody wrote (R5, R8).

Each access and each taking back is an interval of time. A read may return what an access left whose interval began
before the read's ended, unless another one lies wholly between the two.
"""

from dataclasses import dataclass, field

FAILED = b"\xffFAILED\xff"
"""In the place of what a page holds when its frame has failed, or its device was removed: no guest reads it."""
ONE_MORE = b"\xff+ONE+\xff\xff"
"""In the place of what a page holds when a guest adds 1 to it."""
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
        if any(change.value == ONE_MORE for change in changes):
            allowed = self._counts(changes, start, now)
        if value in allowed:
            return ""
        shown = " or ".join(sorted(_shown(one) for one in allowed))
        return f"a guest read {_shown(value)} in page {page[1]} of {page[0]}, where {shown} is right"

    def _counts(self, changes: list[_Change], start: int, now: int) -> set[bytes]:
        """What was written or taken back, and since then: what was certainly added, up to all that may have been."""
        added = [change for change in changes if change.value == ONE_MORE]
        others = [change for change in changes if change.value != ONE_MORE]
        allowed = set()
        for base in others:
            if base.start < now and not any(base.end < other.start and other.end < start for other in others):
                least = sum(base.end < one.start and one.end < start for one in added)
                most = sum(one.end > base.start and one.start < now for one in added)
                first = int.from_bytes(base.value, "little")
                allowed |= {(first + count).to_bytes(8, "little") for count in range(least, most + 1)}
        return allowed


def _shown(value: bytes) -> str:
    raw = value.rstrip(b"\0")
    if not raw:
        return "zeros"
    text = raw.decode(errors="replace")
    return repr(text) if raw.isascii() and text.isprintable() else f"0x{raw.hex()}"
