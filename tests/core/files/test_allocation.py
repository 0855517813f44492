"""Holes filled in steps: nothing changes until all frames are there."""

from memfsd.core.files.allocation import Allocation, PlacedAllocation
from memfsd.core.files.inodes import Regular
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import PAGE_SIZE, Pgoff
from tests.support.core_store import PUNCH, CoreStore, refused

P = PAGE_SIZE


def allocation(store: CoreStore, file: Regular, start: int, end: int, size: int | None = None) -> Allocation:
    return Allocation(store.pool, file, start, end, FrameState.SHARED, size)


def frames(file: Regular, end: int) -> list[int | None]:
    return [file.pages.lookup(Pgoff(page)) for page in range(end)]


def test_holes_get_frames_and_what_is_there_stays(store: CoreStore) -> None:
    file = store.make("file")
    store.fallocate(file, 0, 2 * P, 3 * P)
    before, free = frames(file, 8), store.pool.free_count
    filling = allocation(store, file, 0, 8, size=8 * P)
    while not filling.step():
        pass
    after = frames(file, 8)
    assert after[2:5] == before[2:5]
    assert len(set(after)) == 8 and None not in after
    assert store.pool.free_count == free - 5
    assert filling.supply.page_count == 0
    assert file.size == 8 * P


def test_a_size_is_never_made_smaller(store: CoreStore) -> None:
    file = store.make("file")
    store.resize(file, 20 * P)
    filling = allocation(store, file, 0, 1, size=P)
    while not filling.step():
        pass
    assert file.size == 20 * P


def test_a_pool_without_room_changes_nothing_in_the_file(store: CoreStore) -> None:
    file, other = store.make("file"), store.make("other")
    store.fallocate(other, 0, 0, (store.pool.frame_count - 3) * P)
    filling = allocation(store, file, 0, 4, size=4 * P)
    with refused("ENOSPC"):
        while not filling.step():
            pass
    assert (frames(file, 4), file.size) == ([None] * 4, 0)


def test_a_file_in_many_pieces_is_filled_in_several_steps(store: CoreStore) -> None:
    """The frames are in hand before the first page is mapped."""
    store = CoreStore(1024)
    file, other = store.make("file"), store.make("other")
    store.fallocate(other, 0, 0, 1024 * P)
    for page in range(0, 800, 2):
        store.fallocate(other, PUNCH, page * P, P)
    filling, steps = allocation(store, file, 0, 400), 0
    while not filling.step():
        steps += 1
        assert filling.supply.page_count in (0, 400) or file.pages.page_count == 0 or None in frames(file, 400)
    assert steps > 3
    assert file.pages.page_count == 400


# -- where policies say where each page goes


def nodes_of(store: CoreStore, file: Regular, end: int) -> list[int | None]:
    return [None if pfn is None else store.pool.node_of(pfn) for pfn in frames(file, end)]


def test_each_page_goes_where_its_range_says() -> None:
    store = CoreStore(64, nodes=2)
    file = store.make("file")
    store.setfattr(file, "numa", f"interleave:0-1@{2 * P}+{6 * P} bind:1@{8 * P}+{4 * P}")
    store.fallocate(file, 0, 4 * P, P)
    store.fallocate(file, 0, 0, 14 * P)
    assert nodes_of(store, file, 14) == [0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 1, 0, 0]
    assert store.audit() == []


def test_a_policys_full_nodes_change_nothing_in_the_file() -> None:
    store = CoreStore(64, nodes=2)
    file = store.make("file")
    store.setfattr(file, "numa", f"bind:1@{P}+{40 * P}")
    with refused("ENOSPC", "where policy bind:1 has them"):
        store.fallocate(file, 0, 0, 41 * P)
    assert (frames(file, 41), file.size, store.pool.node_free_counts()) == ([None] * 41, 0, [32, 32])
    assert store.write(store.open(file), 0, bytes(41 * P)) == 33 * P
    with refused("ENOSPC"):
        store.write(store.open(file), 34 * P, b"x")


def test_a_first_step_that_is_refused_gives_all_its_frames_back() -> None:
    """More of them than one part of a page table has."""
    chunks, chunk = 200, 512
    store = CoreStore(2 * chunks * chunk, nodes=2)
    file = store.make("file")
    low, high = chunks // 2 * chunk, chunks * chunk + 1
    store.setfattr(file, "numa", f"bind:0@0+{low * P} bind:1@{low * P}+{high * P}")
    with refused("ENOSPC", "where policy bind:1 has them"):
        store.fallocate(file, 0, 0, (low + high) * P)
    assert store.pool.node_free_counts() == [chunks * chunk] * 2
    assert store.audit() == []


def test_holes_punched_meanwhile_get_frames_of_their_policy() -> None:
    store = CoreStore(2048, nodes=2)
    file = store.make("file")
    store.setfattr(file, "numa", "interleave:0-1")
    filling = PlacedAllocation(store.pool, file, 0, 700, FrameState.SHARED, 700 * P)
    while not file.pages.page_count:
        assert not filling.step()
    store.fallocate(file, PUNCH, 0, 3 * P)
    store.fallocate(file, 1, 650 * P, 3 * P)
    while not filling.step():
        pass
    store.perform(store.service.data.give_back(file.ino, filling.supply, None))
    assert nodes_of(store, file, 700) == [None, None, None] + [page % 2 for page in range(3, 700)]
    assert store.audit() == []


def test_large_pages_go_whole_where_their_policy_says() -> None:
    store = CoreStore(2048, nodes=2)
    file = store.guest_file("file")
    store.setfattr(file, "page_size", "2M")
    store.setfattr(file, "numa", "interleave:1,0")
    store.resize(file, 3 * 512 * P)
    store.fallocate(file, 0, 0, 3 * 512 * P)
    assert [store.pool.node_of(pfn) for pfn in frames(file, 3 * 512)[::512] if pfn is not None] == [0, 1, 0]
    assert store.audit() == []
