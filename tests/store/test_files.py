"""The use cases of files: what changes together, and what is left to be done outside the lock."""

import errno
import os

import pytest

from memfsd.core.files.inodes import ROOT_INO, Changes
from memfsd.core.files.ordinary import IoVec
from memfsd.store.invalidator import VmWork
from memfsd.store.seeking import Hole
from memfsd.uapi.messages import Kind
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE
from tests.support.core_store import ME, CoreStore, refused

P = PAGE_SIZE


def test_a_punch_is_done_when_its_work_is(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 8)
    pfn = store.fault(file, 3).pfn
    work = store.store.files.punch(file.ino, 0, 8 * P)
    assert file.pages.lookup(3) == pfn, "nothing is taken while the lock is held"
    work.run()
    assert file.pages.lookup(3) is None
    assert (file.ino, pfn) not in store.memory
    assert store.vm_of(file).calls == [Kind.INVALIDATE_BEGIN, Kind.INVALIDATE_END]
    assert guest.seq == 1


@pytest.mark.parametrize("bound", [True, False])
def test_a_punch_sets_mtime_and_ctime_to_when_it_was_asked_for(store: CoreStore, bound: bool) -> None:
    file = store.bound_file("file", 8)[0] if bound else store.guest_file("file", 8)
    work = store.store.files.punch(file.ino, 0, P)
    asked = store.now
    store.tick()
    work.run()
    assert (file.mtime_ns, file.ctime_ns) == (asked, asked)


def test_a_shrink_sets_size_and_times_as_the_invalidation_ends() -> None:
    store = CoreStore(resize_any=True)
    file, _ = store.bound_file("file", 8)
    before = file.mtime_ns
    work = store.store.files.truncate(file.ino, 4 * P)
    asked = store.now
    assert (file.size, file.mtime_ns) == (8 * P, before), "not before its VM has let go"
    work.run()
    assert (file.size, file.mtime_ns, file.ctime_ns) == (4 * P, asked, asked)


def test_a_reclaim_changes_no_times(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 32)
    for pgoff in (0, 1, 3):
        store.fault(file, pgoff, 32)
    times = file.mtime_ns, file.ctime_ns
    assert store.store.reclaimer.reclaim()
    assert (file.mtime_ns, file.ctime_ns) == times


def test_a_punch_past_the_end_and_an_allocation_leave_no_work_for_a_vm(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 8)
    for work in (store.store.files.punch(file.ino, 8 * P, P), store.store.files.allocate(file.ino, 0, P)):
        assert not isinstance(work, VmWork)
        assert work.is_quick
        work.run()
    assert store.vm_of(file).calls == []


def test_an_unpunched_file_is_refused_before_there_is_work(store: CoreStore) -> None:
    file = store.guest_file("file", 8)
    with refused("EINVAL"):
        store.store.files.punch(file.ino, 1, P)


def test_attributes_are_a_value(store: CoreStore) -> None:
    file = store.guest_file("file", 8)
    before = store.store.files.getattr(file.ino)
    store.store.files.allocate(file.ino, 0, 2 * P).run()
    assert (before.is_sealed, before.block_count) == (True, 0)
    assert store.store.files.getattr(file.ino).block_count == 16


def test_setattr_that_changes_nothing_is_chown_of_nothing_or_the_rest_of_a_truncate(store: CoreStore) -> None:
    file = store.make("file")
    before = file.ctime_ns
    assert store.store.files.setattr(file.ino, Changes(), ME.uid, resized=True).ctime_ns == before
    assert store.store.files.setattr(file.ino, Changes(), ME.uid + 1).ctime_ns == before
    assert store.store.files.setattr(file.ino, Changes(), ME.uid).ctime_ns > before
    assert store.store.files.setattr(file.ino, Changes(mode=0o600), ME.uid + 1).mode & 0o777 == 0o600


def test_what_is_opened_says_how_it_may_be_cached(store: CoreStore) -> None:
    files = store.store.files
    opened, shown = files.create(1, b"file", 0o600, os.O_RDWR, ME)
    assert (opened.seals, opened.seems_empty, shown.size) == (Seal(0), False, 0)
    files.truncate(shown.ino, P).run()
    assert files.open(shown.ino, os.O_RDWR, ME.uid)[0].seems_empty
    assert files.opener(opened.handle) == (shown.ino, ME.uid)
    sealed = store.guest_file("sealed", 1)
    assert files.open(sealed.ino, os.O_WRONLY, ME.uid)[0].seals & Seal.GUEST


def test_a_write_that_finds_no_room_says_so_by_its_length() -> None:
    store = CoreStore(pages=2)
    handle = store.open(store.make("file"))
    assert store.store.files.write(handle, 0, bytes(3 * P)) == 2 * P
    assert store.store.files.write(handle, 2 * P, b"x") == 0


def test_seals_are_those_of_regular_files(store: CoreStore) -> None:
    assert store.store.files.seals(store.mkdir("d")) is None
    file = store.make("file")
    assert store.store.files.seals(file.ino) == Seal(0)
    store.store.files.add_seals(file.ino, Seal.GUEST).run()
    assert store.store.files.seals(file.ino) == file.seals
    assert store.forgotten == [file.ino], "the kernel forgets what it cached"


