"""VMs that answer late or never: who waits for one waits for it alone, and others not at all."""

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator

import pytest

import kvmsim.kvm.notifier
import memfsd.peers.server
from memfsd.core.files.shares import Shares
from memfsd.store import swapper
from memfsd.store.invalidator import VmWork
from memfsd.uapi import messages as m
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import MAX_FILE_BYTES, MAX_SWAP_PAGES
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import PAGE_SIZE, Gfn
from tests.support.both_sides import LocalStore, errno_of, page
from tests.support.swapped import PAGES, assert_intact, start
from tests.support.threads import DEADLINE_S, Beside, until
from tests.support.wire import Wire, is_readable

SLOW = 6


@pytest.fixture
def slow(small_store: LocalStore) -> Iterator[list[Wire]]:
    """VMs of which each holds a page that it never touched, and does not answer by itself."""
    with contextlib.ExitStack() as ending:
        wires = []
        for number in range(SLOW):
            small_store.create(f"slow{number}", 16)
            wire = ending.enter_context(Wire(small_store)).paired(f"slow{number}", 16)
            wire.get_pfn(0)
            assert wire.get_pfn(1).page_count == 2, "one of them ahead"
            wires.append(wire)
        yield wires
        for wire in wires:
            with contextlib.suppress(OSError, AssertionError):
                wire.ask(Kind.BYE)


def fill(store: LocalStore) -> None:
    """No frame is free."""
    store.create("filler", store.free_count, sealed=False)
    store.allocate("filler", 0, store.free_count)


def give_back(wire: Wire) -> None:
    """BEGIN and END, answered."""
    for body in (m.InvalidateBeginReply([]), m.Empty()):
        kind, id_, _ = wire.called()
        wire.answer(kind, id_, body)


