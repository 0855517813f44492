"""Pages that leave to the swap file and come back: with their contents, or not at all."""

import errno
import os
from pathlib import Path

import pytest

from kvmsim.kvm.exits import MemoryErrorExit
from kvmsim.kvm.tampering import tamper
from kvmsim.store.link import StoreLink
from memfsd.uapi import messages as m
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import SWAP_BLOB_BYTES
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import PAGE_SIZE, Gfn, Pfn, Pgoff
from tests.support.both_sides import LocalStore, LocalVm, errno_of, opened_store, page
from tests.support.swapped import PAGES, SECRET, absent_pages, assert_intact, blob, content, put_blob, slot_of, start


@pytest.fixture
def running(swapping_store: LocalStore) -> LocalVm:
    """16 private pages at GPA 0, each with contents of its own."""
    return start(swapping_store)


# -- out and in


def test_a_page_that_was_swapped_out_comes_back_with_its_contents(swapping_store: LocalStore, running: LocalVm) -> None:
    store, slots = swapping_store, swapping_store.service.slots
    free = store.free_count
    assert store.page_out("file") == PAGES
    assert (store.free_count, slots.used, slots.out_count) == (free + PAGES, PAGES, PAGES)
    assert store.windows.populated_count(store.file("file").ino) == 0, "nothing is left in the window"
    assert store.findings() == []
    assert_intact(running)
    assert (store.free_count, slots.used, slots.in_count) == (free, 0, PAGES)


def test_pages_that_follow_come_back_with_the_one_that_was_touched(
    swapping_store: LocalStore, running: LocalVm
) -> None:
    swapping_store.page_out("file")
    running.read(page(4), 1)
    assert swapping_store.service.slots.in_count == 8
    assert absent_pages(swapping_store.guest("file").absent) == [0, 1, 2, 3, 12, 13, 14, 15]


def test_pages_go_out_again_and_again(swapping_store: LocalStore, running: LocalVm) -> None:
    for _ in range(3):
        assert swapping_store.page_out("file", 3, 10) == 10
        assert_intact(running)
    assert swapping_store.service.slots.used == 0


def test_what_was_never_written_takes_no_slot(swapping_store: LocalStore) -> None:
    swapping_store.create("file", PAGES)
    local = swapping_store.vm()
    local.private_slot(0, 0, page(PAGES), "file")
    swapping_store.allocate("file", 0, PAGES)
    local.write(page(5), b"x")
    swapping_store.page_out("file")
    assert swapping_store.service.slots.used == 1
    assert swapping_store.windows.populated_count(swapping_store.file("file").ino) == 0
    assert local.read(page(5), 1) == b"x"
    assert local.read(page(6), 1) == b"\0"


def test_the_swap_file_has_nothing_that_the_guest_wrote(swapping_store: LocalStore, running: LocalVm) -> None:
    swapping_store.page_out("file")
    data = Path(swapping_store.swap_path).read_bytes()
    assert len(data.strip(b"\0")) > PAGES * PAGE_SIZE
    assert SECRET not in data
    assert SECRET[4:20] not in data


# -- blobs that are not what left


def assert_refused(local: LocalVm, number: int) -> None:
    got = local.read(page(number), 1)
    assert isinstance(got, MemoryErrorExit)
    assert (got.errno, got.gpa, got.private) == (errno.EBADMSG, page(number), True)


def test_an_altered_blob_is_refused_and_the_page_stays_out(swapping_store: LocalStore, running: LocalVm) -> None:
    store = swapping_store
    store.page_out("file")
    other = start(store, "other", "vm1", 4)
    slot = slot_of(store, 7)
    good = blob(store, slot)
    put_blob(store, slot, good[:100] + bytes([good[100] ^ 1]) + good[101:])
    free = store.free_count
    assert_refused(running, 7)
    assert_refused(running, 7)
    assert slot_of(store, 7) == slot
    assert (store.free_count, store.count(FrameState.MOVING), store.count(FrameState.CLOSING)) == (free, 0, 0)
    assert store.findings() == []
    assert_intact(other, 4)
    assert running.read(page(6), PAGE_SIZE) == content(6), "the page before it, which would bring it along"
    put_blob(store, slot, good)
    assert_intact(running)


