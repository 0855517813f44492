"""GET_PFN from both ends: what is granted, how much, from where, and what is refused."""

import errno
import random
from collections.abc import Iterator
from functools import partial

import pytest

from kvmsim.kvm.exits import MemoryErrorExit
from memfsd.uapi import messages as m
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import PAGE_SIZE, Gfn
from tests.support.both_sides import LocalStore, LocalVm, opened_store, page
from tests.support.threads import Beside
from tests.support.wire import Wire


@pytest.fixture
def wire(store: LocalStore) -> Iterator[Wire]:
    """File pages 0-63 at GFN 0."""
    store.create("file", 64)
    with Wire(store) as paired:
        yield paired.paired("file", 64)
        paired.ask(Kind.BYE)
        assert paired.ended()


# -- BIND and UNBIND


@pytest.mark.parametrize(
    ("bind", "refusal"),
    [
        (m.Bind(1, 100, 0, 1), "EEXIST"),
        (m.Bind(1, 100, 63, 1), "EEXIST"),
        (m.Bind(0, 0, 0, 64), "EEXIST"),
        (m.Bind(1, 100, 64, 1), "EINVAL"),
        (m.Bind(1, 100, 60, 5), "EINVAL"),
        (m.Bind(1, 100, 1 << 50, 1), "EINVAL"),
    ],
    ids=["bound", "bound at its end", "the same again", "past the end", "over the end", "far away"],
)
def test_what_can_not_be_bound(wire: Wire, bind: m.Bind, refusal: str) -> None:
    assert wire.ask(Kind.BIND, bind) == refusal


@pytest.mark.parametrize("unbind", [m.Unbind(64, 1), m.Unbind(0, 65), m.Unbind(1 << 40, 1)])
def test_what_is_not_bound_can_not_be_unbound(wire: Wire, unbind: m.Unbind) -> None:
    assert wire.ask(Kind.UNBIND, unbind) == "EINVAL"


def test_a_page_keeps_its_gfn_for_life(wire: Wire) -> None:
    assert wire.ask(Kind.UNBIND, m.Unbind(8, 8)) == m.Empty()
    assert wire.ask(Kind.UNBIND, m.Unbind(8, 8)) == "EINVAL", "not bound any more"
    assert wire.ask(Kind.BIND, m.Bind(1, 9, 8, 1)) == "EINVAL", "R4: at another GFN"
    assert wire.ask(Kind.BIND, m.Bind(5, 10, 10, 2)) == m.Empty(), "in another slot, at the same GFN"


def test_fixed_gfn_off_is_what_upstream_linux_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    with opened_store(tmp_path_factory.mktemp("free"), 64, fixed_gfn=False) as store:
        store.create("file", 8)
        local = store.vm()
        local.private_slot(0, 0, page(8), "file")
        local.delete(0, private=True)
        local.private_slot(0, page(64), page(8), "file")
        assert local.write(page(64), b"moved") is None


# -- GET_PFN


def test_a_page_keeps_its_frame(wire: Wire) -> None:
    first = wire.get_pfn(5)
    assert (first.page_count, first.order, first.seq) == (1, 0, 0)
    assert wire.get_pfn(5) == first


@pytest.mark.parametrize("pgoff", [64, 1000, 1 << 50])
def test_a_page_that_is_not_bound_is_efault(wire: Wire, pgoff: int) -> None:
    assert wire.get_pfn(pgoff) == "EFAULT"
    assert wire.store.free_count == 1024, "and nothing was granted"


def test_an_unbound_page_is_efault_though_it_has_a_frame(wire: Wire) -> None:
    wire.get_pfn(5)
    wire.ask(Kind.UNBIND, m.Unbind(5, 1))
    assert wire.get_pfn(5) == "EFAULT"


def test_memory_that_was_allocated_before_is_granted_as_one_run(wire: Wire) -> None:
    wire.store.allocate("file", 8, 32)
    run = wire.get_pfn(10)
    assert run.page_count == 30
    assert wire.get_pfn(10, max_pages=4).page_count == 4
    assert wire.ask(Kind.STAT).pending == 0, "allocated on purpose, so not ahead of the guest"


