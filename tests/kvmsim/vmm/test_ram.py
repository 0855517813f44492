"""User space's map of guest memory, by itself and in step with KVM."""

import ast
import re
from pathlib import Path

import pytest

from kvmsim.kvm.exits import Exit
from kvmsim.kvm.region import MemoryRegion, SlotFlag
from kvmsim.vmm.ram import Piece, RamMap, Region, Regions
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import Gfn, Pgoff
from tests.support.both_sides import LocalStore, LocalVm, errno_of, page
from tests.support.ram import in_step

USER_SPACE = sorted((Path(__file__).parents[3] / "kvmsim/vmm").rglob("*.py"))


def region(id_: int, gfn: int, page_count: int) -> Region[str]:
    return Region(id_, Gfn(gfn), page_count, 0, f"file {id_}", Pgoff(100))


def shown(regions: Regions[str], start: int, end: int) -> list[tuple[int, int, int]]:
    return [(piece.region.id, piece.start, piece.end) for piece in regions.visible(Gfn(start), Gfn(end))]


def agree(vm: LocalVm) -> bool:
    return in_step(vm.vmm.memory.ram, vm.vm)


def converts(vm: LocalVm, first: int, pages: int, *, private: bool) -> bool:
    """The guest asks for it, and user space does it."""
    done = vm.vmm.run(vm.vcpu, lambda: vm.guest.map(vm.vcpu, page(first), page(pages), private=private))
    return not isinstance(done, Exit)


# -- the map


def test_a_region_shows_what_is_not_a_hole_of_it() -> None:
    regions: Regions[str] = Regions()
    regions.add(region(0, 10, 10))
    regions.punch(0, Gfn(12), Gfn(15))
    assert shown(regions, 0, 100) == [(0, 10, 12), (0, 15, 20)]
    assert [(p.region.id, p.start, p.end) for p in regions.holes(Gfn(0), Gfn(14))] == [(0, 12, 14)]
    assert regions.missing(Gfn(8), Gfn(16)) == [(8, 10), (12, 15)]
    regions.fill(0, Gfn(12), Gfn(15))
    assert (shown(regions, 0, 100), regions.holes(Gfn(0), Gfn(100))) == ([(0, 10, 20)], [])


def test_a_region_in_a_hole_of_another_is_not_taken_for_it() -> None:
    regions: Regions[str] = Regions()
    big, small = region(0, 10, 10), region(1, 12, 3)
    regions.add(big)
    regions.punch(0, Gfn(12), Gfn(15))
    regions.add(small)
    assert regions.segments(big) == [(10, 12), (15, 20)]
    assert regions.segments(small) == [(12, 15)]
    assert regions.around(Gfn(13)) == Piece(small, Gfn(12), Gfn(15))
    assert regions.covers(Gfn(12), Gfn(15))
    assert not regions.covers(Gfn(11), Gfn(15)), "two regions do, and KVM asks for one"
    assert regions.remove(0) is big
    assert shown(regions, 0, 100) == [(1, 12, 15)]


def test_a_hole_is_the_regions_that_showed_it_last() -> None:
    """Also when the one around it has gone out and come back since."""
    regions: Regions[str] = Regions()
    big, small = region(0, 10, 10), region(1, 12, 3)
    regions.add(big)
    regions.punch(0, Gfn(11), Gfn(15))
    regions.add(small)
    regions.punch(1, Gfn(13), Gfn(14))
    segments = regions.segments(big)
    regions.remove(0)
    regions.add(big, segments)
    holes = [(hole.region.id, hole.start, hole.end) for hole in regions.holes(Gfn(0), Gfn(100))]
    assert holes == [(0, 11, 12), (1, 13, 14)]
    regions.remove(1)
    assert regions.holes(Gfn(0), Gfn(100)) == [Piece(big, Gfn(11), Gfn(15))]


def test_a_region_comes_back_with_its_holes() -> None:
    regions: Regions[str] = Regions()
    was = region(0, 10, 10)
    regions.add(was, [(Gfn(10), Gfn(12)), (Gfn(15), Gfn(20))])
    assert regions.segments(was) == [(10, 12), (15, 20)]
    assert was.pgoff_of(Gfn(15)) == 105


def test_what_is_memory_in_one_alias_is_known() -> None:
    ram = RamMap()
    assert ram.is_unknown(Gfn(0), Gfn(100))
    ram.private.add(Region(0, 0, 4, 0, None, 0))  # type: ignore[arg-type]
    ram.shared.add(Region(0, 4, 4, 0, None, 0))  # type: ignore[arg-type]
    assert ram.is_known(Gfn(0), Gfn(8))
    assert not ram.is_known(Gfn(0), Gfn(9))
    assert not ram.is_unknown(Gfn(7), Gfn(9))


