"""fmove_pages as a use case: statuses as move_pages(2), frames as the table of their states says."""

import errno
import random

import pytest

from memfsd.core.files.inodes import Regular
from memfsd.core.private import strategies
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import KVM_OPERATIONS, Kind, Move
from memfsd.uapi.units import ORDER_2M, PAGE_SIZE, Pgoff
from tests.support.core_store import KEEP_SIZE, PUNCH, CoreStore
from tests.support.threads import DEADLINE_S

PAGES = 64
HOLE, OUTSIDE, NO_ROOM, BUSY, NO_NODE = -errno.ENOENT, -errno.EFAULT, -errno.ENOMEM, -errno.EBUSY, -errno.ENODEV


@pytest.fixture
def store() -> CoreStore:
    """Two nodes of 32 frames."""
    return CoreStore(PAGES, nodes=2)


def move(store: CoreStore, file: Regular, pages: list[int], *nodes: int) -> list[int]:
    to = list(nodes) if len(nodes) == len(pages) else list(nodes) * len(pages)
    return store.store.mover.move(file.ino, [Pgoff(page) for page in pages], to)


def content(store: CoreStore, file: Regular, pgoff: int) -> int:
    """The first byte of a page; 0 where nobody touched it."""
    pfn = file.pages.lookup(pgoff)
    page = store.memory.get((file.ino, pfn)) if pfn is not None else None
    return page[0] if page else 0


