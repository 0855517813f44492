"""Memslots against a dict from GFN to slot id: random operations on both, every query compared."""

import errno

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.region import SlotFlag
from kvmsim.kvm.slots.memslots import Memslot, Memslots
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import Gfn, Pgoff
from tests.support.slots import NO_BACKING

SPACE = 40

ids = st.integers(0, 5)
gfns = st.integers(0, SPACE - 1)
ranges = st.tuples(gfns, st.integers(0, SPACE))
operations = st.one_of(
    st.tuples(st.just("add"), ids, gfns, st.integers(1, 20)),
    st.tuples(st.just("delete"), ids, st.just(0), st.just(0)),
    st.builds(lambda i, r: ("punch", i, *r), ids, ranges),
    st.builds(lambda i, r: ("fill", i, *r), ids, ranges),
)


class Model:
    def __init__(self) -> None:
        self.whole: dict[int, range] = {}
        self.shown: dict[int, int] = {}

    def add(self, slot_id: int, gfn: int, page_count: int) -> int:
        pages = range(gfn, gfn + page_count)
        if any(page in self.shown for page in pages):
            return errno.EEXIST
        self.whole[slot_id] = pages
        self.shown |= dict.fromkeys(pages, slot_id)
        return 0

    def delete(self, slot_id: int, *_: int) -> int:
        if slot_id not in self.whole:
            return errno.EINVAL
        del self.whole[slot_id]
        self.shown = {page: other for page, other in self.shown.items() if other != slot_id}
        return 0

    def punch(self, slot_id: int, start: int, end: int) -> int:
        if start >= end or any(self.shown.get(page) != slot_id for page in range(start, end)):
            return errno.EINVAL
        for page in range(start, end):
            del self.shown[page]
        return 0

    def fill(self, slot_id: int, start: int, end: int) -> int:
        whole = self.whole.get(slot_id, range(0))
        pages = range(start, end)
        if not pages or any(page not in whole or self.shown.get(page) == slot_id for page in pages):
            return errno.EINVAL
        if any(page in self.shown for page in pages):
            return errno.EEXIST
        self.shown |= dict.fromkeys(pages, slot_id)
        return 0

    def segments(self) -> list[tuple[int, int, int]]:
        found: list[tuple[int, int, int]] = []
        for page in sorted(self.shown):
            if found and found[-1][0] == self.shown[page] and found[-1][2] == page:
                found[-1] = (found[-1][0], found[-1][1], page + 1)
            else:
                found.append((self.shown[page], page, page + 1))
        return found


def apply(memslots: Memslots, operation: tuple[str, int, int, int]) -> int:
    name, slot_id, first, second = operation
    try:
        if name == "add":
            memslots.add(Memslot(slot_id, PRIVATE, Gfn(first), second, SlotFlag(0), NO_BACKING, Pgoff(0)))
        elif name == "delete":
            assert memslots.delete(slot_id).id == slot_id
        elif name == "punch":
            assert memslots.punch(slot_id, Gfn(first), Gfn(second)) == [(first, second)]
        else:
            memslots.fill(slot_id, Gfn(first), Gfn(second))
    except Refused as refused:
        return refused.errno
    return 0


def compare(memslots: Memslots, model: Model) -> None:
    segments = model.segments()
    by_gfn = sorted((pages.start, slot_id) for slot_id, pages in model.whole.items())
    assert [(slot.gfn, slot.id) for slot in memslots] == by_gfn
    assert len(memslots) == len(model.whole)
    for slot in memslots:
        assert memslots.get(slot.id) is slot
        assert range(slot.gfn, slot.end) == model.whole[slot.id]
        assert slot.segments == [(start, end) for owner, start, end in segments if owner == slot.id]
    for gfn in range(SPACE + 25):
        found = memslots.lookup(Gfn(gfn))
        assert (found and found.id) == model.shown.get(gfn)
        segment = memslots.segment(Gfn(gfn))
        assert ((segment[0].id, *segment[1:]) if segment else None) == next(
            (s for s in segments if s[1] <= gfn < s[2]), None
        )
        assert memslots.next_start(Gfn(gfn)) == next((s[1] for s in segments if s[1] > gfn), None)
        for end in (gfn + 1, gfn + 3, gfn + 17):
            covering = memslots.covers(Gfn(gfn), Gfn(end))
            assert (covering and covering.id) == next((s[0] for s in segments if s[1] <= gfn and end <= s[2]), None)
            overlapping = [s[0] for s in segments if s[1] < end and s[2] > gfn]
            assert [slot.id for slot in memslots.overlaps(Gfn(gfn), Gfn(end))] == list(dict.fromkeys(overlapping))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(operations, max_size=25))
def test_memslots_agree_with_a_dict(steps: list[tuple[str, int, int, int]]) -> None:
    memslots, model = Memslots(PRIVATE), Model()
    for name, slot_id, first, second in steps:
        if name == "add" and slot_id in model.whole:
            continue
        generation = memslots.generation
        expected = getattr(model, name)(slot_id, first, second)
        assert apply(memslots, (name, slot_id, first, second)) == expected
        assert memslots.generation == generation + (not expected)
        compare(memslots, model)