class Taken:
    """A lock that does not come in time; meanwhile its owner does something."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self._meanwhile = meanwhile

    def acquire(self, timeout: float) -> bool:
        self._meanwhile()
        return False


def asker_of(store: LocalStore, name: str = "asker") -> Wire:
    store.create(name, 16)
    return Wire(store).paired(name, 16)


def test_the_pool_is_full_and_all_vms_are_asked_before_one_has_answered(
    small_store: LocalStore, slow: list[Wire]
) -> None:
    fill(small_store)
    reclaim = Beside(small_store.reclaim)
    begun = [wire.called() for wire in slow]
    assert {kind for kind, _, _ in begun} == {Kind.INVALIDATE_BEGIN}
    assert reclaim.running
    for wire, (kind, id_, _) in zip(slow, begun, strict=True):
        wire.answer(kind, id_, m.InvalidateBeginReply([]))
        kind, id_, _ = wire.called()
        wire.answer(kind, id_)
    assert reclaim.result()
    assert small_store.free_count == SLOW


def test_a_guest_that_needs_a_page_waits_for_the_first_vm_that_gives_one(
    small_store: LocalStore, slow: list[Wire]
) -> None:
    fill(small_store)
    with asker_of(small_store) as asker:
        fault = Beside(lambda: asker.get_pfn(0))
        begun = [wire.called() for wire in slow[1:]]
        give_back(slow[0])
        assert fault.result().page_count == 1
        assert all(small_store.guest(f"slow{number}").open_invalidation for number in range(1, SLOW)), (
            "the others go on alone"
        )
        for wire, (kind, id_, _) in zip(slow[1:], begun, strict=True):
            wire.answer(kind, id_, m.InvalidateBeginReply([]))
            kind, id_, _ = wire.called()
            wire.answer(kind, id_)
        until(lambda: small_store.free_count == SLOW - 1, "and what they give comes free")
        asker.ask(Kind.BYE)


def test_a_guest_that_needs_a_page_waits_for_all_silent_vms_together(small_store: LocalStore, slow: list[Wire]) -> None:
    """The deadline passes once, and before any of them is cut off."""
    small_store.deadlines.reclaim_s = 0.05
    fill(small_store)
    with asker_of(small_store) as asker:
        assert asker.get_pfn(0) == "ENOSPC"
        assert all(small_store.guest(f"slow{number}").active for number in range(SLOW))
        for wire in slow:
            give_back(wire)
        until(lambda: small_store.free_count == SLOW, "late, but it comes free")
        assert asker.get_pfn(0).page_count == 1
        asker.ask(Kind.BYE)


def test_a_guest_that_needs_a_page_does_not_wait_longer_for_the_only_vm(
    small_store: LocalStore, slow: list[Wire]
) -> None:
    small_store.deadlines.reclaim_s = 0.05
    for wire in slow[1:]:
        wire.ask(Kind.BYE)
    fill(small_store)
    with asker_of(small_store) as asker:
        assert asker.get_pfn(0) == "ENOSPC"
        assert small_store.guest("slow0").active
        give_back(slow[0])
        until(lambda: small_store.free_count == 1, "late, but it comes free")
        assert asker.get_pfn(0).page_count == 1
        asker.ask(Kind.BYE)


# -- eviction


@pytest.fixture
def slow_to_leave(swapping_store: LocalStore) -> Iterator[Wire]:
    """A VM with a page that only eviction takes; it does not answer by itself, and keeps the page when asked."""
    swapping_store.create("slow", 4)
    with Wire(swapping_store) as wire:
        wire.paired("slow", 4)
        wire.touch(wire.get_pfn(0, 1).pfn)
        yield wire
        kind, id_, body = wire.called()
        assert kind is Kind.INVALIDATE_BEGIN
        assert isinstance(body, m.InvalidateBegin)
        assert body.reason is m.Reason.EVICT
        wire.answer(kind, id_, m.InvalidateBeginReply([(0, 4)]))
        kind, id_, _ = wire.called()
        wire.answer(kind, id_)
        wire.ask(Kind.BYE)


def test_pages_of_others_leave_while_a_vm_does_not_answer(
    swapping_store: LocalStore, slow_to_leave: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = swapping_store
    quick = start(store)
    monkeypatch.setattr(swapper, "_VMS_IN_TURN", 1000)
    store.deadlines.reclaim_s = DEADLINE_S
    free = store.free_count
    while store.free_count == free:  # the clock forgets first what was used
        assert store.store.swapper.evict(None) == (store.free_count > free)
    assert store.guest("slow").open_invalidation
    assert store.guest("slow").active
    assert_intact(quick)


def test_an_eviction_ends_in_time_though_its_vm_does_not_answer(
    swapping_store: LocalStore, slow_to_leave: Wire
) -> None:
    store = swapping_store
    store.deadlines.reclaim_s = 0.05
    assert not store.store.swapper.evict(None)
    assert not store.store.swapper.evict(None), "its VM is not asked twice"
    assert not store.store.swapper._turn.locked()
    assert store.guest("slow").active


def test_who_waits_for_an_eviction_gets_the_frames_that_it_freed(swapping_store: LocalStore) -> None:
    store = swapping_store
    store.deadlines.reclaim_s = 0.05
    start(store)
    store.store.swapper._turn = Taken(lambda: store.page_out("file"))  # type: ignore[assignment]
    assert store.store.swapper.evict(None)


def test_packets_of_one_bracket_have_one_deadline(swapping_store: LocalStore) -> None:
    store = swapping_store
    store.deadlines.swap_out_s = 0.0
    vm = start(store)
    done = store.store.swapper.page_out(store.file("file").ino, 0, PAGES, 0, 0)
    assert (done.page_count, done.stayed) == (MAX_SWAP_PAGES, PAGES - MAX_SWAP_PAGES)
    assert done.why is not None
    assert done.why.errno == errno.ETIMEDOUT
    assert store.findings() == []
    assert_intact(vm)


def test_a_vm_that_is_slow_to_take_pages_back_is_cut_off(
    swapping_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = swapping_store
    store.deadlines.swap_out_s = 0.0
    vm = start(store)
    space = store.store.swapper._space
    assert space is not None

    def full(slot: int, blob: bytes) -> None:
        raise Refused(errno.EIO, "it takes nothing")

    monkeypatch.setattr(space, "write", full)
    assert errno_of(store.page_out, "file") == "ENOTCONN"
    assert store.count(FrameState.QUARANTINED) == PAGES
    assert store.service.slots.used == 0
    until(lambda: bool(vm.link().lost), "the VM knows that it was cut off")


def test_slow_vms_of_one_user_leave_threads_for_those_of_others(small_store: LocalStore, slow: list[Wire]) -> None:
    nobody, other = 65534, 65533
    small_store.store.reclaimer._questions._shares = Shares(4, 2, 1, owner_uid=0)
    for number in range(SLOW):
        peer = small_store.invalidator.peers[small_store.file(f"slow{number}").ino]
        peer.process.uid = nobody if number < SLOW - 1 else other
        peer.up.last_call_s = number
    fill(small_store)
    reclaim = Beside(small_store.reclaim)
    begun = [slow[number].called() for number in (0, 1)]
    give_back(slow[SLOW - 1])
    until(lambda: small_store.free_count == 1, "the VM of the other user was asked")
    asked = [small_store.guest(f"slow{number}").open_invalidation is not None for number in range(SLOW)]
    assert asked == [True, True, *[False] * (SLOW - 2)]
    for wire, (kind, id_, _) in zip(slow, begun, strict=False):
        wire.answer(kind, id_, m.InvalidateBeginReply([]))
        kind, id_, _ = wire.called()
        wire.answer(kind, id_)
    for wire in slow[2 : SLOW - 1]:
        give_back(wire)
    assert reclaim.result()
    assert small_store.free_count == SLOW


def test_all_vms_hear_of_the_end_of_the_store_before_one_has_answered(
    small_store: LocalStore, slow: list[Wire]
) -> None:
    stop = Beside(small_store.unmount)
    revoked = [wire.called() for wire in slow]
    assert {kind for kind, _, _ in revoked} == {Kind.REVOKE}
    assert stop.running
    for wire, (kind, id_, _) in zip(slow, revoked, strict=True):
        wire.answer(kind, id_)
    stop.result()
    small_store.is_broken = True  # these VMs are this process, which lives: their frames stay in quarantine


def test_the_end_of_the_store_waits_for_all_silent_vms_together(
    small_store: LocalStore, slow: list[Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = memfsd.peers.server._join

    def when_all_are_called(threads: list[threading.Thread], deadline_s: float) -> None:
        if threads and threads[0].name == "revoke":
            until(lambda: all(wire.up and is_readable(wire.up) for wire in slow), "each hears of it")
        real(threads, deadline_s)

    monkeypatch.setattr(memfsd.peers.server, "_join", when_all_are_called)
    monkeypatch.setattr(memfsd.peers.server, "REVOKE_DEADLINE_S", 0.05)
    small_store.unmount()
    assert {wire.called()[0] for wire in slow} == {Kind.REVOKE}
    assert all(wire.ended() for wire in slow)
    small_store.is_broken = True


def test_memory_of_a_file_without_a_vm_is_taken_back_while_nobody_answers(
    small_store: LocalStore, slow: list[Wire]
) -> None:
    small_store.create("plain", 8)
    small_store.allocate("plain", 0, 8)
    free = small_store.free_count
    punch = Beside(lambda: small_store.punch("slow0", 0, 8))
    kind, id_, _ = slow[0].called()

    def at_once(name: str, pages: int) -> bool:
        work = small_store.store.files.punch(small_store.file(name).ino, 0, page(pages))
        assert isinstance(work, VmWork)
        return work.run_unpaired()

    assert at_once("plain", 4)
    assert small_store.free_count == free + 4
    for name in ("slow0", "slow1"):
        assert not at_once(name, 8), "it would wait"
    assert small_store.free_count == free + 4
    slow[0].answer(kind, id_, m.InvalidateBeginReply([]))
    kind, id_, _ = slow[0].called()
    slow[0].answer(kind, id_)
    punch.result()
    small_store.create("held", 8)
    with small_store.guest("held").invalidate_lock:
        assert not at_once("held", 8)


# -- refusals after a deadline


def test_an_invalidation_whose_turn_does_not_come_changes_nothing(store: LocalStore) -> None:
    store.deadlines.invalidate_lock_s = 0.01
    store.create("file", 16)
    with Wire(store) as wire:
        wire.paired("file", 16)
        pfn = wire.get_pfn(3).pfn
        with store.guest("file").invalidate_lock:
            assert errno_of(store.punch, "file", 0, 16) == "EBUSY"
            assert wire.ask(Kind.BIND, m.Bind(1, 100, 0, 1)) == "EBUSY"
            assert wire.ask(Kind.UNBIND, m.Unbind(0, 16)) == "EBUSY"
            assert store.guest("file").open_invalidation is None
        assert (wire.get_pfn(3).pfn, store.count(FrameState.PRIVATE), store.guest("file").seq) == (pfn, 1, 0)
        assert wire.up is not None
        wire.up.setblocking(False)
        with pytest.raises(BlockingIOError):
            wire.called()
        wire.up.settimeout(DEADLINE_S)
        wire.ask(Kind.BYE)


def test_begin_is_not_acknowledged_while_a_slot_does_not_go_away(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be of pages that are still mapped (R6): the VM breaks off instead, and its frames are quarantined."""
    monkeypatch.setattr(kvmsim.kvm.notifier, "ACK_DEADLINE_S", 0.02)
    store.create("file", 16)
    vm = store.vm()
    vm.private_slot(0, 0, page(16), "file")
    assert vm.write(page(3), b"mapped") is None
    with vm.kvm.unmapper.deleting([(Gfn(0), Gfn(16))]):
        assert errno_of(store.punch, "file", 0, 16) == "ETIMEDOUT"
        assert store.count(FrameState.QUARANTINED) == 1
        assert store.free_count == 1023
    until(lambda: bool(vm.link().lost), "the VM knows that it was cut off")


