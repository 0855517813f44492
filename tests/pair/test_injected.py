"""Inconsistencies put into a live pairing, on either side, and the rule under which memfs check names each."""

import os
from collections.abc import Callable

import pytest

from kvmsim.kvm.alias import PRIVATE
from memfsd.core.files.inodes import Regular
from memfsd.core.private import strategies
from memfsd.core.private.gmem_file import PairState
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PGOFF_END, Gfn, Pgoff, Seq
from tests.support.both_sides import LocalStore, page
from tests.support.inconsistent import overlap_last


class Live:
    """16 touched pages of "file" at GFN 16 of `vm`; 4 of "other" in a second VM; an ordinary file."""

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        store.create("file", 16)
        store.create("other", 4)
        store.create("ordinary", 2, sealed=False)
        self.vm, self.second = store.vm("vm"), store.vm("second")
        self.vm.private_slot(0, page(16), page(16), "file")
        self.second.private_slot(0, 0, page(4), "other")
        assert self.vm.touch(page(16), page(16)) is None
        assert self.second.touch(0, page(4)) is None
        self.file: Regular = store.file("file")
        self.guest = store.guest("file")

    def frame(self, name: str, pgoff: int) -> int:
        pfn = self.store.file(name).pages.lookup(pgoff)
        assert pfn is not None
        return pfn

    def cut_off(self) -> None:
        """Its frames are in quarantine."""
        self.store.hang_up("file")
        with self.store.service.lock:
            assert self.guest.quarantine.page_count

    def remap(self, gfn: int, frame: int) -> None:
        """In the VM's EPT: window frame numbers."""
        base = self.vm.link().base
        with self.vm.vm.mmu.lock:
            self.vm.vm.mmu.epts[PRIVATE].zap(Gfn(gfn), Gfn(gfn + 1))
            self.vm.vm.mmu.epts[PRIVATE].map_run(Gfn(gfn), base + frame, 1)


Undo = Callable[[], object]


def one_frame_in_two_files(live: Live) -> Undo:
    pages = live.store.file("other").pages
    pages.unmap(Pgoff(1), Pgoff(2))
    pages.map_run(Pgoff(1), live.frame("file", 3), 1)
    return lambda: pages.unmap(Pgoff(1), Pgoff(2))


def a_pairing_without_its_connection(live: Live) -> Undo:
    peers, peer = live.store.invalidator.peers, live.store.invalidator.peers.pop(live.file.ino)
    return lambda: peers.update({live.file.ino: peer})


def a_readable_handle(live: Live) -> None:
    live.store.service.handles.open_file(live.file, 0, readable=True, writable=False)


def a_guest_file_without_the_seal(live: Live) -> None:
    live.file.seals &= ~Seal.GUEST


def a_private_frame_that_counts_as_shared(live: Live) -> None:
    live.store.service.pool._frames[live.frame("file", 3)] = FrameState.SHARED


def a_mapping_that_the_store_lacks(live: Live) -> None:
    live.store.punch("file", 5, 1)
    live.remap(21, 700)


def a_mapping_to_another_frame(live: Live) -> None:
    live.remap(21, live.frame("file", 6))


def a_mapping_outside_every_slot(live: Live) -> None:
    live.remap(100, live.frame("file", 6))


def a_binding_that_the_store_lost(live: Live) -> None:
    live.guest.bindings.unbind(0, 4)


def a_slot_that_the_vm_lost(live: Live) -> None:
    with live.vm.vm.mmu.lock:
        live.vm.vm.slots[PRIVATE].delete(0)
        live.vm.vm.mmu.epts[PRIVATE].zap(Gfn(16), Gfn(32))


def a_gfn_for_two_pages(live: Live) -> None:
    live.guest.bindings._pages.put(0, 8, (0, 16))
    live.guest.bindings._pages.put(8, 16, (0, 12))


def a_page_at_a_second_gfn(live: Live) -> None:
    live.guest.bindings._pages.put(0, 16, (0, 32))


def a_binding_without_a_past(live: Live) -> None:
    live.guest.bindings._history.clear()


