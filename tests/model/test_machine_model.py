"""A store and a VM against a dict: random guest accesses, conversions, slots and punches, in any order.

The model knows, for each GFN, which slot shows it in each alias and what bytes it must hold. After every step R1 to
R8 hold on both sides (memfs check), and each access either answers the model's bytes or its exit.
"""

import errno
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmsim.core.exits import Exit, MemoryErrorExit, MmioExit
from kvmsim.core.vm import Vm
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore, LocalVm, opened_store, page

SPACE = 20
FILE = 16
"""File page N belongs at GFN N + 2 (fixed_gfn): slots that say otherwise are refused."""
SHIFT = 2

gfns = st.integers(0, SPACE - 1)
lengths = st.integers(1, 6)
aliases = st.booleans()
operations = st.one_of(
    st.tuples(st.just("write"), gfns, lengths, aliases, st.integers(1, 255)),
    st.tuples(st.just("read"), gfns, lengths, aliases),
    st.tuples(st.just("map"), gfns, lengths, aliases),
    st.tuples(st.just("host"), gfns),
    st.tuples(st.just("private"), st.integers(0, 2), gfns, lengths),
    st.tuples(st.just("shared"), st.integers(0, 2), gfns, lengths),
    st.tuples(st.just("delete"), st.integers(0, 2), aliases),
    st.tuples(st.just("punch_slot"), st.integers(0, 2), gfns, lengths),
    st.tuples(st.just("punch"), st.integers(0, FILE - 1), lengths),
    st.tuples(st.just("reclaim")),
)


class Model:
    """shown[private]: GFN -> slot id. data[private]: GFN -> the byte that fills its page; 0 when missing."""

    def __init__(self) -> None:
        self.shown: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.data: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.slots: tuple[dict[int, range], dict[int, range]] = ({}, {})

    def first_missing(self, pages: range, private: bool) -> int | None:
        return next((gfn for gfn in pages if gfn not in self.shown[private]), None)

    def exit_at(self, gfn: int, private: bool, left: int, value: int | None) -> Exit:
        if private or gfn in self.shown[True]:
            return MemoryErrorExit(page(gfn), PAGE_SIZE, private)
        length = min(left, 8)
        return MmioExit(page(gfn), length, value is not None, b"" if value is None else bytes([value]) * length)

    def hide(self, private: bool, gone: range) -> None:
        for gfn in gone:
            self.shown[private].pop(gfn, None)
            self.data[private].pop(gfn, None)


