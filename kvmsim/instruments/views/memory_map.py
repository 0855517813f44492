"""Guest memory as letters: one for so many pages, by what is in them. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from memfsd.common.intervals import IntervalSet
from memfsd.common.lines import ALARM, Line

Range = tuple[int, int]
"""[start, end) of GPAs."""
LETTERS = {
    "2": ("twice", ALARM),
    "x": ("both", "yellow"),
    "P": ("private", "blue"),
    "S": ("shared", "green"),
    "-": ("punched", "bright_black"),
    ".": ("unmapped", "bright_black"),
}
"""In the order in which they are looked for."""
_LABEL = 15
_ROUND = 16
"""Letters of a line are a multiple, so that its GPA is round."""


class Memory(NamedTuple):
    """GPAs: what slots cover, what punched slots do not show, what is mapped in each alias, what is held twice."""

    slots: IntervalSet
    punched: IntervalSet
    private: IntervalSet
    shared: IntervalSet
    doubled: IntervalSet


def memory_of(facts: dict[str, object]) -> Memory:
    """From what views/watching.py has found."""
    slots, mappings, memory = facts["slots"], facts["mappings"], facts["memory"]
    assert isinstance(slots, list) and isinstance(mappings, dict) and isinstance(memory, dict)
    covered, punched = IntervalSet(_ranges(slots)), IntervalSet(_ranges(slots))
    for slot in slots:
        for start, end in _ranges(slot["segments"]):
            punched.discard(start, end)
    private, shared = (IntervalSet(_ranges(mappings[space])) for space in ("private", "shared"))
    return Memory(covered, punched, private, shared, IntervalSet(_ranges(memory["held-twice"])))


def _ranges(found: Iterable[dict[str, int]]) -> list[Range]:
    return [(one["gpa"], one["gpa"] + one["size"]) for one in found if one["size"]]


class PageMap:
    """Keeps the map before `advance`: what changed since is shown in reverse."""

    def __init__(self) -> None:
        self._before: dict[Range, str] = {}
        self._shown: dict[Range, str] = {}

    def advance(self) -> None:
        """What is drawn from now on is of a later moment."""
        self._before = self._shown

    def lines(self, memory: Memory, columns: int, rows: int) -> list[Line]:
        """At most so many; each begins with the GPA of its first letter. What has no room is left out."""
        width = max((columns - _LABEL) // _ROUND * _ROUND, _ROUND)
        ranges = memory.slots.within(0, 1 << 64)
        if not ranges or rows < 2:
            return []
        cell = _cell_bytes(ranges, width, rows - 1)
        lines: list[Line] = [self._legend(cell)]
        shown: dict[Range, str] = {}
        for start, end in ranges:
            for low in range(start, end, cell * width):
                line: Line = [(f"{low:#013x}  ", "bright_black")]
                for at in range(low, min(low + cell * width, end), cell):
                    place = at, min(at + cell, end)
                    letter = shown[place] = _letter(memory, *place)
                    changed = self._before.get(place, letter) != letter
                    style = LETTERS[letter][1] + (" reverse" if changed else "")
                    if len(line) > 1 and line[-1][1] == style:
                        line[-1] = (line[-1][0] + letter, style)
                    else:
                        line.append((letter, style))
                lines.append(line)
        self._shown = shown
        return lines[:rows]

    def _legend(self, cell: int) -> Line:
        line: Line = [(f"{cell >> 10}K a letter: ", "")]
        for letter, (meaning, style) in LETTERS.items():
            line += [(letter, style), (f" {meaning}  ", "")]
        return line


def _cell_bytes(ranges: list[Range], width: int, rows: int) -> int:
    """The least power of two with which all of it has room; ranges begin lines, so very many have none."""
    cell = 4096
    while sum(-(-(end - start) // (cell * width)) for start, end in ranges) > max(rows, len(ranges)):
        cell *= 2
    return cell


def _letter(memory: Memory, start: int, end: int) -> str:
    if memory.doubled.within(start, end):
        return "2"
    private, shared = memory.private.within(start, end), memory.shared.within(start, end)
    if private and shared:
        return "x"
    if private or shared:
        return "P" if private else "S"
    return "-" if memory.punched.within(start, end) else "."