def test_a_blob_of_another_page_is_refused(swapping_store: LocalStore, running: LocalVm) -> None:
    swapping_store.page_out("file")
    first, second = slot_of(swapping_store, 2), slot_of(swapping_store, 3)
    one, two = blob(swapping_store, first), blob(swapping_store, second)
    put_blob(swapping_store, first, two)
    put_blob(swapping_store, second, one)
    assert_refused(running, 2)
    assert_refused(running, 3)


def test_a_blob_of_another_vm_is_refused(swapping_store: LocalStore, running: LocalVm) -> None:
    other = start(swapping_store, "other", "vm1", 4)
    swapping_store.page_out("file")
    swapping_store.page_out("other")
    put_blob(swapping_store, slot_of(swapping_store, 2), blob(swapping_store, slot_of(swapping_store, 2, "other")))
    assert_refused(running, 2)
    assert_intact(other, 4)


def test_a_blob_of_an_older_time_is_refused(swapping_store: LocalStore, running: LocalVm) -> None:
    swapping_store.page_out("file", 5, 1)
    old = blob(swapping_store, slot_of(swapping_store, 5))
    running.write(page(5), b"newer")
    swapping_store.page_out("file", 5, 1)
    put_blob(swapping_store, slot_of(swapping_store, 5), old)
    assert_refused(running, 5)


def test_a_store_that_grants_another_frame_in_place_of_what_left_is_refused(
    swapping_store: LocalStore, running: LocalVm
) -> None:
    """It would show zeros, where the guest had data."""
    swapping_store.is_broken = True
    swapping_store.page_out("file", 5, 1)
    with swapping_store.service.lock:
        swapping_store.guest("file").absent.take(5, 6)
    assert_refused(running, 5)


def test_a_page_that_is_not_out_is_not_taken_in(swapping_store: LocalStore, running: LocalVm) -> None:
    link = running.link()
    blobs = [bytes(SWAP_BLOB_BYTES)]
    assert errno_of(running.kvm.notifier.on_swap_in, link, 3, 3, blobs) == "EBADMSG"
    assert errno_of(running.kvm.notifier.on_swap_in, link, 3, 1 << 20, blobs) == "EINVAL"


def test_only_what_an_open_invalidation_has_blocked_goes_out(swapping_store: LocalStore, running: LocalVm) -> None:
    link = running.link()
    frame = swapping_store.file("file").pages.lookup(3)
    assert frame is not None
    out = running.kvm.notifier.on_swap_out
    assert out(link, [(Pgoff(3), frame)]) == ([b""], [])
    running.kvm.notifier.on_begin(link, m.InvalidateBegin(0, 4, 0, m.Reason.SWAP_OUT))
    try:
        assert errno_of(out, link, [(3, frame + 1)]) == "EINVAL"
        assert errno_of(out, link, [(3, frame), (3, frame)]) == "EINVAL"
        assert out(link, [(Pgoff(9), frame)]) == ([b""], []), "outside the bracket"
        assert out(link, [(Pgoff(99), frame)]) == ([b""], []), "not bound"
    finally:
        running.kvm.notifier.on_end(link, m.InvalidateEnd(0, 4, 0))
    assert_intact(running)


# -- what takes pages back that are out


def test_a_punch_of_a_page_that_is_out_leaves_zeros_and_gives_the_slot_back(
    swapping_store: LocalStore, running: LocalVm
) -> None:
    swapping_store.page_out("file")
    swapping_store.punch("file", 4, 3)
    assert swapping_store.service.slots.used == PAGES - 3
    assert running.read(page(5), PAGE_SIZE) == bytes(PAGE_SIZE)
    assert running.read(page(7), PAGE_SIZE) == content(7)


def test_a_vm_that_ends_gives_its_slots_back(swapping_store: LocalStore, running: LocalVm) -> None:
    swapping_store.page_out("file")
    running.close()
    assert swapping_store.service.slots.used == 0


