"""R1 to R8: a healthy store has no findings, and each kind of damage is found under its rule."""

from collections.abc import Callable

import pytest

from memfsd.core.audit import PeerReport, _pieces
from memfsd.core.files.inodes import Regular
from memfsd.core.private import strategies
from memfsd.core.private.bindings import Binding
from memfsd.core.private.gmem_file import GmemFile
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE, PGOFF_END, Gfn, Ino, Pgoff, Seq
from tests.support.core_store import PUNCH, RDWR, CoreStore
from tests.support.inconsistent import overlap_last

P = PAGE_SIZE


class World:
    """An ordinary file, and a sealed one whose VM has touched 4 of 7 granted pages and punched page 1 away."""

    def __init__(self) -> None:
        self.store = CoreStore(pages=600)
        self.ordinary = self.store.make("ordinary")
        self.store.write(self.store.open(self.ordinary), 0, b"x" * 3 * P)
        self.file: Regular
        self.guest: GmemFile
        self.file, self.guest = self.store.bound_file("sealed", 16, gfn=0x100)
        for pgoff in (0, 1, 3):
            self.store.fault(self.file, pgoff, 512)
        self.store.fault(self.file, 12)
        self.store.fallocate(self.file, PUNCH, P, P)
        self.report = PeerReport(
            slots=[(1, 0x100, 0, 16)],
            mappings=[(0x100 + pgoff, pfn, count) for pgoff, pfn, count in self.file.pages.extents(0, 16)],
            seq=1,
        )

    def frame(self, pgoff: int) -> int:
        pfn = self.file.pages.lookup(pgoff)
        assert pfn is not None
        return pfn

    def free_frame(self) -> int:
        return next(pfn for pfn in range(600) if self.store.pool.state(pfn) is FrameState.FREE)

    def findings(self) -> list[tuple[str, str]]:
        return self.store.audit({self.file.ino: self.report})


@pytest.fixture
def world() -> World:
    return World()


def test_a_healthy_store_has_no_findings(world: World) -> None:
    assert world.findings() == []
    assert world.store.audit() == []
    assert CoreStore().audit() == []


def test_a_store_stays_healthy_to_the_end(world: World) -> None:
    world.store.gmem.disconnect(world.file)
    assert world.store.audit() == []
    world.store.release_guest(world.file)
    assert world.store.audit() == []
    world.store.unlink("sealed")
    world.store.unlink("ordinary")
    assert world.store.audit() == []


def frame_in_two_sealed_files(world: World) -> None:
    other = world.store.guest_file("other", 4)
    other.pages.map_run(0, world.frame(0), 1)


def frame_in_two_pages(world: World) -> None:
    world.file.pages.map_run(9, world.frame(0), 1)


def private_frame_in_an_ordinary_file(world: World) -> None:
    ordinary = world.store.make("other")
    ((pfn, _),) = world.store.pool.alloc(1, FrameState.PRIVATE)
    ordinary.pages.map_run(0, pfn, 1)


def shared_frame_in_a_sealed_file(world: World) -> None:
    ((pfn, _),) = world.store.pool.alloc(1, FrameState.SHARED)
    world.file.pages.map_run(9, pfn, 1)


def free_frame_in_a_file(world: World) -> None:
    world.file.pages.map_run(9, world.free_frame(), 1)


def quarantined_frame_still_in_the_file(world: World) -> None:
    world.store.pool.set_state(world.frame(0), 1, FrameState.QUARANTINED)
    world.guest.quarantine.map_run(0, world.file.pages.lookup(0), 1)  # type: ignore[arg-type]


def sealed_and_open_for_reading(world: World) -> None:
    world.store.service.handles.open_file(world.file, 0, readable=True, writable=False)


def guest_state_without_the_seal(world: World) -> None:
    world.file.seals = Seal(0)


def size_not_whole_pages(world: World) -> None:
    world.file.size += 100


def slot_only_the_store_knows(world: World) -> None:
    world.report.slots = []


