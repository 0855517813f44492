"""Guest memory as letters."""

from kvmsim.instruments.views.memory_map import Memory, PageMap, memory_of
from memfsd.common.intervals import IntervalSet
from memfsd.common.lines import ALARM, plain

P = 4096
WIDE = 15 + 16


def memory(pages: int, **sets: tuple[int, int]) -> Memory:
    """Sets of pages [start, end) of one slot at 0."""
    found = {name: IntervalSet([(start * P, end * P)]) for name, (start, end) in sets.items()}
    none = IntervalSet()
    return Memory(IntervalSet([(0, pages * P)]), *(found.get(name, none) for name in Memory._fields[1:]))


def letters(view: PageMap, memory: Memory, rows: int = 24) -> list[str]:
    return [plain(line, 200)[15:] for line in view.lines(memory, WIDE, rows)[1:]]


def test_each_page_has_the_letter_of_what_is_in_it() -> None:
    mixed = memory(32, punched=(1, 3), private=(3, 8), shared=(6, 20), doubled=(7, 8))
    assert letters(PageMap(), mixed) == [".--PPPx2SSSSSSSS", "SSSS............"]


def test_a_letter_is_of_more_pages_when_there_is_less_room_and_what_is_held_twice_shows() -> None:
    large = memory(1 << 20, private=(0, 1 << 19), shared=(9, 10), doubled=(9, 10))
    shown = letters(PageMap(), large, rows=3)
    assert shown == ["2" + "P" * 15, "." * 16]
    (line, _) = PageMap().lines(large, WIDE, 3)[1:]
    assert ("2", ALARM) in line


def test_what_has_changed_since_the_last_look_is_in_reverse_and_a_redraw_keeps_it() -> None:
    view = PageMap()
    view.lines(memory(16), WIDE, 24)
    view.advance()
    for _ in range(2):
        (line,) = view.lines(memory(16, private=(4, 6)), WIDE, 24)[1:]
        assert ("PP", "blue reverse") in line
    view.advance()
    (line,) = view.lines(memory(16, private=(4, 6)), WIDE, 24)[1:]
    assert ("PP", "blue") in line


def test_every_slot_begins_a_line_and_what_has_no_room_is_left_out() -> None:
    slots = [{"gpa": n << 30, "size": P, "segments": [{"gpa": n << 30, "size": P}]} for n in range(50)]
    facts: dict[str, object] = {"slots": slots, "mappings": {"private": [], "shared": []}, "memory": {"held-twice": []}}
    lines = PageMap().lines(memory_of(facts), 80, 10)
    assert len(lines) == 10
    assert plain(lines[2], 80) == "0x00040000000  ."
    assert PageMap().lines(memory_of({**facts, "slots": []}), 80, 10) == []