def test_counts_of_the_root_name_what_is_held(store: CoreStore) -> None:
    counts = dict(part.split("=") for part in store.store.files.getxattr(1, b"user.memfsd.counts").decode().split())
    assert counts["windows"] == "0"
    assert {"inodes", "handles", "lookups", "fds", "threads"} <= counts.keys()


def test_a_hole_that_a_mapping_may_have_filled_is_written_back_before_lseek_answers(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    store.resize(file, 4 * P)
    files = store.store.files
    seeking = files.seek(file.ino, 0, os.SEEK_DATA)
    assert seeking.step()
    assert seeking.answer(0) == Hole(0, 4 * P, 0)
    assert files.room_to_write_back(file.ino) == 32 * P
    files.keep_cached(handle)
    assert files.room_to_write_back(file.ino) == 0
    with refused("ENXIO"):
        seeking.answer(4 * P)


def test_what_is_asked_of_a_file_and_its_handle(store: CoreStore) -> None:
    files, file = store.store.files, store.make("file")
    handle = store.open(file)
    assert files.opener(handle) == (file.ino, ME.uid)
    store.write(handle, 0, b"bytes")
    assert store.read(handle, 0, 5) == b"bytes"
    assert files.getattr(file.ino).size == 5
    assert files.setattr(file.ino, Changes(mode=0o6755), ME.uid).mode & 0o7777 == 0o6755
    assert (files.clear_setid(file.ino), files.clear_setid(file.ino)) == (True, False)
    files.clear_setid_by_chown(file.ino, ME.uid, lambda gid: True, changes=False)
    files.setxattr(file.ino, b"user.name", b"value").run()
    assert files.listxattr(file.ino) == [b"user.name"]
    files.removexattr(file.ino, b"user.name")
    assert files.listxattr(file.ino) == []
    assert files.seals(file.ino) is not None
    assert files.space().free_frames == store.pool.free_count
    assert files.room_to_write_back(file.ino) > 0
    files.keep_cached(handle)
    assert files.room_to_write_back(file.ino) == 0
    store.close(handle)


def test_what_a_mapping_stored_is_surely_taken_only_as_far_as_any_node_has_room() -> None:
    store = CoreStore(16, nodes=2)
    file = store.make("file")
    store.setfattr(file, "numa", "bind:1")
    store.fallocate(file, 0, 0, 6 * P)
    assert store.store.files.room_to_write_back(file.ino) == P


def test_whatever_stat_shows_of_a_sealed_file_changes_its_state(store: CoreStore) -> None:
    """What was made for the kernel before is shown again while the state is the same."""
    file, files = store.guest_file("file", 8), store.store.files
    before = files.sealed_state(file.ino), files.getattr(file.ino)
    for change in (
        lambda: files.setattr(file.ino, Changes(mode=0o640), 0),
        lambda: files.setattr(file.ino, Changes(uid=7), 0),
        lambda: files.setattr(file.ino, Changes(gid=8), 0),
        lambda: files.setattr(file.ino, Changes(atime_ns=9, ctime_ns=file.ctime_ns), 0),
        lambda: files.setattr(file.ino, Changes(mtime_ns=9, ctime_ns=file.ctime_ns), 0),
        lambda: store.store.names.link(file.ino, ROOT_INO, b"other", 7),
        lambda: files.allocate(file.ino, 0, P).run(),
        lambda: files.punch(file.ino, 0, P).run(),
    ):
        change()
        after = files.sealed_state(file.ino), files.getattr(file.ino)
        assert before[0] != after[0]
        assert before[1] != after[1]
        before = after
    assert before == (files.sealed_state(file.ino), files.getattr(file.ino))
    assert files.sealed_state(store.make("ordinary").ino) is None
    assert files.sealed_state(ROOT_INO) is files.sealed_state(99) is None


def test_a_write_in_place_is_over_before_its_frames_can_be_freed(
    store: CoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large punch frees frames on another thread: what is written after that, the next owner would read."""
    files, write, held = store.store.files, store.windows.write, list[bool]()

    def watched(plan: IoVec, data: bytes | memoryview) -> int:
        held.append(store.service.lock.locked())
        return write(plan, data)

    monkeypatch.setattr(store.windows, "write", watched)
    handle = store.open(store.make("file"), os.O_RDWR)
    assert files.write(handle, 0, b"first") == 5
    assert files.write_in_place(handle, 0, memoryview(b"again")) == 5
    assert files.read(handle, 0, 5) == b"again"
    assert held == [True, True]


def test_a_write_in_place_to_a_sealed_file_is_refused(store: CoreStore) -> None:
    file = store.guest_file("file", 8)
    handle = store.open(file, os.O_WRONLY)
    assert store.store.files.write_in_place(handle, 0, memoryview(bytes(P))) == -errno.EPERM
    with refused("EPERM"):
        store.store.files.write(handle, 0, b"x")
    with refused("EBADF"):
        store.store.files.write_in_place(99, 0, memoryview(b"x"))
