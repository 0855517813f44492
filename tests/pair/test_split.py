"""Large pages that split, with both sides: a part goes, the rest stays, and what is complete again merges."""

import itertools
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.mmu.ept import Ept
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import ORDER_2M, Pfn
from tests.support.both_sides import LocalStore, LocalVm, errno_of, opened_store, page
from tests.support.threads import Beside

MIB2 = 512
GIB = 1 << 18


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LocalStore]:
    """3 GiB of frames: it costs what is touched."""
    with opened_store(tmp_path, 3 * GIB, split=True, encrypted=request.param) as opened:
        yield opened


def vm_with(store: LocalStore, page_size: str, pages: int) -> LocalVm:
    store.create("file", pages, page_size=page_size)
    local = store.vm()
    local.private_slot(0, 0, page(pages), "file", 0)
    return local


def leaves(local: LocalVm) -> tuple[int, int, int]:
    return local.vm.mmu.epts[PRIVATE].leaf_counts


def counts(store: LocalStore) -> tuple[int, int]:
    guest, pool = store.guest("file"), store.service.pool
    assert (guest.split_count, guest.merge_count) == (pool.split_count, pool.merge_count)
    return guest.split_count, guest.merge_count


def free(store: LocalStore) -> int:
    return store.service.pool.free_count


def test_a_part_is_given_back_and_all_around_it_stays_mapped(store: LocalStore) -> None:
    local = vm_with(store, "2M", 2 * MIB2)
    for number in (0, 99, 100, 101, 511, 512):
        assert local.write(page(number), b"%4d" % number) is None
    before, requests = free(store), local.link().request_count
    store.punch("file", 100, 1)
    assert free(store) == before + 1
    assert leaves(local) == (511, 1, 0)
    assert [local.read(page(n), 4) for n in (0, 99, 101, 511, 512)] == [b"%4d" % n for n in (0, 99, 101, 511, 512)]
    assert local.link().request_count == requests, "nothing outside the range was unmapped"
    assert counts(store) == (1, 0)
    assert store.findings() == []


def test_a_hole_that_is_touched_again_is_zero_and_the_page_is_whole_again(store: LocalStore) -> None:
    local = vm_with(store, "2M", MIB2)
    assert local.write(page(7), b"kept") is None and local.write(page(8), b"gone") is None
    store.punch("file", 8, 2)
    assert local.read(page(8), 4) == bytes(4)
    assert (leaves(local), counts(store)) == ((511, 0, 0), (1, 0))
    assert local.read(page(9), 4) == bytes(4)
    assert (leaves(local), counts(store)) == ((0, 1, 0), (1, 1)), "in the old place, since that is free"
    assert local.read(page(7), 4) == b"kept"
    assert store.service.pool.count(FrameState.PENDING) == 0
    assert store.findings() == []


def test_a_hole_is_filled_with_another_frame_when_its_place_is_taken(store: LocalStore) -> None:
    local = vm_with(store, "2M", MIB2)
    assert local.touch(0, page(1)) is None
    store.punch("file", 3, 1)
    store.create("other", 3 * GIB, sealed=False)
    place = Pfn((store.file("file").pages.lookup(0) or 0) + 3)
    pool = store.service.pool
    with store.service.lock:
        assert pool.alloc_run(1, FrameState.SHARED, after=place) == (place, 1)
        store.file("other").pages.map_run(0, place, 1)
    assert local.read(page(3), 1) == b"\0"
    assert (leaves(local), counts(store)) == ((512, 0, 0), (1, 0))
    assert store.findings() == []


def test_the_last_part_that_goes_leaves_a_hole_that_gets_a_large_frame(store: LocalStore) -> None:
    local = vm_with(store, "2M", MIB2)
    assert local.touch(0, page(1)) is None
    for start in range(0, MIB2, 64):
        store.punch("file", start, 64)
    assert (free(store), leaves(local)) == (3 * GIB, (0, 0, 0))
    assert counts(store) == (1, 0)
    assert local.write(page(5), b"new") is None
    assert leaves(local) == (0, 1, 0)
    assert store.findings() == []


def test_a_page_of_1_gib_is_split_no_further_than_needed(store: LocalStore) -> None:
    local = vm_with(store, "1G", GIB)
    assert local.write(page(7), b"seven") is None
    store.punch("file", GIB - 1, 1)
    assert (leaves(local), free(store)) == ((511, 511, 0), 2 * GIB + 1)
    store.punch("file", 2 * MIB2, MIB2)
    assert (leaves(local), free(store)) == ((511, 510, 0), 2 * GIB + 1 + MIB2)
    assert counts(store) == (1, 0)
    assert local.read(page(GIB - 1), 1) == b"\0"
    assert counts(store) == (1, 1), "2 MiB are whole again"
    assert leaves(local) == (512, 510, 0) or leaves(local) == (0, 511, 0)
    assert local.touch(page(2 * MIB2), page(MIB2)) is None
    assert (leaves(local), counts(store)) == ((0, 0, 1), (1, 2))
    assert local.read(page(7), 5) == b"seven"
    assert store.findings() == []


def test_fallocate_fills_the_holes_of_split_pages_and_they_merge(store: LocalStore) -> None:
    local = vm_with(store, "2M", 3 * MIB2)
    store.allocate("file", 0, 2 * MIB2)
    store.punch("file", 10, 5)
    store.punch("file", MIB2 + 10, 2)
    store.allocate("file", 0, 3 * MIB2)
    assert (free(store), counts(store)) == (3 * GIB - 3 * MIB2, (2, 2))
    assert local.touch(0, page(1)) is None
    assert leaves(local)[1] == 3
    assert errno_of(store.allocate, "file", 1, 1) == "EINVAL"
    assert store.findings() == []