def bindings_that_overlap(live: Live) -> None:
    overlap_last(live.guest.bindings, 8, 16, (0, 892))


def a_frame_that_nobody_owns(live: Live) -> None:
    live.store.service.pool.alloc_one(FrameState.PRIVATE)


def a_lost_quarantine(live: Live) -> None:
    live.cut_off()
    live.guest.quarantine.unmap(0, PGOFF_END)


def a_quarantine_that_was_freed_too_early(live: Live) -> None:
    live.cut_off()
    for _, pfn, count in live.guest.quarantine.extents(0, PGOFF_END):
        live.store.service.pool.set_state(pfn, count, FrameState.CLOSING)
        live.store.service.pool.free(pfn, count)


def a_quarantine_of_a_vm_that_is_said_to_be_dead(live: Live) -> None:
    live.cut_off()
    assert live.guest.pairing is not None
    live.guest.pairing.state = PairState.ENDED


def a_wrong_count_of_pending_frames(live: Live) -> None:
    live.guest.pending += 3


def a_bracket_left_open(live: Live) -> Undo:
    live.store.service.gmem.invalidate_begin(live.file, 4, 8, strategies.PUNCH)
    return lambda: live.store.service.gmem.invalidate_end(live.file)


def a_sequence_number_behind(live: Live) -> None:
    live.guest.seq = Seq(7)


def a_sequence_number_ahead(live: Live) -> None:
    live.vm.link().seq = 7


def a_window_populated_where_a_frame_is_free(live: Live) -> None:
    live.vm.link().memory.write(page(900), b"x")


def a_window_populated_where_another_file_has_its_frame(live: Live) -> None:
    live.vm.link().memory.write(page(live.frame("other", 0)), b"x")


def a_freed_frame_of_ordinary_files_that_was_not_zeroed(live: Live) -> None:
    os.pwrite(live.store.windows.pool_fd, b"left behind", page(800))


INJECTED: list[tuple[str, Callable[[Live], Undo | None]]] = [
    ("R1", one_frame_in_two_files),
    ("R1", a_pairing_without_its_connection),
    ("R2", a_readable_handle),
    ("R2", a_guest_file_without_the_seal),
    ("R2", a_private_frame_that_counts_as_shared),
    ("R3", a_mapping_that_the_store_lacks),
    ("R3", a_mapping_to_another_frame),
    ("R3", a_mapping_outside_every_slot),
    ("R3", a_binding_that_the_store_lost),
    ("R3", a_slot_that_the_vm_lost),
    ("R4", a_gfn_for_two_pages),
    ("R4", a_page_at_a_second_gfn),
    ("R4", a_binding_without_a_past),
    ("R5", bindings_that_overlap),
    ("R6", a_frame_that_nobody_owns),
    ("R6", a_lost_quarantine),
    ("R6", a_quarantine_that_was_freed_too_early),
    ("R6", a_quarantine_of_a_vm_that_is_said_to_be_dead),
    ("R6", a_wrong_count_of_pending_frames),
    ("R7", a_bracket_left_open),
    ("R7", a_sequence_number_behind),
    ("R7", a_sequence_number_ahead),
    ("R8", a_window_populated_where_a_frame_is_free),
    ("R8", a_window_populated_where_another_file_has_its_frame),
    ("R8", a_freed_frame_of_ordinary_files_that_was_not_zeroed),
]


@pytest.mark.parametrize(("rule", "inject"), INJECTED, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_put_in_is_found_and_named(store: LocalStore, rule: str, inject: Callable[[Live], Undo | None]) -> None:
    """Damage that would break the end of the test itself is taken out again."""
    live = Live(store)
    assert store.findings() == []
    store.is_broken = True
    undo = inject(live)
    found = store.findings()
    assert rule in [broken for broken, _ in found], found
    assert all(text for _, text in found)
    if undo is not None:
        undo()


def test_every_rule_has_an_inconsistency() -> None:
    assert {rule for rule, _ in INJECTED} == {f"R{n}" for n in range(1, 9)}