def slot_only_the_vm_knows(world: World) -> None:
    world.report.slots.append((9, 0x900, 100, 5))


def slot_at_another_gfn(world: World) -> None:
    world.report.slots = [(1, 0x101, 0, 16)]


def mapping_to_another_frame(world: World) -> None:
    world.report.mappings[0] = (0x100, world.frame(12), 1)


def mapping_of_a_page_without_a_frame(world: World) -> None:
    world.report.mappings.append((0x101, world.free_frame(), 1))


def mapping_that_runs_past_the_frames(world: World) -> None:
    gfn, pfn, _ = world.report.mappings[-1]
    world.report.mappings[-1] = (gfn, pfn, 3)


def mapping_outside_all_slots(world: World) -> None:
    world.report.mappings.append((0x110, world.frame(0), 1))


def mapping_after_the_page_was_unbound(world: World) -> None:
    world.store.gmem.unbind(world.file, 12, 1)
    world.report.slots = [(1, 0x100, 0, 12), (1, 0x10D, 13, 3)]


def gfn_for_two_pages(world: World) -> None:
    world.guest.bindings.bind(Binding(2, Pgoff(20), Pgoff(24), Gfn(0x900)), fixed_gfn=True)
    world.guest.bindings._pages.put(20, 24, (2, 0x10F - 20))
    world.report.slots.append((2, 0x10F, 20, 4))


def page_at_another_gfn_than_before(world: World) -> None:
    world.guest.bindings._pages.put(0, 16, (1, 0x200))
    world.report.slots = [(1, 0x200, 0, 16)]
    world.report.mappings = [(gfn + 0x100, pfn, count) for gfn, pfn, count in world.report.mappings]


def binding_without_a_past(world: World) -> None:
    world.guest.bindings._history.clear()


def bindings_that_overlap(world: World) -> None:
    overlap_last(world.guest.bindings, 15, 17, (1, 0x900 - 15))
    world.report.slots.append((1, 0x900, 15, 2))


def frame_that_no_file_owns(world: World) -> None:
    world.store.pool.alloc(1, FrameState.PRIVATE)


def frame_that_a_file_forgot(world: World) -> None:
    world.file.pages.unmap(12, 13)
    world.report.mappings.pop()
    world.store.windows.memory = {key: page for key, page in world.store.memory.items() if key[0] is None}


def quarantine_without_cut(world: World) -> None:
    ((pfn, _),) = world.store.pool.alloc(1, FrameState.PRIVATE)
    world.store.pool.set_state(pfn, 1, FrameState.QUARANTINED)
    world.guest.quarantine.map_run(99, pfn, 1)


def quarantined_frame_that_nobody_remembers(world: World) -> None:
    ((pfn, _),) = world.store.pool.alloc(1, FrameState.PRIVATE)
    world.store.pool.set_state(pfn, 1, FrameState.QUARANTINED)


def pending_frames_miscounted(world: World) -> None:
    world.guest.pending += 1


def quarantined(world: World) -> int:
    return next(world.guest.quarantine.extents(0, PGOFF_END))[1]


def frame_in_quarantine_and_in_a_file(world: World) -> None:
    world.store.gmem.disconnect(world.file)
    other = world.store.guest_file("other", 4)
    other.pages.map_run(0, quarantined(world), 1)


def quarantined_frame_in_another_state(world: World) -> None:
    world.store.gmem.disconnect(world.file)
    world.store.pool.set_state(quarantined(world), 1, FrameState.CLOSING)


def counts_that_do_not_add_up(world: World) -> None:
    world.store.pool._counts[FrameState.FREE] -= 1


def bindings_without_a_live_vm(world: World) -> None:
    other = world.store.guest_file("other", 4)
    assert other.guest is not None
    other.guest.bindings.bind(Binding(1, Pgoff(0), Pgoff(4), Gfn(0)), fixed_gfn=True)


def bracket_left_open(world: World) -> None:
    world.store.gmem.invalidate_begin(world.file, 4, 8, strategies.PUNCH)


