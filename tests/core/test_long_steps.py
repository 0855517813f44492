"""Whatever a file of very many extents goes through, no step of it holds Service.lock for long.

Time is not measured here: what a step costs is counted, in runs of frames that it looks at, moves or maps.
"""

import gc
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from memfsd.common import intervals, sync
from memfsd.common.intervals import IntervalMap
from memfsd.core.audit import Facts, audit
from memfsd.core.effects import Effect, Export, Fill
from memfsd.core.files.inodes import ROOT_INO, Inode, Regular
from memfsd.core.gmem import guest_of
from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.page_table import FilePages, TablesThen
from memfsd.core.memory.published_map import PageMap
from memfsd.core.memory.swap_slots import SwapSlots
from memfsd.core.moment import Moment, moment_of
from memfsd.core.private import strategies
from memfsd.store import checker
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import MAX_RUNS_PER_REPORT, NAME_MAX
from memfsd.uapi.messages import InvalidateBeginReply, MapReply
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE, Pfn, Pgoff
from tests.support.core_store import ME, PUNCH, CoreStore, refused

PAGES = 8 * 512
MOST = 600
"""Of what is counted, in one step: 64 extents, each looked at and moved a few times, or two short arrays."""


class Steps:
    """The steps of one CoreStore: how many there were, and what the dearest one cost."""

    def __init__(self) -> None:
        self.store = CoreStore(3 * PAGES)
        self.cost = self.dearest = self.count = 0

    def step(self, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **how: object) -> object:
            self.cost, before = 0, self.cost
            result = call(*args, **how)
            self.dearest, self.count = max(self.dearest, self.cost), self.count + 1
            self.cost = before
            if self.count in (3, 9) and getattr(call, "__name__", "") in ("discard", "quarantine", "fill"):
                closing = {
                    f.ino for f in self.store.service.inodes.sealed_files() if f.guest and f.guest.open_invalidation
                }
                assert audit(moment_of(self.store.service), Facts(moving=closing)) == [], "every frame is accounted for"
            return result

        return counted

    def assert_short(self, at_least: int = 4) -> None:
        assert self.dearest <= MOST
        assert self.count >= at_least


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()

    def count(owner: type, name: str, cost: Callable[[object], int]) -> None:
        real = getattr(owner, name)

        def counting(*args: object, **how: object) -> object:
            result = real(*args, **how)
            steps.cost += cost(result)
            return result

        monkeypatch.setattr(owner, name, counting)

    for name in ("set_state", "states", "free"):
        count(FramePool, name, lambda _: 1)
    count(FramePool, "alloc", lambda runs: len(runs))  # type: ignore[arg-type]
    for name in ("show", "hide"):
        count(PageMap, name, lambda _: 1)
    count(FilePages, "map_run", lambda _: 1)
    count(FilePages, "unmap", lambda runs: len(runs))  # type: ignore[arg-type]
    for owner, name in (
        (steps.store.service, "discard"),
        (steps.store.service, "quarantine"),
        (steps.store.service, "fill"),
        (steps.store.service, "scrubbed"),
        (steps.store.service, "release_guest"),
        (steps.store.service, "unlink"),
        (steps.store.service, "fallocate"),
        (steps.store.gmem, "disconnect"),
        (steps.store.gmem, "take"),
        (steps.store.gmem, "settle"),
        (steps.store.gmem, "reclaimable"),
        (steps.store.gmem, "publish_more"),
    ):
        monkeypatch.setattr(owner, name, steps.step(getattr(owner, name)))
    return steps


def comb(store: CoreStore, state: FrameState, *, vm: bool = False) -> Regular:
    """Every second page: as many extents as can be."""
    sealed = state is not FrameState.SHARED
    file = store.guest_file("comb", PAGES) if sealed else store.make("comb")
    if vm:
        store.pair(file)
        store.gmem.bind(file, 1, 0x100, 0, PAGES)
    for page in range(0, PAGES, 2):
        file.pages.map_run(page, store.pool.alloc_one(state), 1)
    if not sealed:
        file.size = PAGES * PAGE_SIZE
    if file.guest is not None and state is FrameState.PENDING:
        file.guest.pending, file.guest.pending_end = PAGES // 2, Pgoff(PAGES)
    return file


