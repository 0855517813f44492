"""memfs check looks at one moment: no false alarm while everything moves, and it waits for nobody long."""

import random
import time
from collections.abc import Callable

import pytest

from kvmsim.store.link import StoreLink
from memfsd.core.private.gmem_file import PairState
from memfsd.peers.process import PeerProcess
from memfsd.uapi import messages as m
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import Gfn, Ino, Pgoff
from tests.support.both_sides import LocalStore, LocalVm, errno_of, page
from tests.support.threads import Beside, Gate, over_and_over, until
from tests.support.wire import Wire

CHECKS = 60


def two_vms(store: LocalStore) -> list[LocalVm]:
    vms = []
    for name in ("one", "two"):
        store.create(name, 32)
        local = store.vm(name)
        local.private_slot(0, page(64), page(32), name)
        local.vm.create_vcpu(1)
        vms.append(local)
    return vms


def test_no_false_alarm_while_guests_fault_slots_change_and_punches_run(small_store: LocalStore) -> None:
    """Two files of 32 pages in a pool of 32 frames: grants also find the pool full and reclaim."""
    store = small_store
    vms = two_vms(store)

    def guest(local: LocalVm, vcpu: int) -> Callable[[random.Random], object]:
        return lambda dice: local.guest.write(local.vm.vcpu(vcpu), page(64 + dice.randrange(32)), b"x" * 5000)

    def convert(local: LocalVm) -> Callable[[random.Random], object]:
        def step(dice: random.Random) -> None:
            memory, at, pages = local.vmm.memory, dice.randrange(28), dice.randrange(1, 5)
            start, end = 64 + at, 64 + at + pages
            if dice.random() < 0.2:
                local.delete(0, private=True)
                local.private_slot(0, page(64), page(32), local.vm.name)
            elif dice.random() < 0.2:
                (region,) = memory.ram.private
                segments = memory.ram.private.segments(region)
                memory.detach(0)
                memory.attach(region, segments)
            else:
                if dice.random() < 0.5:
                    memory.punch_slot(0, page(start), page(pages))
                else:
                    memory.hide(0, Gfn(start), Gfn(end))
                for low, high in memory.ram.private.missing(Gfn(start), Gfn(end)):
                    memory.fill_slot(0, low, high)

        return step

    def punch(name: str) -> Callable[[random.Random], object]:
        return lambda dice: store.punch(name, dice.randrange(28), dice.randrange(1, 5))

    steps = [guest(local, vcpu) for local in vms for vcpu in (0, 1)]
    steps += [convert(local) for local in vms] + [punch("one"), punch("two")]
    with over_and_over(steps, 6):
        alarms = [store.findings() for _ in range(CHECKS)]
    assert alarms == [[]] * CHECKS