def sequence_behind(world: World) -> None:
    world.guest.seq = Seq(2)


def sequence_ahead(world: World) -> None:
    world.report.seq = 2


def window_with_memory_of_a_free_frame(world: World) -> None:
    world.store.memory[world.file.ino, world.free_frame()] = bytearray(P)


def window_with_memory_of_another_files_frame(world: World) -> None:
    other, _ = world.store.bound_file("other", 4, gfn=0x900)
    pfn = world.store.fault(other, 0).pfn
    world.store.memory[world.file.ino, pfn] = bytearray(P)


def ordinary_pool_with_memory_of_a_free_frame(world: World) -> None:
    world.store.memory[None, world.free_frame()] = bytearray(P)


def ordinary_pool_with_memory_of_a_private_frame(world: World) -> None:
    world.store.memory[None, world.frame(0)] = bytearray(P)


DAMAGE: list[tuple[str, Callable[[World], None]]] = [
    ("R1", frame_in_two_sealed_files),
    ("R1", frame_in_two_pages),
    ("R2", private_frame_in_an_ordinary_file),
    ("R2", shared_frame_in_a_sealed_file),
    ("R2", free_frame_in_a_file),
    ("R2", quarantined_frame_still_in_the_file),
    ("R2", sealed_and_open_for_reading),
    ("R2", guest_state_without_the_seal),
    ("R2", size_not_whole_pages),
    ("R3", slot_only_the_store_knows),
    ("R3", slot_only_the_vm_knows),
    ("R3", slot_at_another_gfn),
    ("R3", mapping_to_another_frame),
    ("R3", mapping_of_a_page_without_a_frame),
    ("R3", mapping_that_runs_past_the_frames),
    ("R3", mapping_outside_all_slots),
    ("R3", mapping_after_the_page_was_unbound),
    ("R4", gfn_for_two_pages),
    ("R4", page_at_another_gfn_than_before),
    ("R4", binding_without_a_past),
    ("R5", bindings_that_overlap),
    ("R6", frame_that_no_file_owns),
    ("R6", frame_that_a_file_forgot),
    ("R6", quarantine_without_cut),
    ("R6", quarantined_frame_that_nobody_remembers),
    ("R6", pending_frames_miscounted),
    ("R1", frame_in_quarantine_and_in_a_file),
    ("R6", quarantined_frame_in_another_state),
    ("R6", counts_that_do_not_add_up),
    ("R6", bindings_without_a_live_vm),
    ("R7", bracket_left_open),
    ("R7", sequence_behind),
    ("R7", sequence_ahead),
    ("R8", window_with_memory_of_a_free_frame),
    ("R8", window_with_memory_of_another_files_frame),
    ("R8", ordinary_pool_with_memory_of_a_free_frame),
    ("R8", ordinary_pool_with_memory_of_a_private_frame),
]


@pytest.mark.parametrize(("rule", "damage"), DAMAGE, ids=lambda value: getattr(value, "__name__", value))
def test_damage_is_found_under_its_rule(world: World, rule: str, damage: Callable[[World], None]) -> None:
    damage(world)
    found = world.findings()
    assert rule in [broken for broken, _ in found], found
    assert all(text for _, text in found)


def test_a_finding_names_the_file(world: World) -> None:
    sequence_ahead(world)
    (finding,) = world.findings()
    assert finding == ("R7", f"inode {world.file.ino}: sequence number 1 here, 2 in the VM")


def test_a_readable_handle_of_a_sealed_file_is_no_damage_where_the_mount_allows_it() -> None:
    store = CoreStore(open_rw=True)
    store.open(store.guest_file("file", 4), RDWR)
    assert store.audit() == []


