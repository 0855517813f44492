"""kvmsim perf report."""

import json
from pathlib import Path

import pytest

from kvmsim.cli import run_command
from tests.support.traced import vm_entry, vm_exit, write_traces


def test_the_table_is_that_of_perf_kvm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, vm = write_traces(tmp_path)
    vm.write_text(vm.read_text() + vm_exit(300, "HLT") + vm_entry(900))
    assert run_command(["perf", "report", str(vm)]) == 0
    head, _, first, second, _, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["VM-EXIT", "Samples", "Samples%", "Time%", "Min", "Time", "Max", "Time", "Avg", "time"]
    assert first.split()[:7] == ["EPT_VIOLATION", "2", "66.67%", "16.67%", "20.00us", "100.00us", "60.00us"]
    assert second.split()[:4] == ["HLT", "1", "33.33%", "83.33%"]
    assert last == "Total Samples:3, Total events handled time:720.00us."
    assert run_command(["perf", "report", "-k", "time", "--json", str(vm)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["reason"] for row in report["exits"]] == ["HLT", "EPT_VIOLATION"]
    assert (report["samples"], report["time_ns"]) == (3, 720_000)
    assert report["exits"][1]["min_ns"] == 20_000
    assert run_command(["perf", "report", "--vcpu", "1", "--json", str(vm)]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 1


def test_a_trace_without_exits_is_an_empty_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, _ = write_traces(tmp_path)
    assert run_command(["perf", "report", str(store)]) == 0
    assert "Total Samples:0" in capsys.readouterr().out
    assert run_command(["perf", "report", "/nowhere"]) == 2
    assert "/nowhere: No such file" in capsys.readouterr().err
