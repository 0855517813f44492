"""Frames without a message: what a fault finds in the page map, and what it has to ask for."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.exits import MemoryErrorExit
from memfsd.uapi.errors import EHWPOISON
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import KVM_OPERATIONS, Kind
from memfsd.uapi.units import ORDER_2M, Gfn, Pgoff
from tests.support.both_sides import LocalStore, LocalVm, opened_store, page
from tests.support.threads import Beside, Gate

PAGES = 16
MIB2 = 1 << ORDER_2M


@pytest.fixture
def store(tmp_path: Path, encrypted: bool) -> Iterator[LocalStore]:
    with opened_store(tmp_path, 4 * MIB2, encrypted=encrypted, nodes=2, swap_pages=64, split=True) as opened:
        yield opened


def allocated(store: LocalStore, pages: int = PAGES, page_size: str = "4K", *, together: bool = False) -> LocalVm:
    """A file whose every page was allocated before its VM came, in frames that do not lie together."""
    store.create("file", pages, page_size=page_size)
    if together or page_size != "4K":
        store.allocate("file", 0, pages)
    else:
        for number in [*range(0, pages, 2), *range(1, pages, 2)]:
            store.allocate("file", number, 1)
    local = store.vm()
    local.private_slot(0, 0, page(pages), "file")
    return local


def asked_and_found(local: LocalVm) -> tuple[int, int]:
    return local.link().request_count, local.link().found_count


def frame(local: LocalVm, gfn: int) -> int:
    ((_, pfn, _),) = local.vm.mmu.epts[PRIVATE].runs(Gfn(gfn), Gfn(gfn + 1))
    return pfn - local.link().base


def test_pages_that_the_store_has_take_no_message(store: LocalStore) -> None:
    local = allocated(store)
    asked, _ = asked_and_found(local)
    for number in range(PAGES):
        assert local.write(page(number), bytes([number + 1])) is None
        assert frame(local, number) == store.file("file").pages.lookup(number)
    assert asked_and_found(local) == (asked, PAGES)
    assert [local.read(page(number), 1) for number in range(PAGES)] == [bytes([n + 1]) for n in range(PAGES)]
    assert store.guest("file").grant_count == 0


def test_a_hole_is_asked_for_and_found_the_next_time(store: LocalStore) -> None:
    store.create("file", PAGES)
    local = store.vm()
    local.private_slot(0, 0, page(PAGES), "file")
    asked, _ = asked_and_found(local)
    assert local.write(page(3), b"x") is None
    assert asked_and_found(local) == (asked + 1, 0)
    local.vmm.memory.punch_slot(0, page(3), page(1))
    local.vmm.memory.fill_slot(0, Gfn(3), Gfn(4))
    asked, _ = asked_and_found(local)
    assert local.read(page(3), 1) == b"\0", "what was unmapped is destroyed; its frame is the file's still"
    assert asked_and_found(local) == (asked, 1)


@pytest.mark.parametrize("side", ["store", "kvm"])
def test_either_side_may_lack_it(tmp_path: Path, side: str, encrypted: bool) -> None:
    with opened_store(tmp_path, 64, encrypted=encrypted) as store:
        if side == "store":
            store.store.pairings.operations -= {Kind.PAGE_MAP}
        store.create("file", PAGES)
        store.allocate("file", 0, PAGES)
        local = store.vm(operations=KVM_OPERATIONS - {Kind.PAGE_MAP} if side == "kvm" else KVM_OPERATIONS)
        local.private_slot(0, 0, page(PAGES), "file")
        assert (local.link().page_map, store.guest("file").page_map) == (None, None)
        asked, _ = asked_and_found(local)
        assert local.touch(0, page(PAGES)) is None
        assert asked_and_found(local) == (asked + 1, 0)


def test_a_run_that_lies_together_is_mapped_at_once(store: LocalStore) -> None:
    local = allocated(store, together=True)
    assert local.write(page(2), b"x") is None
    assert local.vm.mmu.epts[PRIVATE].page_count == PAGES - 2
    assert asked_and_found(local)[1] == 1


def test_large_pages_are_found_whole(store: LocalStore) -> None:
    local = allocated(store, 2 * MIB2, page_size="2M")
    asked, _ = asked_and_found(local)
    assert local.write(page(MIB2 + 5), b"x") is None
    assert local.vm.mmu.epts[PRIVATE].leaf_counts == (0, 1, 0)
    assert asked_and_found(local) == (asked, 1)


def test_what_is_left_of_a_split_page_is_found_and_its_hole_is_not(store: LocalStore) -> None:
    local = allocated(store, MIB2, page_size="2M")
    store.punch("file", 7, 1)
    asked, _ = asked_and_found(local)
    assert local.write(page(8), b"x") is None
    assert local.vm.mmu.epts[PRIVATE].leaf_counts == (MIB2 - 8, 0, 0)
    assert local.write(page(7), b"y") is None
    assert asked_and_found(local)[0] > asked, "the hole took a message"
    assert store.guest("file").merge_count == 1


def test_a_page_that_moves_is_found_in_its_new_frame(store: LocalStore) -> None:
    local = allocated(store)
    assert local.write(page(4), b"kept") is None
    before = store.file("file").pages.lookup(5)
    assert store.move("file", range(PAGES), 1) == [1] * PAGES
    assert local.read(page(4), 4) == b"kept"
    asked, _ = asked_and_found(local)
    assert local.write(page(5), b"x") is None
    assert frame(local, 5) == store.file("file").pages.lookup(5) != before
    assert asked_and_found(local)[0] == asked


def test_a_page_that_was_swapped_out_comes_back_by_message(store: LocalStore) -> None:
    local = allocated(store)
    assert local.write(page(4), b"kept") is None
    assert store.store.swapper.page_out(store.file("file").ino, 0, PAGES, os.getuid(), os.getuid()).page_count == 1
    asked, _ = asked_and_found(local)
    assert local.read(page(4), 4) == b"kept"
    assert asked_and_found(local)[0] == asked + 1


def test_a_poisoned_page_is_no_hole_and_no_frame(store: LocalStore) -> None:
    local = allocated(store)
    store.store.failures.poison(store.file("file").ino, Pgoff(4))
    exit_ = local.read(page(4), 1)
    assert isinstance(exit_, MemoryErrorExit)
    assert exit_.errno == EHWPOISON
    assert local.read(page(5), 1) == b"\0"


def test_what_was_granted_ahead_and_is_found_stays_pending_until_it_is_touched(store: LocalStore) -> None:
    """As the pages of a run that a guest walks into: the window shows what was touched, and KVM keeps what it maps."""
    store.create("file", PAGES)
    local = store.vm()
    local.private_slot(0, 0, page(PAGES), "file")
    for number in (0, 1, 3):
        assert local.write(page(number), b"x") is None
    states = {number: store.service.pool.state(store.file("file").pages.lookup(number) or 0) for number in (4, 5, 6)}
    assert set(states.values()) == {FrameState.PENDING}
    local.vmm.memory.punch_slot(0, page(4), page(3))
    local.vmm.memory.fill_slot(0, Gfn(4), Gfn(7))
    asked, found = asked_and_found(local)
    assert local.write(page(5), b"here") is None
    assert asked_and_found(local) == (asked, found + 1)
    assert store.reclaim()
    pages = store.file("file").pages
    assert [pages.lookup(number) is None for number in (4, 5, 6)] == [True, False, True]
    assert local.read(page(5), 4) == b"here"


def test_while_an_invalidation_is_open_everything_is_asked_for(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = allocated(store)
    gate, windows = Gate(), store.windows
    real = windows.punch

    def held(window: object, runs: object) -> None:
        gate.wait()
        real(window, runs)  # type: ignore[arg-type]

    monkeypatch.setattr(windows, "punch", held)
    punch = Beside(lambda: store.punch("file", 1, 1))
    gate.reached()
    asked, _ = asked_and_found(local)
    assert local.write(page(9), b"x") is None
    assert asked_and_found(local) == (asked + 1, 0)
    gate.open()
    punch.result()
    assert local.write(page(11), b"x") is None
    assert asked_and_found(local) == (asked + 1, 1)


def test_a_vm_that_is_cut_off_finds_nothing_any_more(store: LocalStore) -> None:
    local = allocated(store)
    link = local.link()
    assert link.find(Pgoff(3), 1) is not None
    store.is_broken = True
    store.hang_up("file")
    assert link.page_map is not None
    assert link.page_map.lookup(3, 1, link.seq) is None, "by the store's word"
    assert link.find(Pgoff(3), 1) is None, "and by the link's"
    exit_ = local.read(page(5), 1)
    assert isinstance(exit_, MemoryErrorExit)
    assert exit_.errno == errno.EIO


def test_a_store_that_ends_leaves_nothing_to_find(store: LocalStore) -> None:
    local = allocated(store)
    store.unmount()
    exit_ = local.read(page(5), 1)
    assert isinstance(exit_, MemoryErrorExit)
    assert exit_.errno == errno.EIO


def test_a_map_goes_with_its_vm_and_a_new_one_comes_with_the_next_pairing(store: LocalStore) -> None:
    local = allocated(store)
    assert local.touch(0, page(PAGES)) is None
    local.delete(0, private=True)
    assert store.guest("file").page_map is None
    assert store.file("file").pages.published is None
    store.allocate("file", 4, 1)
    local.private_slot(0, 0, page(PAGES), "file")
    asked, _ = asked_and_found(local)
    assert local.read(page(4), 1) == b"\0"
    assert asked_and_found(local) == (asked, 1)