def test_a_frame_on_its_way_out_may_still_hold_memory(world: World) -> None:
    """Between unmap and scrub: CLOSING, in no file, and its bytes not yet gone."""
    world.store.gmem.invalidate_begin(world.file, 0, 16, strategies.PUNCH)
    scrubs = world.store.gmem.take(world.file, None)
    assert scrubs is not None
    assert [rule for rule, _ in world.store.audit()] == ["R7"]
    world.store.perform(scrubs)
    world.store.gmem.invalidate_end(world.file)
    assert world.store.audit() == []


def test_thousands_of_pieces_are_compared_each_with_its_own() -> None:
    """Conversions leave a slot in pieces; the VM maps every second one in another frame than the store."""
    pieces = 5000
    store = CoreStore(pages=2 * pieces)
    file = store.guest_file("file", 2 * pieces)
    guest = store.pair(file)
    store.fallocate(file, 0, 0, 2 * pieces * P)
    for piece in range(pieces):
        store.gmem.bind(file, 1, 0x1000 + 2 * piece, 2 * piece, 1)
    mappings = [(int(b.gfn), int(file.pages.lookup(b.start) or 0), 1) for b in guest.bindings]
    slots = [(1, int(b.gfn), int(b.start), 1) for b in guest.bindings]
    assert store.audit({file.ino: PeerReport(slots, mappings)}) == []
    wrong = [(gfn, pfn + gfn // 2 % 2, 1) for gfn, pfn, _ in mappings]
    assert len(store.audit({file.ino: PeerReport(slots, wrong)})) == pieces // 2
    between = [(int(b.gfn) + 1, 0, 1) for b in guest.bindings]
    assert len(store.audit({file.ino: PeerReport(slots, between)})) == pieces


@pytest.mark.parametrize(
    ("slots", "changing", "pieces"),
    [
        ([(1, 100, 0, 4), (1, 104, 4, 4)], [], {(1, 100, 0, 8)}),  # they meet
        ([(1, 104, 4, 4), (1, 100, 0, 4)], [], {(1, 100, 0, 8)}),  # told in another order
        ([(1, 100, 0, 4), (1, 105, 5, 4)], [], {(1, 100, 0, 4), (1, 100, 5, 9)}),  # a hole between
        ([(1, 100, 0, 8), (1, 102, 2, 3), (1, 106, 6, 4)], [], {(1, 100, 0, 10)}),  # told again: within, and beyond
        ([(1, 100, 0, 4), (2, 104, 4, 4)], [], {(1, 100, 0, 4), (2, 100, 4, 8)}),  # two slots
        ([(1, 100, 0, 4), (1, 204, 4, 4)], [], {(1, 100, 0, 4), (1, 200, 4, 8)}),  # at other GFNs
        ([(1, 100, 0, 4), (1, 150, 50, 1), (1, 104, 4, 4)], [], {(1, 100, 0, 8), (1, 100, 50, 51)}),
        ([(1, 100, 0, 8)], [(0, 0)], {(1, 100, 0, 8)}),  # nothing changes
        ([(1, 100, 0, 8)], [(3, 3)], {(1, 100, 0, 8)}),
        ([(1, 100, 0, 8)], [(6, 2)], {(1, 100, 0, 8)}),
        ([(1, 100, 0, 8)], [(2, 5)], {(1, 100, 0, 2), (1, 100, 5, 8)}),
        ([(1, 100, 0, 8)], [(0, 5), (6, 99)], {(1, 100, 5, 6)}),
        ([(1, 100, 0, 8)], [(0, 8)], set()),
        ([(1, 100, 0, 8), (2, 300, 20, 4)], [(8, 20)], {(1, 100, 0, 8), (2, 280, 20, 24)}),  # beside them
    ],
)
def test_slots_are_compared_as_pieces(
    slots: list[tuple[int, int, int, int]],
    changing: list[tuple[int, int]],
    pieces: set[tuple[int, int, int, int]],
) -> None:
    assert _pieces(slots, changing) == pieces


def test_one_report_may_be_missing(world: World) -> None:
    """A VM that died meanwhile breaks no rule."""
    assert world.store.audit({Ino(999): world.report}) == []