def test_what_a_file_has_is_published_in_parts(steps: Steps) -> None:
    store = steps.store
    file = comb(store, FrameState.PRIVATE)
    guest = store.pair(file)
    steps.assert_short()
    assert guest.page_map is not None
    assert [guest.page_map.lookup(page) for page in range(PAGES)] == [file.pages.lookup(page) for page in range(PAGES)]


def test_what_is_allocated_anew_while_a_file_is_published_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry below one that covers its page would stay when that goes, and its frame is another's then."""
    store = CoreStore(3 * PAGES)
    file = comb(store, FrameState.PRIVATE)
    publish, parts = store.gmem.publish_more, 0

    def others_come_between(file: Regular) -> bool:
        nonlocal parts
        more, parts = publish(file), parts + 1
        if parts == 1:
            store.service.lock.release()
            store.fallocate(file, PUNCH, 0, 512 * PAGE_SIZE)
            store.fallocate(file, 0, 0, 512 * PAGE_SIZE)
            store.service.lock.acquire()
        return more

    monkeypatch.setattr(store.gmem, "publish_more", others_come_between)
    page_map = store.pair(file).page_map
    assert page_map is not None and parts > 2
    assert [page_map.lookup(page) for page in range(PAGES)] == [file.pages.lookup(page) for page in range(PAGES)]
    store.fallocate(file, PUNCH, 0, 512 * PAGE_SIZE)
    assert not any(page_map.lookup(page) for page in range(512))


def test_the_end_of_a_vm(steps: Steps) -> None:
    store = steps.store
    file = comb(store, FrameState.PRIVATE, vm=True)
    store.release_guest(file)
    steps.assert_short()
    assert store.pool.free_count == store.pool.frame_count
    assert store.dropped == [file.ino]


def test_a_vm_that_is_cut_off_and_then_dies(steps: Steps) -> None:
    store = steps.store
    file = comb(store, FrameState.PENDING, vm=True)
    store.perform(store.gmem.disconnect(file))
    steps.assert_short()
    assert store.pool.count(FrameState.QUARANTINED) == PAGES // 2
    assert (
        store.getfattr(file, "frames") == f"private=0 pending=0 quarantined={PAGES // 2} punched=0 leaked=0 populated=0"
    )
    assert store.audit() == []
    store.release_guest(file)
    steps.assert_short(8)
    assert store.pool.free_count == store.pool.frame_count
    assert store.audit() == []


def test_a_sealed_file_that_is_removed(steps: Steps) -> None:
    comb(steps.store, FrameState.PRIVATE)
    steps.store.unlink("comb")
    steps.assert_short()
    assert steps.store.pool.free_count == steps.store.pool.frame_count


