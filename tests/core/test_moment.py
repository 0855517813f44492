"""What the audit looks at is of one moment: the store goes on, the copies do not."""

import pytest

from memfsd.core.audit import Facts, audit
from memfsd.core.files.inodes import ROOT_INO
from memfsd.core.gmem import guest_of
from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.page_table import FilePages
from memfsd.core.moment import Moment, moment_of
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import PAGE_SIZE
from tests.support.core_store import PUNCH, RDWR, CoreStore

P = PAGE_SIZE
SCATTERED = 8 * 512


def held_in(moment: Moment) -> list[object]:
    held = [(holding.ino, list(holding.pages.extents(0, 1024))) for holding in moment.holdings]
    return [held, [list(guest_of(file).bindings) for file in moment.sealed]]


def test_the_store_goes_on_and_the_moment_does_not() -> None:
    store = CoreStore(pages=2048)
    ordinary = store.make("ordinary")
    handle = store.open(ordinary, RDWR)
    store.write(handle, 0, b"x" * 3 * P)
    file, _ = store.bound_file("sealed", 1024, gfn=0x1000)
    for pgoff in (0, 2, 9):
        store.fault(file, pgoff, 512)
    moment = moment_of(store.service)
    before = held_in(moment)
    store.write(handle, 3 * P, b"x" * 9 * P)
    for pgoff in range(300, 900):
        store.fault(file, pgoff, 512)
    store.fallocate(file, PUNCH, 0, 10 * P)
    store.gmem.unbind(file, 0, 100)
    store.gmem.disconnect(file)
    assert audit(moment, Facts()) == []
    assert held_in(moment) == before
    assert audit(moment_of(store.service), Facts()) == []


def test_a_moment_is_made_in_steps_of_512_pages_not_of_extents() -> None:
    """Each second page of 8 chunks: 2048 extents. None of them is looked at while the lock is held."""
    store = CoreStore(pages=2 * SCATTERED)
    file = store.guest_file("file", SCATTERED)
    store.pair(file)
    for pgoff in range(0, SCATTERED, 2):
        store.fallocate(file, 0, pgoff * P, P)
    calls = 0

    def counted(*_: object) -> None:
        nonlocal calls
        calls += 1

    with pytest.MonkeyPatch.context() as patch:
        for name in ("states", "state", "tally"):
            patch.setattr(FramePool, name, counted)
        for name in ("extents", "frames", "run_at", "lookup"):
            patch.setattr(FilePages, name, counted)
        moment = moment_of(store.service)
    assert calls == 0
    assert audit(moment, Facts()) == []


@pytest.mark.parametrize("drop", [1500, 2999, 5000])
def test_files_come_and_go_while_they_are_copied(drop: int) -> None:
    """More than a step looks at, with numbers that are nobody's among them; what goes before its turn is seen as it
    was."""
    store = CoreStore(pages=8192)
    for number in range(3000):
        file = store.make(f"file{number}")
        if number % 3 == 0 or 1000 < number < 2500:
            store.fallocate(file, 0, 0, P)
    for number in range(1001, 2400):
        store.unlink(f"file{number}")
    store.forget_all()
    moment, step = Moment(store.service, set()), 0
    before = store.pool.count(FrameState.SHARED)
    while moment.copy_some():
        for number in range(step, 6000, 97):
            if f"file{number}".encode() in store.service.inodes.directory(ROOT_INO).entries:
                store.unlink(f"file{number}")
        if step == 3:
            for number in range(3000, 3000 + drop):
                store.fallocate(store.make(f"file{number}"), 0, 0, P)
        store.forget_all()
        step += 1
    assert step > 10
    assert audit(moment, Facts()) == []
    assert sum(len(pfns) for _, _, pfns in moment.small) == before
    assert store.service.inodes._watchers == []
    assert audit(moment_of(store.service), Facts()) == []


def test_a_frame_of_two_small_files_is_found() -> None:
    store = CoreStore(pages=64)
    one, other = store.make("one"), store.make("other")
    for file in (one, other):
        store.fallocate(file, 0, 0, P)
    pfn = other.pages.unmap(0, 1)[0][1]
    other.pages.map_run(0, one.pages.extents(0, 1).__next__()[1], 1)
    found = [text for rule, text in audit(moment_of(store.service), Facts()) if rule == "R1"]
    assert found == [f"frame {pfn - 1:#x} belongs to inodes {one.ino} and inode {other.ino}"]