def test_a_run_never_leaves_its_binding(wire: Wire) -> None:
    wire.store.allocate("file", 0, 64)
    wire.ask(Kind.UNBIND, m.Unbind(20, 4))
    assert wire.get_pfn(10).page_count == 10
    assert wire.get_pfn(24).page_count == 40


def test_a_guest_in_order_gets_runs_that_double(wire: Wire) -> None:
    counts, at = [], 0
    while at < 64:
        run = wire.get_pfn(at)
        for pfn in range(run.pfn, run.pfn + run.page_count):
            wire.touch(pfn)
        counts.append(run.page_count)
        at += run.page_count
    assert counts == [1, 2, 4, 8, 16, 32, 1]
    assert wire.ask(Kind.STAT).pending == 0, "all of it was touched"


def test_a_guest_here_and_there_gets_single_pages(wire: Wire) -> None:
    places = [0, 40, 7, 33, 12, 60, 25, 50, 3, 18]
    assert [wire.get_pfn(place).page_count for place in places] == [1] * len(places)
    stat = wire.ask(Kind.STAT)
    assert (stat.frames, stat.pending) == (len(places), 0)


def test_two_streams_do_not_spoil_each_other(wire: Wire) -> None:
    low, high, sizes = 0, 32, []
    for _ in range(3):
        for at in (low, high):
            sizes.append(wire.get_pfn(at).page_count)
        low, high = low + sizes[-2], high + sizes[-1]
    assert sizes == [1, 1, 2, 2, 4, 4]


def test_in_order_a_guest_makes_few_requests_and_at_random_few_pages_are_pending(store: LocalStore) -> None:
    store.create("ordered", 512)
    store.create("random", 512)
    ordered, random_ = store.vm("ordered"), store.vm("random")
    ordered.private_slot(0, 0, page(512), "ordered")
    random_.private_slot(0, 0, page(512), "random")
    before = ordered.link().request_count
    for number in range(512):
        assert ordered.write(page(number), b"x") is None
    assert ordered.link().request_count - before <= 12, "512 pages"
    for number in random.Random(1).sample(range(512), 100):
        assert random_.write(page(number), b"x") is None
    assert random_.link().stat().pending <= 10
    assert random_.link().stat().frames <= 110


def test_every_granted_page_is_zero(store: LocalStore) -> None:
    store.create("file", 64)
    local = store.vm()
    local.private_slot(0, 0, page(64), "file")
    assert local.read(0, page(64)) == bytes(page(64))


# -- a pool that is short


def test_a_run_takes_what_there_is(small_store: LocalStore) -> None:
    small_store.create("hog", 25)
    small_store.allocate("hog", 0, 25)
    small_store.create("file", 32)
    with Wire(small_store) as wire:
        wire.paired("file", 32)
        counts, at = [], 0
        while at < 7:
            run = wire.get_pfn(at)
            for pfn in range(run.pfn, run.pfn + run.page_count):
                wire.touch(pfn)
            counts.append(run.page_count)
            at += run.page_count
        assert counts == [1, 2, 4]
        wire.ask(Kind.BYE)


def beside_a_hog(store: LocalStore, pages: int) -> LocalVm:
    """A VM with 8 pages, in a pool of which another file has so many frames."""
    store.create("hog", pages)
    store.allocate("hog", 0, pages)
    store.create("file", 8)
    local = store.vm()
    local.private_slot(0, 0, page(8), "file")
    return local


def test_a_full_pool_exits_as_enospc_and_the_access_goes_on_when_there_is_room(small_store: LocalStore) -> None:
    local = beside_a_hog(small_store, 30)
    exit_ = local.touch(0, page(8))
    assert isinstance(exit_, MemoryErrorExit)
    assert (exit_.gpa, exit_.size, exit_.private, exit_.errno) == (page(2), PAGE_SIZE, True, errno.ENOSPC)
    small_store.punch("hog", 0, 6)
    assert local.touch(0, page(8)) is None


def test_a_full_pool_waits_for_files_that_were_closed_just_now(small_store: LocalStore) -> None:
    local = beside_a_hog(small_store, 32)
    looks = 0

    def has_releases() -> bool:
        """Received and not yet under way; under way twice; over."""
        nonlocal looks
        looks += 1
        if looks == 4:
            small_store.punch("hog", 0, 6)
        return looks in (2, 3)

    small_store.store.reclaimer.has_releases = has_releases
    assert local.touch(0, page(1)) is None


