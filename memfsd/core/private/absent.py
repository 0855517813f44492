"""Pages of a sealed file that have no frame and are no holes either: what Linux keeps in a PTE that is not present."""

from enum import Enum


class Lost(Enum):
    """Why a page has no contents, and gets none before it is punched."""

    POISONED = "poisoned"
    """Its frame failed. Who touches the page gets EHWPOISON."""


Entry = Lost


class AbsentPages(dict[int, Entry]):
    """By page of the file. As a rule there are none, which a fault sees by one test of truth: hence a dict."""

    __slots__ = ()

    def put(self, pgoff: int, entry: Entry) -> None:
        """The page must have no frame, and no entry."""
        assert pgoff not in self, f"page {pgoff:#x} is absent already"
        self[pgoff] = entry

    def within(self, start: int, end: int) -> list[int]:
        """The absent pages of [start, end), in order."""
        if end - start < len(self):
            return [pgoff for pgoff in range(start, end) if pgoff in self]
        return sorted(pgoff for pgoff in self if start <= pgoff < end)

    def first(self, start: int, end: int) -> int:
        """The first absent page of [start, end), or end."""
        return min(self.within(start, end), default=end)

    def take(self, start: int, end: int) -> list[tuple[int, Entry]]:
        """The entries of [start, end), in order; these pages are holes from now on."""
        return [(pgoff, self.pop(pgoff)) for pgoff in self.within(start, end)]
