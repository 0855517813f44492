"""Files of very many extents are freed in parts, so that no one waits for all of it."""

import random

import pytest

from memfsd.core.audit import Facts, audit
from memfsd.core.effects import Discard, Effect, Scrub
from memfsd.core.files.inodes import ROOT_INO, Regular
from memfsd.core.memory.page_table import FilePages
from memfsd.core.moment import moment_of
from memfsd.core.private import strategies
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import InvalidateBeginReply
from memfsd.uapi.units import PAGE_SIZE, PGOFF_END, Pfn, Pgoff
from tests.support.core_store import KEEP_SIZE, CoreStore, refused

CHUNK, GIG = 512, 1 << 18
PAGES = 8 * CHUNK
MOST_RUNS = 400
"""In one part: what the lock is held for."""


@pytest.fixture
def store() -> CoreStore:
    return CoreStore(PAGES)


def parts_of(store: CoreStore, effects: list[Effect]) -> list[int]:
    """Frees them part by part; how many runs each had. At each moment every frame is accounted for."""
    (discard,) = effects
    assert isinstance(discard, Discard)
    parts = []
    while scrubs := store.service.discard(discard):
        parts.append(sum(sum(len(scrub.runs) for scrub in scrubs if isinstance(scrub, Scrub)) for scrub in scrubs))
        assert audit(moment_of(store.service), Facts()) == []
        store.perform(scrubs)
    return parts


def test_the_end_of_a_file_of_many_extents_is_done_in_parts(store: CoreStore) -> None:
    file = store.comb(PAGES)
    effects = store.service.unlink(ROOT_INO, b"comb", store.tick())
    effects += store.service.forget(file.ino, file.lookups)
    assert store.pool.count(FrameState.SHARED) == PAGES // 2, "nothing was done yet"
    parts = parts_of(store, effects)
    assert sum(parts) == PAGES // 2
    assert max(parts) <= MOST_RUNS
    assert store.pool.free_count == PAGES
    assert store.service.data.discards == []


def test_a_large_file_in_contiguous_frames_goes_at_once(store: CoreStore) -> None:
    file = store.make("large")
    store.service.fallocate(file.ino, 0, 0, PAGES * PAGE_SIZE, store.tick())
    effects, _ = store.service.resize(file.ino, 0, store.tick())
    assert [len(effect.runs) for effect in effects] == [1]  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(6))
def test_detached_pages_are_those_that_unmap_would_give(seed: int) -> None:
    dice = random.Random(seed)
    one, other = FilePages(), FilePages()
    at = pfn = 0
    while at < GIG + 40 * CHUNK:
        at += dice.choice((0, 1, 7, CHUNK, 3 * CHUNK + 1))
        if dice.random() < 0.1:
            at = -(-at // GIG) * GIG
        pfn += dice.choice((0, 1, 100))
        count = dice.choice((1, 2, CHUNK, CHUNK + 5, 4 * CHUNK, GIG if at % GIG == 0 else 1))
        for pages in (one, other):
            pages.map_run(at, pfn, count)
        at, pfn = at + count, pfn + count
    detached, runs = one.detach(), other.unmap(0, PGOFF_END)
    assert (one.page_count, detached.page_count) == (0, sum(count for _, _, count in runs))
    assert list(detached.extents(0, PGOFF_END)) == runs
    taken: dict[int, tuple[Pgoff, Pfn, int]] = {}
    while part := detached.take():
        assert len(part) <= MOST_RUNS
        for run in part:
            taken[run[0]] = run
    assert detached.page_count == 0
    assert merged([taken[pgoff] for pgoff in sorted(taken)]) == runs


def merged(parts: list[tuple[Pgoff, Pfn, int]]) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    for pgoff, pfn, count in parts:
        if found and (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]) == (pgoff, pfn):
            found[-1] = (*found[-1][:2], found[-1][2] + count)
        else:
            found.append((pgoff, pfn, count))
    return found


# -- guest private memory


def sealed_comb(store: CoreStore, *, vm: bool) -> Regular:
    file = store.guest_file("sealed", PAGES)
    if vm:
        store.pair(file)
        store.gmem.bind(file, 1, 0x100, 0, PAGES)
    for page in range(0, PAGES, 2):
        store.fallocate(file, KEEP_SIZE, page * PAGE_SIZE, PAGE_SIZE)
    return file


@pytest.mark.parametrize("vm", [False, True])
def test_a_punch_of_a_sealed_file_of_many_extents_is_done_in_parts_and_closes_all_until_the_end(vm: bool) -> None:
    store = CoreStore(PAGES)
    file = sealed_comb(store, vm=vm)
    first, last = 2, PAGES - 2
    store.gmem.invalidate_begin(file, first, last, strategies.PUNCH)
    parts = []
    while (scrubs := store.gmem.take(file, None)) is not None:
        parts.append(sum(len(scrub.runs) for scrub in scrubs if isinstance(scrub, Scrub)))
        assert audit(moment_of(store.service), Facts(moving={file.ino})) == []
        if vm:
            for page in (first, last - 1):
                with refused("EAGAIN"):
                    store.fault(file, page)
        # What is allocated after the step that passed it stays, and the bracket ends.
        store.fallocate(file, KEEP_SIZE, first * PAGE_SIZE, PAGE_SIZE)
        store.perform(scrubs)
    assert sum(parts) == PAGES // 2 - 2
    assert max(parts) <= MOST_RUNS
    assert len(parts) > 2
    store.gmem.invalidate_end(file)
    assert store.pool.free_count == PAGES - 3


def test_reclaim_looks_at_some_extents_at_a_time() -> None:
    store = CoreStore(PAGES)
    file, guest = store.bound_file("sealed", PAGES)
    pending = range(0, PAGES, 8)
    for page in range(0, PAGES, 2):
        state = FrameState.PENDING if page in pending else FrameState.PRIVATE
        store.service.data.allocate(file, page, page + 1, state)
    guest.pending = len(pending)
    store.gmem.invalidate_begin(file, 0, PAGES, strategies.RECLAIM)
    parts = []
    kept = InvalidateBeginReply([(0, 9)])
    while (scrubs := store.gmem.take(file, kept)) is not None:
        parts.append(sum(len(scrub.runs) for scrub in scrubs if isinstance(scrub, Scrub)))
        store.perform(scrubs)
    store.gmem.invalidate_end(file)
    assert (sum(parts), guest.pending) == (len(pending) - 2, 0)
    assert max(parts) <= MOST_RUNS // 4
    assert store.pool.free_count == PAGES // 2 + len(pending) - 2