def test_a_full_pool_waits_for_vms_that_have_ended(small_store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    small_store.create("hog", 32)
    small_store.create("file", 8)
    local, other = small_store.vm(), small_store.vm("other")
    other.private_slot(0, 0, page(32), "hog")
    assert other.touch(0, page(32)) is None
    local.private_slot(0, 0, page(8), "file")
    looks = 0

    def wait_dead(process: object, timeout_s: float | None, stop_fd: int | None = None) -> bool:
        nonlocal looks
        looks += timeout_s == 0
        if looks == 4:
            small_store.punch("hog", 0, 6)  # as if its end had come to that
        return 0 < looks < 4

    monkeypatch.setattr("memfsd.peers.process.PeerProcess.wait_dead", wait_dead)
    assert small_store.store.reclaimer.has_endings()
    assert local.touch(0, page(1)) is None
    assert not small_store.store.reclaimer.has_endings()
    monkeypatch.undo()


def test_a_fault_in_a_range_that_is_being_allocated_gets_its_frame(
    small_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocation has all that are free, and maps some at a time."""
    monkeypatch.setattr("memfsd.core.files.allocation._STEP_PAGES_OF_A_GIG", 4)
    reclaimer = small_store.store.reclaimer
    whole = reclaimer.free_count()
    file = small_store.create("file", whole)
    local = small_store.vm()
    local.private_slot(0, 0, page(whole), "file")
    work = small_store.store.files.fallocate(file.ino, 0, 0, page(whole))
    assert (reclaimer.free_count(), file.pages.page_count) == (0, 4)
    look = reclaimer.has_endings

    def meanwhile(*, queued: bool = False) -> bool:
        if found := look(queued=queued):
            work.run()
        return found

    monkeypatch.setattr(reclaimer, "has_endings", meanwhile)
    assert local.touch(page(whole - 1), page(1)) is None
    assert file.pages.page_count == whole


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_mount_that_is_never_idle_holds_up_no_fault(
    small_store: LocalStore, is_busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memfsd.store.reclaim._ENDINGS_S", 0.05)
    local = beside_a_hog(small_store, 32)
    small_store.store.reclaimer.has_releases = lambda: is_busy
    exit_ = local.touch(0, page(1))
    assert isinstance(exit_, MemoryErrorExit) and exit_.errno == errno.ENOSPC


def grow_stream(local: LocalVm, first: int, pages: int) -> None:
    """Touch pages in order, so that the store grants ahead."""
    for number in range(first, first + pages):
        assert local.write(page(number), bytes([number + 1])) is None


def test_pending_pages_are_given_back_when_the_pool_is_short_and_touched_data_survives(small_store: LocalStore) -> None:
    small_store.create("eager", 32)
    small_store.create("late", 16)
    eager, late = small_store.vm("eager"), small_store.vm("late")
    eager.private_slot(0, 0, page(32), "eager")
    late.private_slot(0, 0, page(16), "late")
    grow_stream(eager, 0, 17)
    stat = eager.link().stat()
    assert (stat.frames, stat.pending) == (31, 14), "1 + 2 + 4 + 8 + 16, of which 17 are touched"
    assert small_store.free_count == 1
    for number in range(15):
        assert late.write(page(number), bytes([200 + number])) is None, "another VM gets the memory"
    assert small_store.guest("eager").pending == 0
    assert [eager.read(page(number), 1) for number in range(17)] == [bytes([number + 1]) for number in range(17)]
    assert [late.read(page(number), 1) for number in range(15)] == [bytes([200 + number]) for number in range(15)]


def test_a_vm_can_take_back_from_itself(small_store: LocalStore) -> None:
    small_store.create("file", 64)
    local = small_store.vm()
    local.private_slot(0, 0, page(64), "file")
    grow_stream(local, 0, 17)
    assert local.link().stat().pending == 14
    places = [40, 63, 50, 45, 60, 35, 55, 58, 47, 38, 61, 42, 52, 33, 57]
    for place in places:
        assert local.write(page(place), bytes([place])) is None
    assert [local.read(page(place), 1) for place in places] == [bytes([place]) for place in places]
    assert [local.read(page(number), 1) for number in range(17)] == [bytes([number + 1]) for number in range(17)]


def test_pages_under_an_overlay_are_not_given_back(small_store: LocalStore) -> None:
    """They were granted ahead of the guest, who has touched them since; that no leaf tells so does not matter."""
    small_store.create("file", 16)
    local = small_store.vm()
    local.private_slot(0, 0, page(16), "file")
    local.vmm.set_policy("overlay", "kept")
    for number in range(12):
        assert local.write(page(number), bytes([number + 1])) is None
    for private in (False, True):
        assert local.vmm.run(local.vcpu, partial(local.guest.map, local.vcpu, 0, page(12), private=private)) is None
        small_store.reclaim()
    assert [local.read(page(number), 1) for number in range(12)] == [bytes([number + 1]) for number in range(12)]
    assert small_store.findings() == []


@pytest.mark.parametrize("policy", ["recreate", "punch"])
def test_pages_of_a_conversion_that_was_taken_back_are_not_given_back(
    small_store: LocalStore, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """It had unmapped them, and they are not mapped again until the guest touches them."""
    small_store.create("file", 16)
    local = small_store.vm()
    local.private_slot(0, 0, page(16), "file")
    local.vmm.set_policy(policy)
    for number in range(12):
        assert local.write(page(number), bytes([number + 1])) is None

    def refuse(*_: object) -> None:
        raise Refused(errno.EBUSY, "another invalidation of this file does not end")

    with monkeypatch.context() as patch:
        patch.setattr(local.link(), "punch", refuse)
        with pytest.raises(Refused, match="does not end"):
            local.vmm.run(local.vcpu, lambda: local.guest.map(local.vcpu, page(2), page(8), private=False))
    small_store.reclaim()
    assert [local.read(page(number), 1) for number in range(12)] == [bytes([number + 1]) for number in range(12)]
    assert small_store.findings() == []


def test_fallocate_takes_back_pending_pages_through_reclaim(small_store: LocalStore) -> None:
    small_store.create("file", 32)
    local = small_store.vm()
    local.private_slot(0, 0, page(32), "file")
    grow_stream(local, 0, 17)
    assert small_store.reclaim(), "some came free"
    assert small_store.free_count == 32 - 17
    assert not small_store.reclaim(), "there is nothing left to take"


def test_touched_pages_that_are_not_bound_just_now_are_not_reclaimed(small_store: LocalStore) -> None:
    """In the middle of a conversion that may yet be taken back: no VM speaks for them."""
    small_store.create("file", 16)
    vm = small_store.vm()
    vm.private_slot(0, 0, page(16), "file")
    assert vm.write(0, b"data" * page(2)) is None
    assert small_store.guest("file").pending > 0, "granted ahead, and touched since"
    vm.vmm.memory.hide(0, Gfn(0), Gfn(8))
    small_store.reclaim()
    vm.vmm.memory.fill_slot(0, Gfn(0), Gfn(8))
    assert vm.read(0, page(8)) == b"data" * page(2)


def test_memory_that_was_allocated_on_purpose_is_never_reclaimed(small_store: LocalStore) -> None:
    small_store.create("file", 32)
    small_store.allocate("file", 0, 32)
    local = small_store.vm()
    local.private_slot(0, 0, page(32), "file")
    local.touch(0, page(2))
    assert not small_store.reclaim()
    assert small_store.free_count == 0


def test_a_vm_that_keeps_what_it_never_touched_harms_nobody_but_itself(small_store: LocalStore) -> None:
    """RECLAIM answered with a lie: all was touched."""
    small_store.create("file", 32)
    with Wire(small_store) as liar:
        liar.paired("file", 32)
        for at in (0, 1, 3, 7):
            liar.get_pfn(at)
        reclaim = Beside(small_store.reclaim)
        kind, id_, begin = liar.called()
        assert kind is Kind.INVALIDATE_BEGIN and isinstance(begin, m.InvalidateBegin)
        assert begin.reason is m.Reason.RECLAIM
        liar.answer(kind, id_, m.InvalidateBeginReply([(0, 1 << 50)]))
        kind, id_, _ = liar.called()
        assert kind is Kind.INVALIDATE_END
        liar.answer(kind, id_)
        assert reclaim.result() is False
        assert small_store.count(FrameState.PENDING) == 0, "they count as touched now"
        liar.ask(Kind.BYE)