def test_pages_go_to_other_nodes_with_what_they_hold(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    for pgoff in range(4):
        pfn = store.fault(file, pgoff).pfn
        store.memory[file.ino, pfn] = bytearray([pgoff + 1]) * PAGE_SIZE
    assert move(store, file, [0, 1, 2, 3, 9, 99], 1) == [1, 1, 1, 1, HOLE, OUTSIDE]
    assert [content(store, file, pgoff) for pgoff in range(4)] == [1, 2, 3, 4]
    assert move(store, file, [3, 1], 0, 0) == [0, 0]
    assert store.store.mover.where(file.ino, [Pgoff(page) for page in range(5)]) == [1, 0, 1, 0, HOLE]
    assert [content(store, file, pgoff) for pgoff in range(4)] == [1, 2, 3, 4]
    assert store.pool.free_count == PAGES - 4
    assert guest.seq == 2, "an invalidation each"
    assert store.audit() == []


def test_pages_are_asked_for_their_nodes(store: CoreStore) -> None:
    file = store.make("file")
    store.setfattr(file, "numa", "interleave:0-1")
    store.fallocate(file, 0, 0, 4 * PAGE_SIZE)
    store.fallocate(file, PUNCH, PAGE_SIZE, PAGE_SIZE)
    pages = [Pgoff(page) for page in (3, 2, 1, 0, 4, 1 << 51)]
    assert store.store.mover.where(file.ino, pages) == [1, 0, HOLE, 0, OUTSIDE, OUTSIDE]


def test_who_is_there_already_is_not_asked(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 16)
    store.fault(file, 0)
    assert move(store, file, [0], 0) == [0]
    assert store.vm_of(file).calls == []


def test_a_frame_is_moving_until_kvm_has_copied_and_the_old_one_is_scrubbed(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    store.fault(file, 0)
    seen: list[Move] = []

    def copies(body: Move) -> list[tuple[int, int]]:
        seen.append(body)
        assert (store.pool.count(FrameState.MOVING), guest.moving.page_count) == (1, 1)
        assert guest.open_invalidation is not None
        return []

    store.vm_of(file).on_move = copies
    assert move(store, file, [0], 1) == [1]
    ((pgoff, source, target, count),) = seen[0].moves
    assert (seen[0].start, seen[0].end, pgoff, count, file.pages.lookup(0)) == (0, 1, 0, 1, target)
    assert (store.pool.state(source), store.pool.state(target)) == (FrameState.FREE, FrameState.PRIVATE)
    assert guest.moving.page_count == 0
    assert (file.ino, source) not in store.memory


def test_what_was_granted_ahead_stays_so(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    for pgoff in (0, 1, 3, 7):
        store.fault(file, pgoff, 16)
    pending = guest.pending
    assert pending > 0
    held = [page for page in range(16) if file.pages.lookup(page) is not None]
    assert move(store, file, held, 1) == [1] * len(held)
    assert (guest.pending, store.pool.count(FrameState.PENDING)) == (pending, pending)
    assert store.audit() == []
    store.invalidate(file, 0, 16, strategies.RECLAIM)
    assert (guest.pending, file.pages.page_count) == (0, len(held) - pending)


def test_a_vm_that_refuses_keeps_its_pages_where_they_are(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    pfn = store.fault(file, 0).pfn
    store.vm_of(file).refuses.add(Kind.MOVE)
    assert move(store, file, [0, 1], 1) == [BUSY, HOLE]
    assert (file.pages.lookup(0), guest.active is not None, guest.seq) == (pfn, True, 0)
    assert store.pool.free_count == PAGES - 1
    assert store.audit() == []


def test_a_vm_may_keep_some(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 16)
    for pgoff in range(5):
        store.fault(file, pgoff)
    copies = store.vm_of(file).on_move
    store.vm_of(file).on_move = lambda body: copies(body) or [(1, 2), (3, 4)]
    assert move(store, file, list(range(5)), 1) == [1, BUSY, 1, BUSY, 1]
    assert store.pool.free_count == PAGES - 5
    assert sum(of == file.ino for of, _ in store.memory) == 5, "what was copied in vain is scrubbed"
    assert store.audit() == []


def test_a_kvm_without_the_operation_is_not_asked(store: CoreStore) -> None:
    file = store.guest_file("file", 16)
    paired = store.paired(file, operations=KVM_OPERATIONS - {Kind.MOVE})
    paired.bind(1, 0x100, 0, 16)
    store.fault(file, 0)
    assert move(store, file, [0], 1) == [BUSY]
    assert store.vm_of(file).calls == []
    assert store.pool.free_count == PAGES - 1


def test_a_silent_vm_keeps_both_frames_in_quarantine_until_it_is_dead(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    store.fault(file, 0)
    store.vm_of(file).is_silent, store.vm_of(file).is_dead = True, False
    assert move(store, file, [0], 1) == [HOLE]
    assert guest.active is None
    assert (store.pool.count(FrameState.QUARANTINED), store.pool.free_count) == (2, PAGES - 2)
    assert store.audit() == []
    store.vm_of(file).is_dead = True
    store.release_guest(file)
    assert store.pool.free_count == PAGES
    assert store.audit() == []


def test_a_vm_that_dies_meanwhile_loses_nothing_but_itself(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    store.fault(file, 0)
    store.vm_of(file).is_silent = True
    assert move(store, file, [0], 1) == [BUSY]
    assert guest.moving.page_count == 0
    assert store.audit() == []
    store.release_guest(file)
    assert store.pool.free_count == PAGES


def test_a_node_that_is_full_and_one_that_does_not_exist(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 40)
    for pgoff in range(36):
        store.fault(file, pgoff)
    assert move(store, file, list(range(32)), 1) == [1] * 28 + [NO_ROOM] * 4
    assert move(store, file, [0, 1], 2) == [NO_NODE] * 2
    assert move(store, file, [0, 1], -2, -1) == [NO_NODE, 1]
    assert store.audit() == []


def test_pages_that_are_not_bound_while_a_vm_has_the_file_stay(store: CoreStore) -> None:
    file = store.guest_file("file", 16)
    store.paired(file).bind(1, 0x100, 0, 8)
    store.fallocate(file, KEEP_SIZE, 0, 16 * PAGE_SIZE)
    assert move(store, file, [7, 8], 1) == [1, BUSY]


def test_a_file_without_a_vm_moves_without_one(store: CoreStore) -> None:
    file = store.guest_file("file", 16)
    store.fallocate(file, KEEP_SIZE, 0, 16 * PAGE_SIZE)
    assert move(store, file, list(range(16)), 1) == [1] * 16
    assert store.pool.free_count == PAGES - 16
    assert store.audit() == []


def test_ordinary_files_and_poisoned_pages_stay(store: CoreStore) -> None:
    ordinary = store.make("ordinary")
    store.write(store.open(ordinary), 0, b"data")
    assert move(store, ordinary, [0, 0], 0, 1) == [0, BUSY]
    file, _ = store.bound_file("file", 16)
    store.fault(file, 0)
    store.invalidate(file, 0, 1, strategies.POISON)
    assert move(store, file, [0], 1) == [HOLE]


def test_a_large_page_moves_whole() -> None:
    large = 1 << ORDER_2M
    store = CoreStore(4 * large, nodes=2)
    file = store.make("file")
    store.seal(file)
    store.setfattr(file, "page_size", "2M")
    store.resize(file, large * PAGE_SIZE)
    guest = store.pair(file)
    store.gmem.bind(file, 1, 0x200, 0, large)
    store.fault(file, 7)
    assert move(store, file, [3, 500], 1) == [1, 1]
    assert store.store.mover.where(file.ino, [Pgoff(0), Pgoff(511)]) == [1, 1]
    assert (file.pages.lookup(0) or 0) % large == 0
    assert guest.seq == 1
    assert store.pool.free_count == 3 * large
    assert store.audit() == []


def test_the_deadline_ends_a_long_list(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 16)
    for pgoff in range(4):
        store.fault(file, pgoff)
    store.store.invalidator._deadlines.move_s = -1.0
    assert move(store, file, [0, 1], 1) == [BUSY, BUSY]
    assert store.vm_of(file).calls == []


def test_the_deadline_ends_the_wait_for_a_file_that_is_busy(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    store.fault(file, 0)
    deadlines = store.store.invalidator._deadlines
    deadlines.move_s, deadlines.invalidate_lock_s = 0.05, DEADLINE_S
    with guest.invalidate_lock:
        assert move(store, file, [0], 1) == [BUSY]
    assert store.vm_of(file).calls == []


def test_random_moves_among_faults_punches_and_reclaims_keep_the_data(store: CoreStore) -> None:
    """Against a dict of what each page holds; every rule after each step."""
    rng = random.Random(7)
    file, guest = store.bound_file("file", 24)
    model: dict[int, int] = {}
    for step in range(400):
        match rng.randrange(5):
            case 0 | 1:
                page = rng.randrange(24)
                granted = store.fault(file, page, rng.randrange(1, 8), touch=False)
                model[page] = step % 255 + 1
                store.memory[file.ino, granted.pfn] = bytearray([model[page]]) * PAGE_SIZE
            case 2:
                start = rng.randrange(24)
                end = rng.randrange(start, 24) + 1
                store.invalidate(file, start, end, strategies.PUNCH)
                model = {page: value for page, value in model.items() if not start <= page < end}
            case 3:
                store.invalidate(file, 0, 24, strategies.RECLAIM)
            case _:
                pages = rng.sample(range(24), rng.randrange(1, 12))
                nodes = [rng.randrange(2) for _ in pages]
                for page, node, status in zip(pages, nodes, move(store, file, pages, *nodes), strict=True):
                    held = file.pages.lookup(page)
                    assert status == (HOLE if held is None else node)
        assert {page: content(store, file, page) for page in range(24)} == dict.fromkeys(range(24), 0) | model
        assert store.pool.count(FrameState.PENDING) == guest.pending
        assert store.audit() == []
