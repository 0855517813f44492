"""Large leaves of shared slots: the memory behind them is contiguous, so alignment and slot decide."""

import os
from pathlib import Path

import pytest

from kvmsim.kvm.alias import SHARED
from kvmsim.kvm.region import MemoryRegion, SlotFlag
from kvmsim.kvm.slots.memslots import Memslot
from kvmsim.memory.memory import FileMemory, SparseMemory
from memfsd.uapi.units import Gfn, Pgoff
from tests.support.both_sides import LocalVm, page
from tests.support.slots import NO_BACKING

MIB2 = 512
GIB = 1 << 18


def leaves(local: LocalVm) -> tuple[int, int, int]:
    return local.vm.mmu.epts[SHARED].leaf_counts


def test_anonymous_memory_is_mapped_as_large_as_the_slot_allows(vm: LocalVm) -> None:
    vm.shared_slot(0, page(100), page(2 * GIB))
    for number in (100, MIB2, GIB - 1, GIB, 2 * GIB):
        assert vm.write(page(number), b"%9d" % number, shared=True) is None
    assert leaves(vm)[1:] == (0, 0), "gpa and memory are not aligned alike"


def test_an_aligned_slot_has_1_gib_leaves_and_smaller_ones_at_its_end(vm: LocalVm) -> None:
    vm.shared_slot(0, page(GIB), page(GIB + MIB2 + 5))
    assert vm.write(page(GIB + 77), b"first", shared=True) is None
    assert leaves(vm) == (0, 0, 1)
    assert vm.write(page(2 * GIB + 77), b"second", shared=True) is None
    assert leaves(vm) == (0, 1, 1)
    assert vm.write(page(2 * GIB + MIB2 + 4), b"third", shared=True) is None
    assert leaves(vm) == (1, 1, 1)
    read = [vm.read(page(n), 6, shared=True) for n in (GIB + 77, 2 * GIB + 77, 2 * GIB + MIB2 + 4)]
    assert read == [b"first\0", b"second", b"third\0"]


def test_bulk_accesses_do_not_fill_with_4_kib_what_could_be_larger(vm: LocalVm) -> None:
    memory = SparseMemory(page(4 * MIB2))
    vm.kvm.slots.set_shared_slot(
        MemoryRegion.shared(0, page(MIB2 - 3), page(2 * MIB2), offset=page(MIB2 - 3)), memory, owned=True
    )
    assert vm.touch(page(MIB2 - 3), page(2 * MIB2), shared=True) is None
    assert leaves(vm) == (3 + MIB2 - 3, 1, 0)


@pytest.mark.parametrize(
    ("backing", "gfn", "pgoff", "flags", "order"),
    [
        (18, 0, 0, 0, 18),
        (18, 0, GIB, 0, 18),
        (18, 0, MIB2, 0, 9),
        (18, MIB2, 0, 0, 9),
        (9, 0, 0, 0, 9),
        (9, 5, 5, 0, 9),
        (18, 0, 1, 0, 0),
        (0, 0, 0, 0, 0),
        (18, 0, 0, SlotFlag.LOG_DIRTY_PAGES, 0),
        (18, 0, 0, SlotFlag.READONLY, 18),
    ],
)
def test_the_largest_leaf_of_a_slot(backing: int, gfn: int, pgoff: int, flags: int, order: int) -> None:
    slot = Memslot(0, SHARED, Gfn(gfn), GIB, SlotFlag(flags), NO_BACKING, Pgoff(pgoff), max_order=backing)
    assert slot.max_order == order


def test_a_dirty_log_wants_4_kib_and_its_end_large_leaves_again(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(MIB2))
    assert vm.write(0, b"x", shared=True) is None
    assert leaves(vm) == (0, 1, 0)
    vm.kvm.slots.set_shared_slot(
        MemoryRegion.shared(0, 0, page(MIB2), flags=SlotFlag.LOG_DIRTY_PAGES), None, owned=False
    )
    assert vm.write(page(1), b"y", shared=True) is None
    assert leaves(vm) == (1, 0, 0)
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(0, 0, page(MIB2)), None, owned=False)
    assert vm.read(0, 1, shared=True) == b"x"
    assert leaves(vm) == (0, 1, 0)


def test_a_readonly_slot_has_large_leaves_that_can_not_be_written(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(MIB2), SlotFlag.READONLY)
    assert vm.read(page(5), 1, shared=True) == b"\0"
    assert leaves(vm) == (0, 1, 0)
    assert vm.write(page(6), b"x", shared=True) is not None
    assert vm.touch(page(6), page(2), shared=True) is not None


def test_a_file_is_mapped_in_4_kib_as_it_lies_in_the_page_cache(vm: LocalVm, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(page(MIB2)))
    memory = FileMemory(os.open(path, os.O_RDWR))
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(0, 0, page(MIB2)), memory, owned=True)
    assert vm.touch(0, page(MIB2), shared=True) is None
    assert leaves(vm) == (MIB2, 0, 0)


def test_a_move_of_a_slot_decides_anew(vm: LocalVm) -> None:
    vm.shared_slot(0, page(1), page(MIB2))
    assert vm.write(page(1), b"moved", shared=True) is None
    assert leaves(vm) == (1, 0, 0)
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(0, page(MIB2), page(MIB2)), None, owned=False)
    assert vm.read(page(MIB2), 5, shared=True) == b"moved"
    assert leaves(vm) == (0, 1, 0)


def test_a_deleted_slot_takes_its_large_leaves_with_it(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(GIB))
    assert vm.write(page(3), b"x", shared=True) is None
    vm.delete(0, private=False)
    assert leaves(vm) == (0, 0, 0)
    assert vm.vcpu.tlb.lookup(3) is None
    assert vm.vm.mmu.epts[SHARED].table_count == 1