def test_a_vm_that_is_cut_off_gives_its_slots_back(swapping_store: LocalStore, running: LocalVm) -> None:
    swapping_store.page_out("file", 0, 8)
    swapping_store.hang_up("file")
    assert swapping_store.service.slots.used == 0
    assert swapping_store.count(FrameState.QUARANTINED) == PAGES - 8


def test_a_slot_that_is_deleted_destroys_what_is_out(swapping_store: LocalStore, running: LocalVm) -> None:
    """As it destroys what is not: the pages read as zeros when the slot is there again."""
    swapping_store.page_out("file", 0, 8)
    running.kvm.slots.punch_slot(0, page(2), page(4))
    running.kvm.slots.fill_slot(0, Gfn(2), Gfn(6))
    assert running.read(page(3), PAGE_SIZE) == bytes(PAGE_SIZE)
    assert running.read(page(6), PAGE_SIZE) == content(6)
    assert swapping_store.page_out("file") > 0
    assert running.read(page(3), PAGE_SIZE) == bytes(PAGE_SIZE)


def test_fallocate_leaves_pages_alone_that_are_out(swapping_store: LocalStore, running: LocalVm) -> None:
    swapping_store.page_out("file")
    swapping_store.allocate("file", 0, PAGES)
    assert_intact(running)


def test_a_page_under_an_overlay_goes_out_and_comes_back(swapping_store: LocalStore, running: LocalVm) -> None:
    running.kvm.blocking.set_overlay(True)
    running.shared_slot(5, page(4), page(2))
    assert swapping_store.page_out("file") == PAGES
    assert running.write(page(4), b"shared", shared=True) is None
    running.delete(5, private=False)
    assert_intact(running)


# -- a pool that is too small


def test_a_vm_that_is_larger_than_the_pool_runs_to_its_end(swapping_store: LocalStore) -> None:
    """64 pages of a VM in 32 frames, twice over."""
    local = start(swapping_store, pages=64)
    assert_intact(local, 64)
    for number in range(0, 64, 7):
        assert local.write(page(number), b"again") is None
    assert_intact_but(local)
    assert swapping_store.findings() == []


def assert_intact_but(local: LocalVm) -> None:
    for number in range(64):
        expected = content(number) if number % 7 else b"again" + content(number)[5:]
        assert local.read(page(number), PAGE_SIZE) == expected, number


def test_pages_in_use_stay_when_others_were_not_used_for_longer(swapping_store: LocalStore) -> None:
    """Those that the guest goes back to all the time are brought in again less often than those of a scan."""
    local = start(swapping_store, pages=64)
    slots = swapping_store.service.slots
    came = 0
    for number in range(60):
        assert local.read(page(number), 1) is not None
        before = slots.in_count
        for hot in range(60, 64):
            assert local.read(page(hot), 1) == content(hot)[:1]
        came += slots.in_count - before
    assert came < 60


def test_two_vms_share_a_pool_that_is_too_small(swapping_store: LocalStore) -> None:
    one, two = start(swapping_store, pages=24), start(swapping_store, "other", "vm1", 24)
    for _ in range(2):
        assert_intact(one, 24)
        assert_intact(two, 24)


def test_many_vms_together_are_larger_than_the_pool(swapping_store: LocalStore, running: LocalVm) -> None:
    others = [start(swapping_store, f"file{number}", f"vm{number}", 8) for number in range(1, 5)]
    for local in others:
        assert_intact(local, 8)
    assert_intact(running)


def test_a_pool_and_a_swap_file_that_are_full_are_enospc(tmp_path: Path) -> None:
    with opened_store(tmp_path, 16, swap_pages=8) as store:
        store.create("file", 64)
        local = store.vm()
        local.private_slot(0, 0, page(64), "file")
        done = 0
        while (exit_ := local.write(page(done), content(done))) is None:
            done += 1
        assert isinstance(exit_, MemoryErrorExit)
        assert (exit_.errno, done) == (errno.ENOSPC, 24)
        assert "no room for another frame: 0 of 16 are free" in exit_.why
        assert "the swap file is full (8 pages)" in exit_.why
        assert_intact_until(store, local, done)


