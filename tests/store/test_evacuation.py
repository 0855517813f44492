"""memfs offline, online and compact as use cases."""

import pytest

from memfsd.core.files.inodes import Regular
from memfsd.core.gmem import guest_of
from memfsd.core.memory.frames import FramePool
from memfsd.core.private import strategies
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import CompactReply, Kind, SetNodeReply
from memfsd.uapi.units import ORDER_2M, PAGE_SIZE
from tests.support.core_store import KEEP_SIZE, CoreStore, refused
from tests.support.threads import DEADLINE_S

BLOCK = 1 << ORDER_2M


@pytest.fixture
def store() -> CoreStore:
    """Two nodes of 32 frames."""
    return CoreStore(64, nodes=2)


def touched(store: CoreStore, name: str, pages: int, gfn: int = 0x100) -> Regular:
    file, _ = store.bound_file(name, pages, gfn)
    for pgoff in range(pages):
        pfn = store.fault(file, pgoff).pfn
        store.memory[file.ino, pfn] = bytearray([pgoff % 251 + 1]) * PAGE_SIZE
    return file


def is_intact(store: CoreStore, file: Regular, pages: range) -> bool:
    frames = {pgoff: file.pages.lookup(pgoff) for pgoff in pages}
    return all(pfn is not None and store.memory[file.ino, pfn][0] == pgoff % 251 + 1 for pgoff, pfn in frames.items())


def test_all_that_can_leaves_a_node_that_goes_offline(store: CoreStore) -> None:
    file = touched(store, "file", 8)
    ordinary = store.make("ordinary")
    store.write(store.open(ordinary), 0, b"data")
    assert store.store.nodes.offline(0) == SetNodeReply(8, {"shared": 1}, goes_on=0)
    assert is_intact(store, file, range(8))
    assert (store.pool.is_online(0), store.pool.count(FrameState.OFFLINE), store.pool.free_count) == (False, 31, 24)
    assert store.audit() == []
    assert store.pool.node_of(store.fault(file, 3).pfn) == 1
    store.invalidate(file, 0, 8, strategies.PUNCH)
    assert store.pool.node_of(store.fault(file, 3).pfn) == 1, "though node 0 is preferred"
    assert store.store.nodes.online(0) == SetNodeReply(0, {}, goes_on=0)
    assert store.pool.node_of(store.fault(file, 4).pfn) == 0
    assert store.pool.count(FrameState.OFFLINE) == 0


def test_what_becomes_free_in_an_offline_node_stays_away(store: CoreStore) -> None:
    file = touched(store, "file", 8)
    store.vm_of(file).refuses.add(Kind.MOVE)
    assert store.store.nodes.offline(0) == SetNodeReply(0, {"private": 8}, goes_on=0)
    store.invalidate(file, 0, 8, strategies.PUNCH)
    assert store.pool.count(FrameState.OFFLINE) == 32
    store.vm_of(file).refuses.clear()
    assert store.store.nodes.offline(0) == SetNodeReply(0, {}, goes_on=0), "once more: nothing is left"


def test_what_finds_no_room_stays(store: CoreStore) -> None:
    file = touched(store, "file", 40)
    done = store.store.nodes.offline(0)
    assert (done.page_count, done.states) == (24, {"private": 8})
    assert is_intact(store, file, range(40))


def test_nodes_that_do_not_exist_and_the_last_one(store: CoreStore) -> None:
    for node in (2, 64):
        with refused("ENODEV", match="choose 0 to 1"):
            store.store.nodes.offline(node)
        with refused("ENODEV"):
            store.store.nodes.online(node)
    store.store.nodes.offline(1)
    with refused("EBUSY", match="last one"):
        store.store.nodes.offline(0)
    assert store.pool.free_count == 32


def test_a_step_ends_at_its_deadline_and_the_next_one_goes_on(store: CoreStore) -> None:
    files = [touched(store, f"file{number}", 4, 0x100 * (number + 1)) for number in range(3)]
    store.store.invalidator._deadlines.nodes_s = -1.0
    counts = [(done.page_count, done.goes_on) for done in (store.store.nodes.offline(0) for _ in range(4))]
    assert counts == [(4, 1)] * 3 + [(0, 0)]
    assert all(is_intact(store, file, range(4)) for file in files)


def test_a_file_that_is_busy_holds_up_neither_a_step_nor_the_files_behind_it(store: CoreStore) -> None:
    files = [touched(store, f"file{number}", 4, 0x100 * (number + 1)) for number in range(3)]
    deadlines = store.store.invalidator._deadlines
    deadlines.nodes_s, deadlines.invalidate_lock_s = 0.0, DEADLINE_S
    with guest_of(files[0]).invalidate_lock:
        counts = [store.store.nodes.offline(0).page_count for _ in range(4)]
    assert counts == [0, 4, 4, 0]
    assert store.store.nodes.offline(0).page_count == 4
    assert all(is_intact(store, file, range(4)) for file in files)


def fragmented(store: CoreStore) -> Regular:
    """Every eighth frame of two blocks is in use."""
    file = touched(store, "file", 2 * BLOCK)
    for pgoff in range(2 * BLOCK):
        if pgoff % 8:
            store.invalidate(file, pgoff, pgoff + 1, strategies.PUNCH)
    return file


def free_blocks(pool: FramePool) -> int:
    return pool.available(0, ORDER_2M) >> ORDER_2M


def test_compaction_makes_free_blocks() -> None:
    store = CoreStore(4 * BLOCK)
    file = fragmented(store)
    assert free_blocks(store.pool) == 2
    assert store.store.nodes.compact() == CompactReply(BLOCK // 8, 2, 0, 3, 0, goes_on=0)
    assert free_blocks(store.pool) == 3
    assert is_intact(store, file, range(0, 2 * BLOCK, 8))
    assert store.audit() == []
    assert store.store.nodes.compact() == CompactReply(0, 3, 0, 3, 0, goes_on=0), "nothing is left to do"


def test_blocks_with_pages_that_cannot_move_are_left_alone() -> None:
    store = CoreStore(4 * BLOCK)
    file = fragmented(store)
    ordinary = store.make("ordinary")
    store.fallocate(ordinary, KEEP_SIZE, 0, PAGE_SIZE)
    store.vm_of(file).refuses.add(Kind.MOVE)
    assert store.store.nodes.compact().page_count == 0
    assert store.pool.count(FrameState.OFFLINE) == 0
    assert store.audit() == []
