"""Truncating or punching an ordinary file of very many extents, part by part."""

import pytest

from memfsd.core.effects import Cut, Effect
from memfsd.core.files.inodes import Regular
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE, PGOFF_END
from tests.support.core_store import KEEP_SIZE, PUNCH, CoreStore, refused

CHUNK = 512
PAGES = 8 * CHUNK
KEPT = 2 * CHUNK + 6
MOST_RUNS = 64


@pytest.fixture
def store() -> CoreStore:
    return CoreStore(PAGES)


def begun(store: CoreStore, file: Regular, what: str) -> Cut:
    effects: list[Effect]
    if what == "truncate":
        effects, _ = store.service.resize(file.ino, KEPT * PAGE_SIZE, store.tick())
    else:
        length = (PAGES - KEPT) * PAGE_SIZE
        effects, _ = store.service.fallocate(file.ino, PUNCH, KEPT * PAGE_SIZE, length, store.tick())
    (cut,) = effects
    assert isinstance(cut, Cut)
    return cut


def step(store: CoreStore, cut: Cut) -> int:
    """How many runs it took; -1: it is done."""
    scrubs = store.service.cut(cut)
    if scrubs is None:
        return -1
    assert store.audit() == []
    store.perform(scrubs)
    return sum(len(scrub.runs) for scrub in scrubs)


@pytest.mark.parametrize("what", ["truncate", "punch"])
def test_pages_leave_in_parts_and_then_the_size_changes(store: CoreStore, what: str) -> None:
    file = store.comb(PAGES)
    cut = begun(store, file, what)
    parts = list[int]()
    while (runs := step(store, cut)) >= 0:
        parts.append(runs)
        assert file.size == PAGES * PAGE_SIZE
    assert (sum(parts), max(parts) <= MOST_RUNS, len(parts) > 8) == ((PAGES - KEPT) // 2, True, True)
    assert file.pages.page_count == KEPT // 2
    assert file.pages.next_data(KEPT) is None
    assert file.size == (KEPT if what == "truncate" else PAGES) * PAGE_SIZE
    assert store.pool.free_count == PAGES - KEPT // 2
    assert store.service.data.cuts == {}


def test_what_is_stored_meanwhile_is_truncated_too(store: CoreStore) -> None:
    """Nothing of it may show up when the file grows again."""
    file = store.comb(PAGES)
    cut = begun(store, file, "truncate")
    handle = store.open(file)
    for _ in range(3):
        step(store, cut)
        store.write(handle, (KEPT + 4) * PAGE_SIZE, b"late")
    store.perform([cut])
    assert (file.size, file.pages.next_data(KEPT)) == (KEPT * PAGE_SIZE, None)
    store.resize(file, PAGES * PAGE_SIZE)
    assert store.read(handle, (KEPT + 4) * PAGE_SIZE, 4) == bytes(4)


def test_a_file_that_is_sealed_meanwhile_is_left_alone(store: CoreStore) -> None:
    file = store.comb(PAGES)
    cut = begun(store, file, "truncate")
    step(store, cut)
    store.seal(file, Seal.GUEST, truncate=True)
    store.resize(file, PAGES * PAGE_SIZE)
    store.fallocate(file, KEEP_SIZE, 0, PAGES * PAGE_SIZE)
    store.perform([cut])
    assert (file.size, file.pages.page_count) == (PAGES * PAGE_SIZE, PAGES)
    assert store.audit() == []


@pytest.mark.parametrize("seal", [Seal.WRITE, Seal.SHRINK])
def test_a_seal_waits_until_the_pages_are_gone(store: CoreStore, seal: Seal) -> None:
    """Nothing may change once it is there."""
    file = store.comb(PAGES)
    cut = begun(store, file, "truncate")
    step(store, cut)
    with refused("EBUSY", "being truncated"):
        store.seal(file, seal)
    store.perform([cut])
    store.seal(file, seal)
    assert file.size == KEPT * PAGE_SIZE


def test_a_file_that_is_removed_meanwhile_has_nothing_to_lose(store: CoreStore) -> None:
    file = store.comb(PAGES)
    cut = begun(store, file, "punch")
    step(store, cut)
    store.unlink("comb")
    store.perform([cut])
    assert store.pool.free_count == PAGES
    assert store.pool.count(FrameState.CLOSING) == 0


def test_a_truncation_to_nothing_is_one_step(store: CoreStore) -> None:
    file = store.comb(PAGES)
    effects, _ = store.service.resize(file.ino, 0, store.tick())
    assert (file.size, file.pages.page_count, file.pages.next_data(0)) == (0, 0, None)
    store.perform(effects)
    assert store.pool.free_count == PAGES
    assert not file.pages.is_long(0, PGOFF_END)


def test_a_page_that_fails_while_others_are_cut_off_is_cut_off(store: CoreStore) -> None:
    file = store.comb(PAGES)
    cut = begun(store, file, "truncate")
    store.store.failures.poison(file.ino, PAGES - 2)
    store.perform([cut])
    assert (file.size, file.failed) == (KEPT * PAGE_SIZE, frozenset())
    handle = store.open(file)
    assert store.write(handle, (PAGES - 2) * PAGE_SIZE, b"again") == 5
