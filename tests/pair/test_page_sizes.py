"""Leaves of 2 MiB and 1 GiB with a real store: when they are made, split by a hole, and merged back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.mmu.tlb import tlb_key
from memfsd.uapi.units import Gfn, Pgoff
from tests.support.both_sides import LocalStore, LocalVm, errno_of, opened_store, page
from tests.support.threads import Beside, until

MIB2 = 512
GIB = 1 << 18


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    """3 GiB of frames: it costs what is touched."""
    with opened_store(tmp_path, 3 * GIB) as opened:
        yield opened


def vm_with(store: LocalStore, page_size: str, pages: int, gfn: int = 0, pgoff: int = 0) -> LocalVm:
    store.create("file", pages, page_size=page_size)
    local = store.vm()
    local.private_slot(0, page(gfn), page(pages - pgoff), "file", page(pgoff))
    return local


def leaves(local: LocalVm, *, private: bool = True) -> tuple[int, int, int]:
    return local.vm.mmu.epts[private].leaf_counts


def requests(local: LocalVm) -> int:
    """Runs asked for, and found in the page map."""
    return local.link().request_count + local.link().found_count


def test_one_fault_in_a_file_of_2_mib_pages_maps_2_mib(store: LocalStore) -> None:
    local = vm_with(store, "2M", 4 * MIB2)
    before = requests(local)
    assert local.write(page(700), b"here") is None
    assert leaves(local) == (0, 1, 0)
    assert requests(local) == before + 1
    assert local.read(page(700), 4) == b"here"
    assert local.read(page(512), 4) == local.read(page(1023), 4) == bytes(4)
    assert (leaves(local), requests(local)) == ((0, 1, 0), before + 1)


def test_one_fault_in_a_file_of_1_gib_pages_maps_1_gib(store: LocalStore) -> None:
    local = vm_with(store, "1G", 2 * GIB)
    before = requests(local)
    assert local.write(page(GIB + 12345), b"here") is None
    assert (leaves(local), requests(local)) == ((0, 0, 1), before + 1)
    assert local.read(page(GIB + 12345), 4) == b"here"
    assert local.vm.mmu.epts[PRIVATE].page_count == GIB


def test_a_file_of_4_kib_pages_is_mapped_in_4_kib_even_if_its_frames_lie_together(store: LocalStore) -> None:
    local = vm_with(store, "4K", 2 * MIB2)
    store.allocate("file", 0, 2 * MIB2)
    assert [(int(a), int(b), c) for a, b, c in store.file("file").pages.extents(0, 2 * MIB2)] == [(0, 0, 2 * MIB2)]
    assert local.touch(0, page(2 * MIB2)) is None
    assert leaves(local) == (2 * MIB2, 0, 0)


def test_frames_that_are_there_already_come_in_several_leaves_at_once(store: LocalStore) -> None:
    local = vm_with(store, "2M", 16 * MIB2)
    store.allocate("file", 0, 16 * MIB2)
    before = requests(local)
    assert local.write(page(5), b"x") is None
    assert (leaves(local), requests(local)) == ((0, 8, 0), before + 1)
    assert local.vm.mmu.epts[PRIVATE].touched(Gfn(0), Gfn(16 * MIB2)) == [(0, MIB2)], "one of them is demanded"


@pytest.mark.parametrize(("gfn", "pgoff"), [(1, 0), (0, 1), (100, 0), (MIB2, 3)])
def test_a_slot_that_is_not_aligned_as_its_file_has_4_kib_leaves(store: LocalStore, gfn: int, pgoff: int) -> None:
    local = vm_with(store, "2M", 4 * MIB2, gfn, pgoff)
    assert local.touch(page(gfn), page(4 * MIB2 - pgoff)) is None
    assert leaves(local) == (4 * MIB2 - pgoff, 0, 0)


def test_only_blocks_that_lie_wholly_in_the_slot_are_large(store: LocalStore) -> None:
    local = vm_with(store, "2M", 4 * MIB2, gfn=MIB2 + 100, pgoff=100)
    assert local.touch(page(MIB2 + 100), page(4 * MIB2 - 100)) is None
    assert leaves(local) == (MIB2 - 100, 3, 0)


def test_a_1_gib_file_is_mapped_in_2_mib_where_the_slot_has_no_room_for_1_gib(store: LocalStore) -> None:
    local = vm_with(store, "1G", 2 * GIB, gfn=MIB2, pgoff=MIB2)
    assert local.write(page(MIB2), b"x") is None
    small, middle, large = leaves(local)
    assert small == large == 0 and middle >= 1
    assert local.write(page(GIB), b"x") is None
    assert leaves(local)[2] == 1


def test_a_hole_of_4_kib_splits_one_leaf_and_a_fault_after_the_fill_merges_it_again(store: LocalStore) -> None:
    local = vm_with(store, "2M", 2 * MIB2)
    ept = local.vm.mmu.epts[PRIVATE]
    for number in (0, 99, 100, 101, 511, 512):
        assert local.write(page(number), b"%4d" % number) is None
    assert leaves(local) == (0, 2, 0)

    local.vmm.memory.punch_slot(0, page(100), page(1))
    assert leaves(local) == (511, 1, 0)
    assert (ept.split_count, ept.zapped_leaves) == (1, [1, 0, 0])
    assert [local.read(page(n), 4) for n in (0, 99, 101, 511, 512)] == [b"%4d" % n for n in (0, 99, 101, 511, 512)]

    local.vmm.memory.fill_slot(0, Gfn(100), Gfn(101))
    before = requests(local)
    assert local.read(page(100), 4) == bytes(4), "what was unmapped is gone"
    assert (leaves(local), requests(local), ept.merge_count) == ((0, 2, 0), before + 1, 1)
    assert [local.read(page(n), 4) for n in (0, 99, 101, 511, 512)] == [b"%4d" % n for n in (0, 99, 101, 511, 512)]


def test_a_hole_of_4_kib_in_1_gib_leaves_2_mib_leaves_around(store: LocalStore) -> None:
    local = vm_with(store, "1G", GIB)
    assert local.write(page(7), b"seven") is None
    local.vmm.memory.punch_slot(0, page(GIB - 1), page(1))
    assert leaves(local) == (511, 511, 0)
    assert local.read(page(7), 5) == b"seven"
    local.vmm.memory.fill_slot(0, Gfn(GIB - 1), Gfn(GIB))
    assert local.read(page(GIB - 1), 1) == b"\0"
    assert (leaves(local), local.vm.mmu.epts[PRIVATE].table_count) == ((0, 0, 1), 2)
    assert local.read(page(7), 5) == b"seven"


def test_while_a_hole_is_open_the_pages_around_it_are_4_kib(store: LocalStore) -> None:
    local = vm_with(store, "2M", 2 * MIB2)
    local.vmm.memory.punch_slot(0, page(100), page(1))
    assert local.touch(0, page(100)) is None
    assert local.touch(page(101), page(2 * MIB2 - 101)) is None
    assert leaves(local) == (511, 1, 0)


def test_an_allocation_unit_smaller_than_the_page_can_not_be_punched_out_of_the_file(store: LocalStore) -> None:
    local = vm_with(store, "2M", 2 * MIB2)
    assert local.write(0, b"kept") is None
    assert errno_of(store.punch, "file", 1, 1) == "EINVAL"
    assert leaves(local) == (0, 1, 0)
    store.punch("file", MIB2, MIB2)
    assert local.read(0, 4) == b"kept"


def test_a_punch_of_the_file_takes_the_whole_leaf_and_all_its_translations(store: LocalStore) -> None:
    local = vm_with(store, "2M", 2 * MIB2)
    for number in (3, 511, 512):
        assert local.write(page(number), b"x") is None
    store.punch("file", 0, MIB2)
    assert leaves(local) == (0, 1, 0)
    assert local.vm.mmu.epts[PRIVATE].zapped_leaves == [0, 1, 0]
    assert [local.vcpu.tlb.lookup(tlb_key(n, False)) is None for n in (3, 511, 512)] == [True, True, False]
    assert (local.vcpu.tlb.flush_count, local.vcpu.tlb.ranged_flush_count) == (0, 1)
    assert local.read(page(3), 1) == b"\0"


def test_a_larger_punch_flushes_everything(store: LocalStore) -> None:
    local = vm_with(store, "2M", 4 * MIB2)
    assert local.write(page(3 * MIB2), b"x") is None
    assert local.touch(0, page(2 * MIB2)) is None
    store.punch("file", 0, 2 * MIB2)
    assert (local.vcpu.tlb.flush_count, local.vcpu.tlb.ranged_flush_count, len(local.vcpu.tlb)) == (1, 0, 0)


def test_a_split_alone_keeps_the_translations_of_the_pages_around(store: LocalStore) -> None:
    local = vm_with(store, "2M", MIB2)
    for number in (3, 4, 5):
        assert local.write(page(number), b"x") is None
    local.vmm.memory.punch_slot(0, page(4), page(1))
    assert [local.vcpu.tlb.lookup(tlb_key(n, False)) is None for n in (3, 4, 5)] == [False, True, False]


def test_a_bracket_in_a_part_of_a_block_leaves_4_kib_for_the_rest_of_it(store: LocalStore) -> None:
    """R7 for the whole leaf: nothing in an open bracket is mapped, and no fault beside it waits for its end."""
    local = vm_with(store, "2M", MIB2)
    with local.vm.mmu.lock:
        local.vm.mmu.invalidate_begin(Gfn(100), Gfn(200))
    assert local.write(page(5), b"below") is None
    assert local.write(page(300), b"above") is None
    ept = local.vm.mmu.epts[PRIVATE]
    assert (
        ept.leaf_counts[1] == 0
        and ept.first_missing(Gfn(100), Gfn(200)) == 100
        and not list(ept.runs(Gfn(100), Gfn(200)))
    )
    inside = Beside(lambda: local.write(page(150), b"inside"))
    until(lambda: local.vm.mmu.retry_count > 0, "the fault meets the bracket")
    assert inside.running
    with local.vm.mmu.lock:
        local.vm.mmu.invalidate_end()
    assert inside.result() is None
    assert leaves(local) == (0, 1, 0), "and then all of it is one leaf"
    assert [local.read(page(n), 5) for n in (5, 150, 300)] == [b"below", b"insid", b"above"]


def test_an_explicit_request_maps_2_gib_in_two_requests(store: LocalStore) -> None:
    local = vm_with(store, "1G", 2 * GIB)
    before = requests(local)
    assert local.guest.map(local.vcpu, 0, page(2 * GIB), private=True) is None
    assert (leaves(local), requests(local)) == ((0, 0, 2), before + 2)
    assert local.vm.mmu.epts[PRIVATE].table_count == 2


def test_without_a_table_to_split_into_the_leaf_goes_and_its_data_stays(store: LocalStore) -> None:
    local = vm_with(store, "2M", MIB2)
    for number in (99, 100, 101):
        assert local.write(page(number), b"%4d" % number) is None
    ept = local.vm.mmu.epts[PRIVATE]
    ept._max_tables = ept._next_table
    local.vmm.memory.punch_slot(0, page(100), page(1))
    assert leaves(local) == (0, 0, 0)
    assert len(local.vcpu.tlb) == 0
    ept._max_tables += 10
    assert [local.read(page(n), 4) for n in (99, 101)] == [b"  99", b" 101"]
    local.vmm.memory.fill_slot(0, Gfn(100), Gfn(101))
    assert local.read(page(100), 4) == bytes(4)


def test_a_pool_without_a_large_frame_left_says_so(store: LocalStore) -> None:
    local = vm_with(store, "1G", 4 * GIB)
    for number in range(3):
        assert local.write(page(number * GIB), b"x") is None
    stopped = local.write(page(3 * GIB), b"x")
    assert stopped is not None and "ENOSPC" in str(stopped)
    assert leaves(local) == (0, 0, 3)


def test_a_leaf_whose_first_pages_are_just_being_bound_is_4_kib_elsewhere(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fill_slot shows the hole before the store has bound it: a fault beside it then is no error."""
    local = vm_with(store, "2M", MIB2)
    local.vmm.memory.punch_slot(0, 0, page(10))
    real, seen = local.link().bind, []

    def bind(slot: int, gfn: int, pgoff: int, pages: int) -> None:
        seen.append(local.write(page(300), b"beside"))
        real(slot, Gfn(gfn), Pgoff(pgoff), pages)

    monkeypatch.setattr(local.link(), "bind", bind)
    local.vmm.memory.fill_slot(0, Gfn(0), Gfn(10))
    assert seen == [None]
    assert leaves(local) == (MIB2 - 300, 0, 0)
    assert local.read(page(5), 1) == bytes(1)
    assert (leaves(local), local.read(page(300), 6)) == ((0, 1, 0), b"beside")


def test_a_file_that_got_smaller_pages_after_it_was_paired_has_4_kib_leaves(tmp_path: Path) -> None:
    with opened_store(tmp_path, 4 * MIB2, resize_any=True) as store:
        local = vm_with(store, "2M", MIB2)
        local.delete(0, private=True)
        store.truncate("file", 0)
        store.set_page_size("file", "4K")
        store.truncate("file", MIB2)
        store.allocate("file", 0, MIB2)
        local.private_slot(0, 0, page(MIB2), "file")
        assert local.write(page(5), b"x") is None
        assert leaves(local)[1:] == (0, 0)