class Pair:
    """The real ones, and the model, in step."""

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        self.model = Model()
        store.create("file", FILE)
        self.local = LocalVm(store)

    def write(self, gfn: int, pages: int, private: bool, value: int) -> None:
        model, span = self.model, range(gfn, gfn + pages)
        missing = model.first_missing(span, private)
        got = self.local.write(page(gfn), bytes([value]) * page(pages), shared=not private)
        stop = span.stop if missing is None else missing
        for at in range(gfn, stop):
            model.data[private][at] = value
        expected = None if missing is None else model.exit_at(missing, private, page(span.stop - missing), value)
        assert got == expected

    def read(self, gfn: int, pages: int, private: bool) -> None:
        model, span = self.model, range(gfn, gfn + pages)
        missing = model.first_missing(span, private)
        got = self.local.read(page(gfn), page(pages), shared=not private)
        if missing is None:
            assert got == b"".join(bytes([model.data[private].get(at, 0)]) * PAGE_SIZE for at in span)
        else:
            assert got == model.exit_at(missing, private, page(span.stop - missing), None)

    def map(self, gfn: int, pages: int, private: bool) -> None:
        model = self.model
        ids = {model.shown[private].get(at) for at in range(gfn, gfn + pages)}
        got = self.local.guest.map(self.local.vcpu, page(gfn), page(pages), private=private)
        if len(ids) == 1 and None not in ids:
            assert got is None
        else:
            assert got == MemoryErrorExit(page(gfn), page(pages), private, explicit=True)

    def host(self, gfn: int) -> None:
        model = self.model
        if gfn in model.shown[False]:
            assert self.local.guest.host_access(page(gfn), 4, None) == bytes([model.data[False].get(gfn, 0)]) * 4
        elif gfn in model.shown[True]:
            illegal = MemoryErrorExit(page(gfn), PAGE_SIZE, True, illegal=True)
            assert self.local.guest.host_access(page(gfn), 4, None) == illegal
        else:
            assert self.refused(lambda: self.local.guest.host_access(page(gfn), 4, None)) == errno.EFAULT

    def private(self, id_: int, gfn: int, pages: int) -> None:
        """At its file's place."""
        model, span, offset = self.model, range(gfn, gfn + pages), gfn - SHIFT
        if offset < 0:
            return
        got = self.refused(lambda: self.local.private_slot(id_, page(gfn), page(pages), "file", page(offset)))
        if id_ in model.slots[True]:
            expected = errno.EINVAL
        elif any(at in model.shown[True] for at in span):
            expected = errno.EEXIST
        elif offset + pages > FILE:
            expected = errno.EINVAL
        else:
            expected = 0
            model.slots[True][id_] = span
            model.shown[True].update(dict.fromkeys(span, id_))
        assert got == expected

    def shared(self, id_: int, gfn: int, pages: int) -> None:
        model, span = self.model, range(gfn, gfn + pages)
        if id_ in model.slots[False]:
            return
        got = self.refused(lambda: self.local.shared_slot(id_, page(gfn), page(pages)))
        if any(at in model.shown[False] for at in span):
            assert got == errno.EEXIST
            return
        assert got == 0
        model.slots[False][id_] = span
        model.shown[False].update(dict.fromkeys(span, id_))

    def delete(self, id_: int, private: bool) -> None:
        got = self.refused(lambda: self.local.delete(id_, private=private))
        if self.model.slots[private].pop(id_, None) is None:
            assert got == errno.EINVAL
            return
        assert got == 0
        self.model.hide(private, [at for at, slot in self.model.shown[private].items() if slot == id_])  # type: ignore[arg-type]

    def punch_slot(self, id_: int, gfn: int, pages: int) -> None:
        model, span = self.model, range(gfn, gfn + pages)
        got = self.refused(lambda: self.local.machine.punch_slot(id_, page(gfn), page(pages)))
        if any(model.shown[True].get(at) != id_ for at in span):
            assert got == errno.EINVAL
            return
        assert got == 0
        model.hide(True, span)

    def punch(self, pgoff: int, pages: int) -> None:
        self.store.punch("file", pgoff, pages)
        for at in range(pgoff + SHIFT, pgoff + pages + SHIFT):
            self.model.data[True].pop(at, None)

    def reclaim(self) -> None:
        self.store.brackets.reclaim()

    @staticmethod
    def refused(call: object) -> int:
        """The errno, 0 when it went well."""
        assert callable(call)
        try:
            call()
        except Refused as refused:
            return refused.errno
        return 0

    def check(self) -> None:
        assert self.store.findings() == []
        vm: Vm[object, object] = self.local.vm  # type: ignore[assignment]
        for private in (False, True):
            mapped = {
                at for gfn, _, count in vm.mmu.epts[private].runs(0, SPACE + 10) for at in range(gfn, gfn + count)
            }
            assert mapped <= set(self.model.shown[private]), "nothing is mapped that no slot shows"
        assert vm.mmu.in_progress == 0


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(operations, min_size=5, max_size=30))
def test_a_vm_and_its_store_agree_with_a_dict(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[object, ...]]
) -> None:
    place: Path = tmp_path_factory.mktemp("m")
    with pytest.MonkeyPatch.context() as patch, opened_store(place, patch, 64) as store:
        pair = Pair(store)
        pair.shared(0, 4, 6)
        pair.private(0, SHIFT, 12)
        for name, *arguments in steps:
            getattr(pair, str(name))(*arguments)
            pair.check()
        for private in (False, True):
            for gfn in range(SPACE):
                pair.read(gfn, 1, private)
