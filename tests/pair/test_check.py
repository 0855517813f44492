"""memfs check over a live pairing: clean when all is well, and it names what is broken when it is not."""

import pytest

import kvmsim.kvm.notifier
from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.mmu.ept import MAX_GFN_EPT
from memfsd.uapi import messages as m
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import Gfn, Pgoff
from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.threads import Beside
from tests.support.wire import Wire


@pytest.fixture
def running(store: LocalStore) -> LocalVm:
    store.create("file", 16)
    local = store.vm()
    local.private_slot(0, page(16), page(16), "file")
    assert local.touch(page(16), page(16)) is None
    assert store.findings() == []
    return local


def rules(store: LocalStore) -> set[str]:
    store.is_broken = True
    return {rule for rule, _ in store.findings()}


def test_check_counts_what_it_looked_at(store: LocalStore, running: LocalVm) -> None:
    reply = store.store.checker.check()
    assert (reply.findings, reply.pairing_count, reply.frame_count) == ([], 1, 1024)


def test_check_is_clean_after_every_kind_of_change(store: LocalStore, running: LocalVm) -> None:
    for change in (
        lambda: store.punch("file", 3, 2),
        lambda: running.vmm.memory.punch_slot(0, page(20), page(4)),
        lambda: running.vmm.memory.fill_slot(0, Gfn(21), Gfn(23)),
        lambda: running.touch(page(21), page(2)),
        lambda: store.reclaim(),
        lambda: running.delete(0, private=True),
        lambda: running.private_slot(9, page(16), page(8), "file"),
    ):
        change()
        assert store.findings() == []


def test_a_mapping_to_another_frame_is_found(store: LocalStore, running: LocalVm) -> None:
    with running.vm.mmu.lock:
        ((_, pfn, _),) = running.vm.mmu.epts[PRIVATE].zap(Gfn(18), Gfn(19))
        running.vm.mmu.epts[PRIVATE].map_run(Gfn(18), pfn + 500, 1)
    assert rules(store) == {"R3"}
    ((_, text),) = store.findings()
    assert "GFN 0x12" in text


def test_a_mapping_that_outlived_its_frame_is_found(store: LocalStore, running: LocalVm) -> None:
    runs = list(running.vm.mmu.epts[PRIVATE].runs(Gfn(18), Gfn(19)))
    store.punch("file", 2, 1)
    with running.vm.mmu.lock:
        running.vm.mmu.epts[PRIVATE].map_run(Gfn(18), runs[0][1], 1)
    assert rules(store) == {"R3"}


def test_a_slot_that_only_one_side_knows_is_found(store: LocalStore, running: LocalVm) -> None:
    running.link().unbind(Pgoff(0), 4)
    assert "R3" in rules(store)


def test_a_sequence_number_that_differs_is_found(store: LocalStore, running: LocalVm) -> None:
    running.link().seq += 1
    assert rules(store) == {"R7"}


def test_memory_in_the_window_for_a_frame_of_another_is_found(store: LocalStore, running: LocalVm) -> None:
    running.link().memory.write(page(900), b"leak")
    assert rules(store) == {"R8"}


def test_a_punched_slot_leaves_no_mapping(store: LocalStore, running: LocalVm) -> None:
    running.vmm.memory.punch_slot(0, page(20), page(4))
    mapped = sum(count for _, _, count in running.vm.mmu.epts[PRIVATE].runs(Gfn(0), MAX_GFN_EPT))
    assert mapped == 12 == running.vm.mmu.epts[PRIVATE].leaf_count


def test_a_vm_that_hides_its_slots_is_found(store: LocalStore) -> None:
    store.create("file", 4)
    with Wire(store) as wire:
        wire.paired("file", 4)
        check = Beside(store.findings)
        kind, id_, _ = wire.called()
        assert kind is Kind.REPORT
        wire.answer(kind, id_, m.ReportReply([], [], 0, (0, 0), -1))
        ((rule, text),) = check.result()
        assert rule == "R3" and "only the store knows slot 0" in text
        wire.ask(Kind.BYE)


def test_a_long_report_comes_in_parts(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvmsim.kvm.notifier, "MAX_RUNS_PER_REPORT", 3)
    store.create("file", 32)
    local = store.vm()
    local.private_slot(0, 0, page(32), "file")
    for number in range(31, -1, -3):
        local.write(page(number), b"x")
    for number in range(2, 30, 5):
        local.vmm.memory.punch_slot(0, page(number), page(1))
    assert store.findings() == []
    with local.vm.mmu.lock:
        ((_, pfn, _),) = local.vm.mmu.epts[PRIVATE].zap(Gfn(31), Gfn(32))
        local.vm.mmu.epts[PRIVATE].map_run(Gfn(31), pfn + 500, 1)
    assert rules(store) == {"R3"}, "also what is in the last part"