# -- in step with KVM


def test_what_kvm_refuses_is_not_recorded(store: LocalStore) -> None:
    store.create("file", 16)
    vm = store.vm()
    memory = vm.vmm.memory
    vm.private_slot(0, 0, page(16), "file")
    vm.shared_slot(0, page(64), page(4))
    refusals = (
        lambda: vm.private_slot(0, page(16), page(16), "file"),
        lambda: vm.shared_slot(1, page(66), page(4)),
        lambda: memory.punch_slot(0, page(14), page(4)),
        lambda: memory.punch_slot(7, 0, page(1)),
        lambda: memory.fill_slot(0, Gfn(0), Gfn(4)),
        lambda: memory.hide(0, Gfn(14), Gfn(18)),
        lambda: memory.detach(7),
        lambda: vm.delete(7, private=True),
        lambda: vm.delete(7, private=False),
    )
    for refused in refusals:
        with pytest.raises(Refused):
            refused()
        assert agree(vm)
    assert (len(memory.ram.private), len(memory.ram.shared)) == (1, 1)


@pytest.mark.parametrize("call", ["hide", "detach", "fill_slot"])
def test_a_step_on_a_slot_that_is_gone_is_einval(store: LocalStore, call: str) -> None:
    """Whoever deleted it meanwhile: it is a refusal that a conversion takes back, and no assertion."""
    vm = store.vm()
    arguments = (3,) if call == "detach" else (3, 0, 4)
    assert errno_of(getattr(vm.vmm.memory, call), *arguments) == "EINVAL"


def test_slots_are_moved_flagged_and_deleted_by_set_too(store: LocalStore) -> None:
    store.create("file", 4)
    vm = store.vm()
    memory = vm.vmm.memory
    vm.private_slot(3, 0, page(4), "file")
    vm.shared_slot(5, page(64), page(4))
    for gpa, flags in ((page(80), 0), (page(80), SlotFlag.LOG_DIRTY_PAGES), (page(64), 0)):
        memory.set_shared_slot(MemoryRegion.shared(5, gpa, page(4), flags=flags), None, owned=False)
        assert agree(vm)
    memory.set_shared_slot(MemoryRegion.shared(5, 0, 0), None, owned=False)
    memory.set_private_slot(MemoryRegion.private(3, 0, 0), "")
    assert agree(vm)
    assert (len(memory.ram.private), len(memory.ram.shared)) == (0, 0)


@pytest.mark.parametrize("policy", ["recreate", "punch", "overlay"])
def test_the_map_is_in_step_after_each_conversion(store: LocalStore, policy: str) -> None:
    store.create("file", 16)
    vm = store.vm()
    vm.private_slot(0, 0, page(16), "file")
    vm.vmm.set_policy(policy)
    for first, pages, private in ((2, 4, False), (3, 1, True), (8, 8, False), (0, 16, True), (5, 6, False)):
        assert converts(vm, first, pages, private=private)
        assert agree(vm)


def test_a_log_that_user_space_keeps_moves_and_ends_with_its_slot(store: LocalStore) -> None:
    log, vm = SlotFlag.LOG_DIRTY_PAGES, store.vm()
    memory = vm.vmm.memory
    vm.shared_slot(5, page(8), page(8), log)
    memory.keep_dirty(5, [(Gfn(4), Gfn(9)), (Gfn(12), Gfn(14))])
    memory.set_shared_slot(MemoryRegion.shared(5, page(32), page(8), flags=log), None, owned=False)
    assert vm.write(page(37), b"x", shared=True) is None
    assert memory.get_dirty_log(5) == [(32, 33), (36, 38)]
    assert memory.get_dirty_log(5) == []
    memory.keep_dirty(5, [(Gfn(32), Gfn(33))])
    memory.set_shared_slot(MemoryRegion.shared(5, page(32), page(8)), None, owned=False)
    memory.set_shared_slot(MemoryRegion.shared(5, page(32), page(8), flags=log), None, owned=False)
    assert memory.get_dirty_log(5) == [], "logging began again"


# -- the border


@pytest.mark.parametrize("path", USER_SPACE, ids=lambda path: path.name)
def test_user_space_looks_at_no_slots_and_no_page_tables_of_kvm(path: Path) -> None:
    """Neither by an import, which a contract forbids, nor by what an object leads to."""
    source = path.read_text()
    assert re.findall(r"\.vm\.slots|\.mmu\b|\.physmap\b|\.epts\b|\bMemslots?\b", source) == []
    names = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    assert not names & {"segments_in", "gmem", "backing_of", "links"}


def test_there_is_user_space_to_look_at() -> None:
    assert len(USER_SPACE) > 10