def test_pages_that_turn_out_to_be_touched(steps: Steps) -> None:
    store = steps.store
    file = comb(store, FrameState.PENDING, vm=True)
    assert file.guest is not None
    touched = [(pfn, pfn + 1) for _, pfn, _ in list(file.pages.extents(0, PAGES))[::2]]
    at: Pgoff | None = Pgoff(0)
    while at is not None:
        at = store.gmem.settle(file, touched, at)
    steps.assert_short()
    assert (file.guest.pending, store.pool.count(FrameState.PENDING)) == (PAGES // 4, PAGES // 4)
    assert store.gmem.reclaimable([file]) == [(file.ino, 0, PAGES)]
    assert steps.dearest <= MOST


def test_a_reclaim_that_keeps_half_of_the_pages(steps: Steps) -> None:
    store = steps.store
    file = comb(store, FrameState.PENDING, vm=True)
    kept = InvalidateBeginReply([(0, PAGES // 4)])
    touched = [(pfn, pfn + 1) for _, pfn, _ in file.pages.extents(PAGES // 4, PAGES // 2)]
    store.gmem.invalidate_begin(file, 0, PAGES, strategies.RECLAIM)
    while (scrubs := store.gmem.take(file, kept, touched)) is not None:
        store.perform(scrubs)
    store.gmem.invalidate_end(file)
    steps.assert_short()
    assert (store.pool.count(FrameState.PRIVATE), store.pool.count(FrameState.PENDING)) == (PAGES // 4, 0)


def ahead(store: CoreStore) -> Regular:
    """All pages were granted in one run, and none is touched."""
    file = store.guest_file("ahead", PAGES)
    store.pair(file)
    store.gmem.bind(file, 1, 0x100, 0, PAGES)
    ((pfn, count),) = store.pool.alloc(PAGES, FrameState.PENDING)
    file.pages.map_run(0, pfn, count)
    guest = guest_of(file)
    guest.pending, guest.pending_end = PAGES, Pgoff(PAGES)
    return file


def every_fourth(file: Regular) -> list[tuple[int, int]]:
    first = file.pages.lookup(0)
    assert first is not None
    return [(pfn, pfn + 1) for pfn in range(first, first + PAGES, 4)]


@pytest.mark.parametrize("says", ["window", "VM", "VM, again and again"])
def test_a_reclaim_of_one_run_of_which_pieces_stay(steps: Steps, says: str) -> None:
    store = steps.store
    file = ahead(store)
    kept = [(page, page + 1) for page in range(0, PAGES, 4)]
    touched = every_fourth(file) if says == "window" else []
    answer = InvalidateBeginReply([] if says == "window" else kept[::-1])
    if says == "VM, again and again":
        answer = InvalidateBeginReply([(0, PAGES)] * 1000)
    store.gmem.invalidate_begin(file, 0, PAGES, strategies.RECLAIM)
    while (scrubs := store.gmem.take(file, answer, touched)) is not None:
        store.perform(scrubs)
    store.gmem.invalidate_end(file)
    stays = PAGES if says == "VM, again and again" else PAGES // 4
    assert (store.pool.count(FrameState.PRIVATE), store.pool.count(FrameState.PENDING)) == (stays, 0)
    assert store.audit() == []
    steps.assert_short(1)


def test_one_run_of_which_pieces_turn_out_to_be_touched(steps: Steps) -> None:
    store = steps.store
    file = ahead(store)
    touched = every_fourth(file)
    at: Pgoff | None = Pgoff(0)
    while at is not None:
        at = store.gmem.settle(file, touched, at)
    steps.assert_short()
    assert store.pool.count(FrameState.PRIVATE) == guest_of(file).pending // 3 == PAGES // 4


@pytest.mark.parametrize("state", [FrameState.SHARED, FrameState.PRIVATE])
def test_holes_that_are_filled(steps: Steps, state: FrameState) -> None:
    store = steps.store
    file = comb(store, state)
    store.fallocate(file, 0, 0, PAGES * PAGE_SIZE)
    steps.assert_short()
    assert (file.pages.page_count, store.pool.count(state)) == (PAGES, PAGES)
    assert store.service.data.allocations == {}
    assert store.audit() == []


def test_a_hole_that_is_filled_from_a_pool_in_pieces(steps: Steps) -> None:
    store = steps.store
    for pfn in splinters(store):
        store.pool.free(pfn, 1)
    file = store.make("file")
    store.fallocate(file, 0, 0, PAGES * PAGE_SIZE)
    steps.assert_short()
    assert (file.size, file.pages.page_count) == (PAGES * PAGE_SIZE, PAGES)


def splinters(store: CoreStore) -> list[Pfn]:
    """A file takes all frames but every second one, which may be freed."""
    (run,) = store.pool.alloc(store.pool.frame_count, FrameState.SHARED)
    ends = [Pfn(pfn) for pfn in range(run[0], run[0] + run[1], 2)]
    hog = store.make("hog")
    for pfn in ends:
        store.pool.set_state(pfn, 1, FrameState.CLOSING)
        hog.pages.map_run(pfn, pfn + 1, 1)
    return ends


# -- what may happen between two steps of a fallocate


def begun(store: CoreStore, state: FrameState = FrameState.SHARED) -> tuple[Regular, Fill]:
    file = comb(store, state)
    (fill,), _ = store.service.fallocate(file.ino, 0, 0, (PAGES + (0 if file.guest else 7)) * PAGE_SIZE, store.tick())
    assert isinstance(fill, Fill)
    return file, fill


def finish(store: CoreStore, fill: Effect) -> None:
    try:
        store.perform([fill])
    finally:
        assert store.service.data.allocations == {}
        assert [finding for finding in store.audit() if finding[0] != "R8"] == []


def test_others_fill_the_holes_first(steps: Steps) -> None:
    file, fill = begun(steps.store)
    handle = steps.store.open(file)
    steps.store.write(handle, PAGES // 2 * PAGE_SIZE, b"x" * (PAGES // 4) * PAGE_SIZE)
    finish(steps.store, fill)
    assert file.pages.page_count == PAGES + 7 == steps.store.pool.count(FrameState.SHARED)
    assert steps.store.read(handle, (PAGES // 2 + 1) * PAGE_SIZE, 1) == b"x"


def test_others_punch_new_holes(steps: Steps) -> None:
    store = steps.store
    file, fill = begun(store)
    for page in range(PAGES // 2, PAGES, 8):
        store.fallocate(file, PUNCH, page * PAGE_SIZE, PAGE_SIZE)
    finish(store, fill)
    assert file.pages.page_count == PAGES + 7 == store.pool.count(FrameState.SHARED)


def test_all_frames_are_taken_before_anything_changes(steps: Steps) -> None:
    store = steps.store
    for pfn in splinters(store)[: PAGES + 100]:
        store.pool.free(pfn, 1)
    file, other = store.make("file"), store.make("other")
    (fill,), _ = store.service.fallocate(file.ino, 0, 0, PAGES * PAGE_SIZE, store.tick())
    store.write(store.open(other), 0, b"x" * 200 * PAGE_SIZE)
    with refused("ENOSPC"):
        finish_of_a_full_pool(store, fill)
    assert (file.size, file.pages.page_count) == (0, 0)
    assert store.pool.free_count == PAGES + 100 - 200


def finish_of_a_full_pool(store: CoreStore, fill: Effect) -> None:
    try:
        store.perform([fill])
    finally:
        assert store.service.data.allocations == {}


def test_the_file_is_sealed_against_growing(steps: Steps) -> None:
    file, fill = begun(steps.store)
    steps.store.seal(file, Seal.GROW)
    with refused("EPERM", "growing"):
        finish(steps.store, fill)
    assert file.size == PAGES * PAGE_SIZE


def test_the_file_is_sealed_for_a_guest(steps: Steps) -> None:
    file, fill = begun(steps.store)
    steps.store.seal(file, Seal.GUEST, truncate=True)
    with refused("EPERM", "sealed for a guest"):
        finish(steps.store, fill)
    assert file.pages.page_count == 0
    assert steps.store.pool.free_count == steps.store.pool.frame_count


def test_the_sealed_file_shrinks() -> None:
    store = CoreStore(3 * PAGES, resize_any=True)
    file, fill = begun(store, FrameState.PRIVATE)
    store.resize(file, PAGES // 2 * PAGE_SIZE)
    finish(store, fill)
    assert file.pages.page_count == PAGES // 2
    assert file.pages.next_data(PAGES // 2) is None


# -- SEEK_DATA and SEEK_HOLE


class CountedContents:
    """Frames from `written` on hold bytes."""

    def __init__(self, written: range) -> None:
        self.written, self.count = written, 0

    def first_written(self, pfn: Pfn, count: int) -> int | None:
        self.count += 1
        return next((n for n in range(count) if pfn + n in self.written), None)

    def first_unwritten(self, pfn: Pfn, count: int) -> int:
        self.count += 1
        return next((n for n in range(count) if pfn + n not in self.written), count)


@pytest.mark.parametrize(
    ("whence", "written", "answer"),
    [(os.SEEK_DATA, (PAGES // 2 - 1,), PAGES - 2), (os.SEEK_DATA, (), None), (os.SEEK_HOLE, (0, 1, 2), 1)],
)
def test_a_seek_looks_at_some_extents_at_a_time(whence: int, written: tuple[int, ...], answer: int | None) -> None:
    store = CoreStore(PAGES)
    file = comb(store, FrameState.SHARED)
    contents = CountedContents(range(written[0], written[-1] + 1) if written else range(0))
    assert sought(store, file, whence, contents) == (None if answer is None else answer * PAGE_SIZE)


def test_a_seek_for_the_end_of_many_written_extents_is_done_in_steps() -> None:
    """Contiguous in the file and nowhere in the pool, so that the hole comes after all of them."""
    store = CoreStore(PAGES)
    file = store.make("file")
    for page in range(PAGES // 2):
        file.pages.map_run(page, PAGES - 1 - page, 1)
    file.size = PAGES * PAGE_SIZE
    contents = CountedContents(range(PAGES))
    assert sought(store, file, os.SEEK_HOLE, contents) == PAGES // 2 * PAGE_SIZE


def test_a_seek_through_very_many_large_pages_is_done_in_steps() -> None:
    """Contiguous or not, as a guest touched them."""
    store = CoreStore(PAGES)
    for file in (store.guest_file("sealed"), store.make("plain")):
        for chunk in range(2048):
            file.pages.map_run(512 * chunk, 512 * chunk, 512)
        file.pages.map_run(2048 * 512, 0, 7)
        file.size = 4096 * 512 * PAGE_SIZE
        seek, steps = store.service.seek(file.ino, 0, os.SEEK_HOLE), 1
        while not seek.step(AllWritten()):
            steps += 1
        assert seek.answer() == (2048 * 512 + 7) * PAGE_SIZE
        assert steps >= 4
        seek = store.service.seek(file.ino, PAGE_SIZE, os.SEEK_DATA)
        assert seek.step(AllWritten())
        assert seek.answer() == PAGE_SIZE


@pytest.mark.parametrize(("hole", "writers"), [(512 * 512, 0), (150_000, 0), (150_000, 1), (4096, 1)])
def test_a_seek_for_a_hole_asks_for_some_frames_at_a_time(hole: int, writers: int) -> None:
    """Of a gigabyte that is one extent: the kernel looks at each page."""
    store = CoreStore(PAGES)
    file = store.make("file")
    for chunk in range(512):
        file.pages.map_run(512 * chunk, 512 * chunk, 512)
    file.size = (512 * 512 + 1) * PAGE_SIZE
    file.mappable_writers = writers
    seek, contents = store.service.seek(file.ino, 0, os.SEEK_HOLE), AllBut(hole)
    while not seek.step(contents):
        assert contents.asked <= 4096
        contents.asked = 0
    assert seek.answer() == hole * PAGE_SIZE
    assert seek.doubtful_hole() == ((hole * PAGE_SIZE, (hole + 1) * PAGE_SIZE) if writers else None)


class AllBut:
    """All frames but one were written."""

    def __init__(self, hole: int) -> None:
        self.hole, self.asked = hole, 0

    def first_written(self, pfn: Pfn, count: int) -> int | None:
        first = int(pfn == self.hole)
        return first if first < count else None

    def first_unwritten(self, pfn: Pfn, count: int) -> int:
        self.asked += count
        return self.hole - pfn if 0 <= self.hole - pfn < count else count


class AllWritten:
    def first_written(self, pfn: Pfn, count: int) -> int | None:
        return 0

    def first_unwritten(self, pfn: Pfn, count: int) -> int:
        return count


def sought(store: CoreStore, file: Regular, whence: int, contents: CountedContents) -> int | None:
    seek = store.service.seek(file.ino, 0, whence)
    while not seek.step(contents):
        assert contents.count <= 512
        contents.count = 0
    if whence == os.SEEK_DATA and seek.doubtful_hole() is None and not contents.written:
        with refused("ENXIO"):
            seek.answer()
        return None
    return seek.answer()


# -- 1 TiB

TIB = 1 << 28


@pytest.fixture
def gigs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nodes of a page table that each use case's hold of Service.lock has made or removed; the last is under way."""
    held = [0]
    for name in ("_put", "_remove"):
        real = getattr(FilePages, name)

        def counting(*args: object, real: Callable[..., object] = real) -> object:
            held[-1] += 1
            return real(*args)

        monkeypatch.setattr(FilePages, name, counting)

    class Counted:
        def __init__(self) -> None:
            self._lock = threading.Lock()

        def acquire(self, *args: object, **how: object) -> bool:
            return self._lock.acquire()

        def release(self) -> None:
            held.append(0)
            self._lock.release()

        def __enter__(self) -> bool:
            return self.acquire()

        def __exit__(self, *_: object) -> None:
            self.release()

    monkeypatch.setattr(sync._PLAIN, "lock", lambda name: Counted() if name == "Service.lock" else threading.Lock())
    return held


@pytest.mark.parametrize("page_size", ["4K", "1G"])
def test_a_tebibyte_is_allocated_mapped_and_punched_in_parts(gigs: list[int], page_size: str) -> None:
    store = CoreStore(TIB + 512, split=True)
    store.windows.punch = lambda window, runs: None  # type: ignore[method-assign]  # a step for each frame
    file = store.guest_file("file")
    store.setfattr(file, "page_size", page_size)
    store.resize(file, TIB * PAGE_SIZE)
    store.fallocate(file, 1, 0, TIB * PAGE_SIZE)
    assert file.pages.page_count == TIB
    assert sum(gigs) >= 1024
    ((start, first, count, *_),) = store.store.checker.map_of(file.ino, 0, 0).runs
    assert (start, count) == (0, TIB)
    assert first == file.pages.lookup(0)
    store.fallocate(file, PUNCH, PAGE_SIZE, (TIB - 2) * PAGE_SIZE)
    assert file.pages.page_count == 2
    assert sum(gigs) > 2048
    # The stock of frames is 1024 gigs that are one run; a gig at each end of the punch becomes 511 chunks.
    assert max(gigs) < 1200
    assert sum(nodes > 200 for nodes in gigs) <= 4
    gigs[:] = [0]
    store.fallocate(file, 1, 0, TIB * PAGE_SIZE)
    assert file.pages.page_count == TIB
    assert sum(nodes > 700 for nodes in gigs) <= 1, "the stock, again"


def test_a_map_of_many_extents_is_made_in_parts(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    store = steps.store
    file = comb(store, FrameState.PRIVATE)
    counts: list[int] = []
    real = checker.page_map

    def counted(*args: Any) -> MapReply:
        part = real(*args)
        counts.append(len(part.runs))
        return part

    monkeypatch.setattr(checker, "page_map", counted)
    reply = store.store.checker.map_of(file.ino, 0, 0)
    assert [run[0] for run in reply.runs] == list(range(0, 2 * len(reply.runs), 2))
    assert (len(reply.runs), reply.next_pgoff) == (MAX_RUNS_PER_REPORT, 2 * MAX_RUNS_PER_REPORT - 2 + 2)
    assert max(counts) <= 64


# -- many bindings


class Looks:
    """looked_at: how many intervals each question about a range returned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looked_at: list[int] = []
        real = IntervalMap.overlapping

        def overlapping(intervals: IntervalMap[Any], start: int, end: int) -> list[tuple[int, int, Any]]:
            found = real(intervals, start, end)
            self.looked_at.append(len(found))
            return found

        monkeypatch.setattr(IntervalMap, "overlapping", overlapping)


def many_bindings(count: int) -> tuple[CoreStore, Regular]:
    """Of one page each, with an unbound one after it, and all in one run of frames."""
    store = CoreStore(2 * count)
    file, _ = store.bound_file("file", 2 * count)
    store.fallocate(file, 1, 0, 2 * count * PAGE_SIZE)
    for page in range(1, 2 * count, 2):
        store.gmem.unbind(file, page, 1)
    return store, file


def test_a_map_of_many_bindings_looks_no_further_than_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = many_bindings(500)
    looks = Looks(monkeypatch)
    runs = store.store.checker.map_of(file.ino, 0, 0).runs
    assert [run[0] for run in runs] == list(range(1000))
    assert [run[3] < 0 for run in runs] == [False, True] * 500
    assert max(looks.looked_at, default=0) <= 1


def test_a_punch_under_many_bindings_looks_at_one(monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = many_bindings(500)
    looks = Looks(monkeypatch)
    closing = store.gmem.invalidate_begin(file, 0, 1000, strategies.PUNCH)
    assert closing.upcall
    assert max(looks.looked_at, default=0) <= 1
    store.gmem.invalidate_end(file)
    with refused("EEXIST", "pages 0x0-0x1 bound to slot"):
        store.gmem.bind(file, 7, 0x9000, 0, 1000)
    assert max(looks.looked_at, default=0) <= 1


def test_a_bind_looks_at_no_list_of_what_was_bound_before(monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = many_bindings(500)
    for page in range(0, 1000, 2):
        store.gmem.unbind(file, page, 1)
    for page in range(0, 1000, 8):
        guest_of(file).bindings._history.drop(page, page + 1)
    looks = Looks(monkeypatch)
    store.gmem.bind(file, 1, 0x100, 0, 1000)
    assert max(looks.looked_at, default=0) <= 1


def test_what_a_vm_keeps_is_sorted_once_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = many_bindings(200)
    kept = [(page, page + 1) for page in range(0, 400, 8)][::-1]
    sorted_count = 0

    def subtract(*args: Any) -> list[tuple[int, int]]:
        nonlocal sorted_count
        sorted_count += 1
        return intervals.subtract(*args)

    monkeypatch.setattr(strategies, "subtract", subtract)
    store.gmem.invalidate_begin(file, 0, 400, strategies.SWAP_OUT)
    (export,) = store.gmem.take(file, InvalidateBeginReply(kept)) or []
    assert isinstance(export, Export)
    assert [page for page, _ in export.pages] == [page for page in range(0, 400, 2) if page % 8]
    assert all(file.pages.lookup(page) == pfn for page, pfn in export.pages)
    assert sorted_count == 1


def test_a_map_of_split_gigs_looks_at_each_part_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    gig = 1 << 18
    store = CoreStore(5 * gig, split=True)
    file = store.guest_file("file")
    store.setfattr(file, "page_size", "1G")
    store.resize(file, 4 * gig * PAGE_SIZE)
    store.fallocate(file, 1, 0, 4 * gig * PAGE_SIZE)
    for last in range(gig - 1, 4 * gig, gig):
        store.fallocate(file, PUNCH, last * PAGE_SIZE, PAGE_SIZE)
    lookups, real = 0, FilePages.lookup

    def lookup(table: FilePages, pgoff: int) -> Pfn | None:
        nonlocal lookups
        lookups += 1
        return real(table, pgoff)

    monkeypatch.setattr(FilePages, "lookup", lookup)
    runs = store.store.checker.map_of(file.ino, 0, 0).runs
    assert [(run[2], run[6]) for run in runs] == [(gig - 512, 9), (511, 0)] * 4
    assert lookups <= 4 * 512


# -- tables of all inodes


def test_a_moment_of_many_files_is_copied_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is of one moment all the same."""
    store = CoreStore(4096)
    files = [store.make(f"file{number}") for number in range(600)]
    sealed = [store.bound_file(f"sealed{number}", 4)[0] for number in range(40)]
    for file in [*files, *sealed]:
        store.fallocate(file, 1, 0, PAGE_SIZE)
    copied = 0
    real, real_few = FilePages.keep_in, FilePages.few

    def keep_in(table: FilePages, then: TablesThen) -> FilePages:
        nonlocal copied
        copied += 1
        return real(table, then)

    def few(table: FilePages) -> object:
        nonlocal copied
        copied += 1
        return real_few(table)

    monkeypatch.setattr(FilePages, "keep_in", keep_in)
    monkeypatch.setattr(FilePages, "few", few)
    moment = Moment(store.service, {file.ino for file in sealed})
    assert copied == 0
    step = 0
    while moment.copy_some():
        assert copied <= 64
        copied = 0
        store.unlink(f"file{599 - step}")
        store.fallocate(files[400 - step], PUNCH, 0, PAGE_SIZE)
        store.fault(sealed[39 - step], 1)
        step += 1
        copied = 0
    assert step > 4
    assert audit(moment, Facts()) == []
    assert len(moment.holdings) + sum(len(np.unique(inos)) for inos, _, _ in moment.small) == 640


def test_sealed_files_that_nobody_holds_are_copied_in_parts_too() -> None:
    """As they were sealed while VMs were being asked, or have a bracket that does not end."""
    store = CoreStore(4096)
    files = [store.bound_file(f"sealed{number}", 8)[0] for number in range(100)]
    for file in files:
        store.fault(file, 0, 4)
    store.gmem.invalidate_begin(files[70], 0, 8, strategies.PUNCH)
    moment, step = Moment(store.service, {files[0].ino}), 0
    assert (moment.sealed, moment.unsettled) == ([], [])
    while moment.copy_some():
        assert len(moment.sealed) + len(moment.unsettled) <= 8 * step + 8
        step += 1
        store.fault(files[99 - step], 4)
        store.fallocate(files[40 - step], PUNCH, 0, PAGE_SIZE)
        if step == 2:
            store.unlink("sealed98")
            store.release_guest(files[98])
    assert step > 10
    assert [len(moment.sealed), len(moment.unsettled)] == [1, 99]
    assert audit(moment, Facts()) == []


def test_a_moment_of_many_small_files_is_nothing_for_the_collector_of_garbage() -> None:
    """It goes through whatever has references, with all threads stopped."""
    store = CoreStore(4096)
    for number in range(2000):
        store.fallocate(store.make(f"file{number}"), 0, 0, PAGE_SIZE)
    gc.collect()
    before = len(gc.get_objects())
    moment = moment_of(store.service)
    gc.collect()
    assert len(gc.get_objects()) - before < 200
    assert sum(len(pfns) for _, _, pfns in moment.small) == 2000


def test_frames_in_many_states_are_copied_in_parts() -> None:
    """As after a punch of a page in every 2 MiB: 512 bytes for each."""
    pool = FramePool(4000 * 512)
    pool.alloc(pool.frame_count, FrameState.PRIVATE)
    for block in range(4000):
        pool.set_state(block * 512, 1, FrameState.CLOSING)
    copied, before, steps = pool.copy_states(), 0, 1
    goes_on = True
    while goes_on:
        goes_on = copied.copy_some()
        after = int(copied._is_copied.sum())
        assert before < after <= before + 1024
        before, steps = after, steps + 1
    assert (before, steps > 3) == (4000, True)


# -- swap


class CountedSlots(SwapSlots):
    """most: that were given back in one hold of Service.lock."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.held = self.most = 0

    def free(self, slots: Iterable[int]) -> None:
        freed = list(slots)
        super().free(freed)
        self.held += len(freed)
        self.most = max(self.most, self.held)


@pytest.mark.parametrize("how", ["release", "disconnect", "punch"])
def test_pages_that_are_swapped_out_end_in_parts(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = CountedSlots(20_000)

    class Counted:
        def __enter__(self) -> None:
            slots.held = 0

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(sync._PLAIN, "lock", lambda name: Counted() if name == "Service.lock" else threading.Lock())
    store = CoreStore(64)
    store.service.slots = store.service.gmem._slots = slots
    file, guest = store.bound_file("file", 20_000)
    for page in reversed(range(20_000)):
        guest.absent.put_swapped(page, slots.alloc())
    assert store.audit() == []
    if how == "punch":
        store.fallocate(file, PUNCH, 0, 20_000 * PAGE_SIZE)
    elif how == "release":
        store.release_guest(file)
    else:
        store.perform(store.gmem.disconnect(file))
    assert (slots.used, guest.absent.count, store.gmem.slot_returns) == (0, 0, [])
    assert slots.most <= 1024
    assert store.audit() == []


def test_slots_on_their_way_back_are_accounted_for() -> None:
    store, slots = CoreStore(64), SwapSlots(20_000)
    store.service.slots = store.service.gmem._slots = slots
    file, guest = store.bound_file("file", 20_000)
    for page in range(20_000):
        guest.absent.put_swapped(page, slots.alloc())
    before = Moment(store.service, {file.ino})
    effects = store.gmem.disconnect(file)
    assert 0 < slots.used < 20_000
    assert store.audit() == []
    while before.copy_some():
        pass
    assert audit(before, Facts()) == []
    store.perform(effects)
    assert slots.used == 0


def test_a_name_is_found_without_looking_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    store = CoreStore(64)
    inner = store.mkdir("outer")
    inner = store.mkdir("inner", parent=inner)
    file = store.make("file", parent=inner)
    store.service.rename(inner, b"file", inner, b"other", 0, store.tick(), ME)
    monkeypatch.setattr(type(store.service.inodes), "__iter__", lambda _: pytest.fail("all inodes were visited"))
    assert store.names.name_of(file) == b"outer/inner/other"
    store.unlink("other", parent=inner)
    assert store.names.name_of(file) == b""


def test_of_a_long_path_only_the_end_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anyone may make one that is longer than Python's stack."""
    store = CoreStore(64)
    parent = ROOT_INO
    for _ in range(2000):
        parent = store.mkdir("d", parent=parent)
    file = store.make("file", parent=parent)
    store.seal(file)
    looks, real = 0, store.service.inodes.find

    def find(ino: int) -> Inode | None:
        nonlocal looks
        looks += 1
        return real(ino)

    monkeypatch.setattr(store.service.inodes, "find", find)
    assert store.names.name_of(file) == (b"d/" * 2000 + b"file")[-NAME_MAX:]
    assert looks <= NAME_MAX
    (report,) = store.store.checker.files().files
    assert report.name == store.names.name_of(file)


def test_nobody_looks_at_every_inode_to_find_the_sealed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    store = CoreStore(64)
    sealed = [store.guest_file(f"sealed{n}") for n in range(3)]
    for n in range(3):
        store.make(f"plain{n}")
    monkeypatch.setattr(
        type(store.service.inodes), "__iter__", lambda _: pytest.fail("all inodes were visited"), raising=True
    )
    assert store.service.inodes.sealed_files() == sealed
    assert store.service.counts()["lookups"] == 6
    store.unlink("sealed1")
    store.perform(store.service.forget(sealed[1].ino, sealed[1].lookups))
    assert store.service.inodes.sealed_files() == [sealed[0], sealed[2]]
    assert store.service.counts()["lookups"] == 5