@pytest.mark.parametrize("held", ["bind", "unbind"])
def test_a_slot_that_is_being_changed_is_known_to_one_side_only_and_that_is_well(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """Between the store's answer to BIND and the slot, or between the slot's end and UNBIND."""
    store.create("file", 16)
    local = store.vm()
    local.private_slot(0, 0, page(8), "file")
    gate, real_bind, real_unbind = Gate(), StoreLink.bind, StoreLink.unbind

    def bind(link: StoreLink, slot: int, gfn: int, pgoff: int, page_count: int) -> None:
        real_bind(link, slot, Gfn(gfn), Pgoff(pgoff), page_count)
        gate.wait()

    def unbind(link: StoreLink, pgoff: int, page_count: int) -> None:
        gate.wait()
        real_unbind(link, Pgoff(pgoff), page_count)

    monkeypatch.setattr(StoreLink, held, bind if held == "bind" else unbind)
    if held == "bind":
        change = Beside(lambda: local.private_slot(1, page(64), page(8), "file", page(8)))
    else:
        change = Beside(lambda: local.delete(0, private=True))
    gate.reached()
    assert store.findings() == []
    gate.open()
    change.result()
    assert store.findings() == []


def test_a_fault_during_the_check_is_no_difference(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VM is asked, then the guest faults, then the store is looked at."""
    store.create("file", 16)
    local = store.vm()
    local.private_slot(0, 0, page(16), "file")
    local.write(0, b"x")
    real, faulted = store.windows.populated, []

    def populated(window: Ino | None) -> list[tuple[int, int]]:
        if window is not None:
            faulted.append(local.write(page(5), b"during"))
        return real(window)

    monkeypatch.setattr(store.windows, "populated", populated)
    assert store.findings() == []
    assert faulted == [None]


def test_a_check_and_a_grant_that_needs_reclaim_do_not_wait_for_each_other(small_store: LocalStore) -> None:
    """The pool is full of pending frames, the check holds all invalidate_locks, and a fault waits for one."""
    store = small_store
    store.create("greedy", 32)
    store.create("next", 8)
    with Wire(store) as wire:
        wire.paired("greedy", 32)
        pgoff = 0
        while pgoff < 32:
            pgoff += wire.get_pfn(pgoff).page_count
        local = store.vm("next")
        local.private_slot(0, 0, page(8), "next")
        check = Beside(store.findings)
        kind, id_, _ = wire.called()
        assert kind is Kind.REPORT
        fault = Beside(lambda: local.write(0, b"x"))
        until(lambda: fault.running, "the fault waits for the invalidate_lock")
        wire.answer(kind, id_, m.ReportReply([(0, 0, 0, 32)], [], 0, (0, 0), -1))
        assert check.result() == []
        kind, id_, begin = wire.called()
        assert (kind, begin.reason) == (Kind.INVALIDATE_BEGIN, m.Reason.RECLAIM)  # type: ignore[attr-defined]
        wire.answer(kind, id_, m.InvalidateBeginReply([]))
        kind, id_, _ = wire.called()
        wire.answer(kind, id_)
        assert fault.result() is None
        wire.ask(Kind.BYE)


def test_a_bracket_that_never_ends_is_found_and_keeps_nobody(store: LocalStore) -> None:
    store.deadlines.check_locks_s = 0.05
    store.create("leaky", 8)
    store.create("fine", 8)
    with store.guest("leaky").invalidate_lock:
        ((rule, text),) = store.findings()
    assert rule == "R7"
    assert f"inode {store.file('leaky').ino}" in text
    assert store.findings() == []


def test_one_check_at_a_time_and_the_other_is_told(store: LocalStore) -> None:
    store.deadlines.check_turn_s = 0.02
    store.create("file", 8)
    with Wire(store) as wire:
        wire.paired("file", 8)
        wire.ask(Kind.UNBIND, m.Unbind(0, 8))
        first = Beside(store.findings)
        kind, id_, _ = wire.called()
        assert errno_of(store.store.checker.check) == "EBUSY"
        wire.answer(kind, id_, m.ReportReply([], [], 0, (0, 0), -1))
        assert first.result() == []
        wire.ask(Kind.BYE)


def test_all_vms_together_have_one_time_to_report(store: LocalStore) -> None:
    """A VM that always has more to tell does not hold the invalidate_locks of the others."""
    store.deadlines.check_reports_s = 0.2
    store.create("file", 1024)
    with Wire(store) as wire:
        wire.paired("file", 1024)
        pfn = wire.get_pfn(0).pfn
        check, cursor = Beside(store.findings), 0
        while check.running:
            assert wire.up is not None
            wire.up.settimeout(0.1)
            try:
                kind, id_, _ = wire.called()
            except TimeoutError:
                break
            cursor += 1
            wire.answer(kind, id_, m.ReportReply([], [(0, pfn, 1)], 0, (0, 0), cursor))
            time.sleep(0.005)
        ((rule, text),) = check.result()
        assert rule == "R3" and "does not report" in text
        wire.ask(Kind.BYE)


def test_a_vm_whose_connection_ended_is_cut_off_and_breaks_no_rule(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives, and its session still waits for the proof of its death: its frames go to quarantine now."""
    store.create("file", 8)
    gate = Gate()
    real = PeerProcess.wait_dead

    def held(process: PeerProcess, timeout_s: float | None, stop_fd: int | None = None) -> bool:
        if stop_fd is not None and not gate.is_open:
            gate.wait()
        return real(process, timeout_s, stop_fd)

    monkeypatch.setattr(PeerProcess, "wait_dead", held)
    wire = Wire(store).paired("file", 8)
    wire.get_pfn(0)
    wire.close()
    gate.reached()
    assert store.findings() == []
    pairing = store.guest("file").pairing
    assert pairing is not None and pairing.state is PairState.DISCONNECTED
    gate.open()
    assert store.findings() == []