def assert_intact_until(store: LocalStore, local: LocalVm, done: int) -> None:
    """With no slot and no frame to spare, what is out cannot come in; what is in can be read."""
    out = absent_pages(store.guest("file").absent)
    for number in range(done):
        if number not in out:
            assert local.read(page(number), PAGE_SIZE) == content(number)
    store.punch("file", 0, 8)
    for number in range(8, done):
        assert local.read(page(number), PAGE_SIZE) == content(number), number


# -- files and VMs that refuse


def test_a_disk_that_is_full_leaves_the_page_where_it_is(
    swapping_store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, room = os.pwrite, [5]

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= 1
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert swapping_store.page_out("file") == 5
    assert swapping_store.service.slots.failed_count == PAGES - 5
    assert swapping_store.service.slots.used == 5
    assert errno_of(swapping_store.page_out, "file") == "ENOSPC"
    monkeypatch.undo()
    assert_intact(running)


def test_a_swap_file_that_was_truncated_is_eio_of_that_page(swapping_store: LocalStore, running: LocalVm) -> None:
    swapping_store.page_out("file")
    os.truncate(swapping_store.swap_path, 4096)
    got = running.read(page(3), 1)
    assert isinstance(got, MemoryErrorExit)
    assert got.errno == errno.EIO
    assert swapping_store.count(FrameState.MOVING) == 0


def test_a_kvm_without_the_operations_keeps_its_pages(swapping_store: LocalStore) -> None:
    local = start(swapping_store, operations=m.KVM_OPERATIONS - {Kind.SWAP_OUT})
    assert errno_of(swapping_store.page_out, "file") == "EOPNOTSUPP"
    assert not swapping_store.reclaim()
    assert_intact(local)
    assert swapping_store.service.slots.failed_count == 0, "it was not asked"


def test_what_cannot_be_swapped_out_says_why(swapping_store: LocalStore, running: LocalVm) -> None:
    ino = swapping_store.file("file").ino
    assert errno_of(swapping_store.store.swapper.page_out, ino, 0, 4, 1234, 0) == "EACCES"
    swapping_store.create("unpaired", 4)
    assert errno_of(swapping_store.page_out, "unpaired") == "ENOTCONN"
    swapping_store.create("large", 512, page_size="2M")
    assert errno_of(swapping_store.page_out, "large") == "EOPNOTSUPP"


def test_a_mount_without_swap(store: LocalStore) -> None:
    start(store)
    assert errno_of(store.page_out, "file") == "EOPNOTSUPP"
    assert errno_of(store.store.swapoff.swap_off) == "EOPNOTSUPP"


# -- with what else happens to pages


def test_pages_that_came_back_move_and_leave_again(tmp_path: Path, encrypted: bool) -> None:
    """Also those that came along, and that no vCPU has touched since."""
    with opened_store(tmp_path, 64, nodes=2, encrypted=encrypted, swap_pages=64) as store:
        local = start(store)
        for node in (1, 0, 1):
            assert store.page_out("file") == PAGES
            assert store.move("file", [3], node) == [-errno.ENOENT], "it is nowhere"
            local.read(page(2), 1)
            assert store.move("file", range(2, 10), node) == [node] * 8
            assert store.findings() == []
            assert store.page_out("file", 4, 4) == 4
            assert_intact(local)


def test_a_page_that_is_out_cannot_fail(swapping_store: LocalStore, running: LocalVm) -> None:
    swapping_store.page_out("file")
    ino = swapping_store.file("file").ino
    assert errno_of(swapping_store.store.failures.poison, ino, Pgoff(3)) == "ENXIO"
    assert_intact(running)


# -- a page that cannot leave


@pytest.fixture
def one_bad_page(running: LocalVm, monkeypatch: pytest.MonkeyPatch) -> LocalVm:
    """KVM refuses to give page 6 out."""
    real = running.kvm.notifier.on_swap_out

    def refuses(link: StoreLink, pages: list[tuple[Pgoff, Pfn]]) -> tuple[list[bytes], list[Pgoff]]:
        if any(pgoff == 6 for pgoff, _ in pages):
            raise Refused(errno.EIO, "a page cannot be read")
        return real(link, pages)

    monkeypatch.setattr(running.kvm.notifier, "on_swap_out", refuses)
    return running


def test_a_page_that_is_refused_keeps_no_other_in_memory(swapping_store: LocalStore, one_bad_page: LocalVm) -> None:
    store = swapping_store
    done = store.store.swapper.page_out(store.file("file").ino, 0, PAGES, 0, 0)
    assert (done.page_count, done.stayed, done.next_pgoff) == (PAGES - 1, 1, -1)
    assert done.why is not None
    assert done.why.errno == errno.EIO
    assert done.why.reason.startswith("page 0x6: ")
    assert store.service.slots.failed_count == 1
    assert store.findings() == []
    assert_intact(one_bad_page)


def test_a_page_that_is_refused_keeps_no_other_from_eviction(swapping_store: LocalStore, one_bad_page: LocalVm) -> None:
    for _ in range(4):
        swapping_store.store.swapper.evict(None)
    assert absent_pages(swapping_store.guest("file").absent) == [page for page in range(PAGES) if page != 6]
    assert_intact(one_bad_page)


def test_what_was_tampered_with_is_the_only_page_that_stays(tmp_path: Path) -> None:
    with opened_store(tmp_path, 32, encrypted=True, swap_pages=64) as store:
        local = start(store)
        tamper(local.vm, page(3), b"evil")
        done = store.store.swapper.page_out(store.file("file").ino, 0, PAGES, 0, 0)
        assert (done.page_count, done.stayed) == (PAGES - 1, 1)
        assert done.why is not None
        assert "page 0x3" in done.why.reason


def test_what_does_not_fit_in_the_swap_file_says_so(tmp_path: Path) -> None:
    with opened_store(tmp_path, 32, swap_pages=8) as store:
        local, ino = start(store), store.file("file").ino
        first, second = (store.store.swapper.page_out(ino, 0, PAGES, 0, 0) for _ in range(2))
        assert (first.page_count, first.stayed) == (8, PAGES - 8)
        assert (second.page_count, second.stayed) == (0, PAGES - 8)
        for done in (first, second):
            assert done.why is not None
            assert done.why.errno == errno.ENOSPC
            assert "the swap file is full (8 pages)" in done.why.reason
        assert_intact(local)


def test_a_range_past_the_end_is_einval(swapping_store: LocalStore, running: LocalVm) -> None:
    assert errno_of(swapping_store.page_out, "file", PAGES, 1) == "EINVAL"
    assert swapping_store.page_out("file", PAGES - 1, 8) == 1, "the end is cut"


# -- a KVM that lies


@pytest.mark.parametrize("blobs", [[], [b"x"] * 15, [bytes(SWAP_BLOB_BYTES)] * 3], ids=["none", "small", "few"])
def test_a_kvm_that_gives_blobs_that_make_no_sense_is_cut_off(
    swapping_store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch, blobs: list[bytes]
) -> None:
    other = start(swapping_store, "other", "vm1", 4)
    monkeypatch.setattr(running.kvm.notifier, "on_swap_out", lambda *_: (blobs, []))
    assert errno_of(swapping_store.page_out, "file") == "ENOTCONN"
    assert swapping_store.guest("file").active is None
    assert swapping_store.service.slots.used == 0
    assert swapping_store.count(FrameState.QUARANTINED) == PAGES
    assert_intact(other, 4)


def test_a_kvm_that_refuses_keeps_its_pages(
    swapping_store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise Refused(errno.EBUSY, "not now")

    monkeypatch.setattr(running.kvm.notifier, "on_swap_out", refuses)
    assert errno_of(swapping_store.page_out, "file") == "EBUSY"
    assert swapping_store.service.slots.failed_count == PAGES
    monkeypatch.undo()
    assert swapping_store.page_out("file") == PAGES
    assert_intact(running)