def test_a_punch_over_several_pages_splits_those_at_its_ends(store: LocalStore) -> None:
    local = vm_with(store, "2M", 4 * MIB2)
    assert local.touch(0, page(4 * MIB2)) is None
    before = free(store)
    store.punch("file", 100, 3 * MIB2)
    assert (free(store), leaves(local), counts(store)) == (before + 3 * MIB2, (MIB2, 0, 0), (2, 0))
    assert store.findings() == []


def test_no_table_for_the_split_is_enomem_and_everything_is_as_before(store: LocalStore) -> None:
    local = vm_with(store, "2M", 2 * MIB2)
    local.vm.mmu.epts = (Ept(), Ept(max_tables=4))
    for number in (0, 100, 600):
        assert local.write(page(number), b"%4d" % number) is None
    file, guest = store.file("file"), store.guest("file")
    before = free(store), leaves(local), file.mtime_ns, guest.seq, list(file.pages.extents(0, 2 * MIB2))
    requests = local.link().request_count
    assert errno_of(store.punch, "file", 100, MIB2) == "ENOMEM"
    after = free(store), leaves(local), file.mtime_ns, guest.seq, list(file.pages.extents(0, 2 * MIB2))
    assert (after, counts(store)) == (before, (0, 0))
    assert [local.read(page(n), 4) for n in (0, 100, 600)] == [b"%4d" % n for n in (0, 100, 600)]
    assert local.link().request_count == requests
    assert store.findings() == []
    store.punch("file", 0, MIB2)
    assert local.read(page(600), 4) == b" 600", "whole pages go without a table"


def test_two_vcpus_that_fault_in_one_large_page_get_one_frame(store: LocalStore) -> None:
    local = vm_with(store, "2M", MIB2)
    other = local.vm.create_vcpu(1)
    beside = Beside(lambda: local.guest.write(other, page(300), b"b"))
    assert local.write(page(5), b"a") is None
    assert beside.result() is None
    assert (leaves(local), free(store)) == ((0, 1, 0), 3 * GIB - MIB2)
    assert (local.read(page(5), 1), local.read(page(300), 1)) == (b"a", b"b")


def test_while_a_part_goes_nothing_in_it_is_granted_and_the_rest_is(store: LocalStore) -> None:
    """As GET_PFN sees it: the leaf is refused, the page alone is granted."""
    vm_with(store, "2M", MIB2)
    gmem, file = store.service.gmem, store.file("file")
    with store.service.lock:
        granted = gmem.get_pfn(file, 0, MIB2, ORDER_2M)
        assert (granted.page_count, granted.order) == (MIB2, ORDER_2M)
    store.punch("file", 100, 1)
    with store.service.lock:
        assert errno_of(gmem.get_pfn, file, 0, MIB2, ORDER_2M) == "ENOENT"
        granted = gmem.get_pfn(file, 0, MIB2)
        assert (granted.page_count, granted.order) == (100, 0)
        granted = gmem.get_pfn(file, 100, MIB2)
        assert (granted.page_count, granted.order) == (1, ORDER_2M), "and the page is whole again"


@pytest.mark.parametrize("page_size", ["2M", "1G"])
@pytest.mark.parametrize(("design", "under"), [("punch", "kept"), ("overlay", "freed"), ("recreate", "kept")])
def test_conversions_give_memory_back_at_every_page_size(
    store: LocalStore, page_size: str, design: str, under: str
) -> None:
    local = vm_with(store, page_size, GIB)
    local.vmm.set_policy(design, under)
    assert local.touch(0, page(1)) is None
    store.allocate("file", 0, GIB)
    before = free(store)
    converted = [3 * MIB2 + 8 * number for number in range(10)]
    for at in converted:
        request = partial(local.guest.map, local.vcpu, page(at), page(4), private=False)
        assert local.vmm.run(local.vcpu, request) is None
    assert (free(store), local.vmm.tally.unreturned_pages) == (before + 40, 0)
    assert store.findings() == []
    for at in converted:
        request = partial(local.guest.map, local.vcpu, page(at), page(4), private=True)
        assert local.vmm.run(local.vcpu, request) is None
        assert local.touch(page(at), page(4)) is None
    assert free(store) == before
    assert counts(store)[1] > 0


def test_random_punches_and_touches_agree_with_a_dictionary(store: LocalStore) -> None:
    chance = random.Random(7)
    local = vm_with(store, "2M", 3 * MIB2)
    model: dict[int, bytes] = {}
    for step in itertools.count():
        if step == 120:
            break
        at = chance.randrange(3 * MIB2)
        if chance.random() < 0.6:
            data = step.to_bytes(4, "little")
            assert local.write(page(at), data) is None
            model[at] = data
        else:
            count = min(chance.choice([1, 2, 9, 100, 600]), 3 * MIB2 - at)
            store.punch("file", at, count)
            for gone in range(at, at + count):
                model.pop(gone, None)
        probe = chance.randrange(3 * MIB2)
        for number in [probe, *list(model)[:3]]:
            assert local.read(page(number), 4) == model.get(number, bytes(4)), (step, number)
    for number in range(3 * MIB2):
        assert local.read(page(number), 4) == model.get(number, bytes(4))
    assert store.findings() == []
    assert counts(store)[0] > 0