def test_pages_and_bytes_beyond_every_number_are_refused(store: LocalStore) -> None:
    store.create("file", 16)
    with Wire(store) as wire:
        wire.paired("file", 8)
        ends = (1 << 52, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 8)
        for far in ends:
            assert wire.ask(Kind.BIND, m.Bind(1, 100, far, 16)) == "EINVAL"
            assert wire.ask(Kind.BIND, m.Bind(1, 100, 8, far)) == "EINVAL"
            assert wire.ask(Kind.BIND, m.Bind(1, far, 8, 4)) == "EINVAL"
            assert wire.get_pfn(far) in ("EFAULT", "EINVAL")
            assert wire.ask(Kind.UNBIND, m.Unbind(far, 16)) in ("EINVAL", m.Empty())
        assert len(store.guest("file").bindings) == 1
        assert wire.get_pfn(7).page_count == 1
        wire.ask(Kind.BYE)
    ino, files = store.file("file").ino, store.store.files
    top = 1 << 63
    for offset, length in ((top - PAGE_SIZE, PAGE_SIZE), (top, PAGE_SIZE), ((1 << 64) - PAGE_SIZE, 2 * PAGE_SIZE)):
        assert errno_of(files.punch, ino, offset, length) == "EFBIG"
        assert errno_of(files.allocate, ino, offset, length) == "EFBIG"
    assert top > MAX_FILE_BYTES
