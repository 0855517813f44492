"""Times of exits: from exit to entry of the same vCPU."""

from pathlib import Path

import pytest

from kvmsim.instruments.tracing.exit_times import Times, exit_times
from kvmsim.instruments.tracing.reader import LOST, Happening, happenings
from tests.support.traced import write_traces


def event(us: int, name: str, task: str = "vm0/0", reason: str = "HLT") -> Happening:
    return Happening(us * 1000, "kvmsim", 1, task, name, {"vcpu_id": int(task[-1]), "exit_reason": reason})


def test_samples_least_most_and_average(tmp_path: Path) -> None:
    found = exit_times(happenings([str(path) for path in write_traces(tmp_path)]))
    (reason,) = found
    times = found[reason]
    assert reason == "EPT_VIOLATION"
    assert (times.samples, times.total, times.least, times.most) == (2, 120_000, 20_000, 100_000)
    assert times.average == 60_000


def test_vcpus_are_apart_and_may_be_chosen() -> None:
    said = [
        event(1, "kvm_exit"),
        event(2, "kvm_exit", "vm0/1", "VMCALL"),
        event(5, "kvm_entry"),
        event(9, "kvm_entry", "vm0/1"),
    ]
    assert {reason: times.total for reason, times in exit_times(said).items()} == {"HLT": 4000, "VMCALL": 7000}
    assert list(exit_times(said, vcpu=1)) == ["VMCALL"]
    assert exit_times(said, vm="other") == {}


def test_an_exit_without_entry_counts_for_nothing_nor_does_one_around_a_loss() -> None:
    lost = Happening(3, "kvmsim", 1, "kvmsim", LOST, {"count": 1})
    assert exit_times([event(1, "kvm_exit")]) == {}
    assert exit_times([event(1, "kvm_exit"), lost, event(5, "kvm_entry")]) == {}


def test_the_deviation_is_that_of_the_average() -> None:
    times = Times()
    for ns in (10, 20, 30):
        times.add(ns)
    assert times.deviation_percent == pytest.approx(100 * (10 / 3**0.5) / 20)
    same = Times()
    same.add(5)
    assert same.deviation_percent == 0
