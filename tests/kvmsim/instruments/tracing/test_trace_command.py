"""kvmsim trace: what it lists, and what it refuses."""

import json
from pathlib import Path

import pytest

from kvmsim.cli import run_command
from memfsd.common.traceevents import EVENTS
from tests.support.traced import write_traces


def test_the_list_names_every_event_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["trace", "list", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["event"]: tuple(line["fields"]) for line in lines} == {n: e.fields for n, e in EVENTS.items()}
    assert run_command(["trace", "list"]) == 0
    assert "kvm:kvm_page_fault\n    vcpu %u rip" in capsys.readouterr().out


def test_what_convert_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, vm = map(str, write_traces(tmp_path))
    (tmp_path / "script").write_text("vcpu 1\n")
    for words, why in (
        ([store, "-o", store], "is used by this command already"),
        ([str(tmp_path / "script"), "-o", str(tmp_path / "out")], "script:1: no line of a trace: vcpu 1"),
        (["/nowhere", "-o", str(tmp_path / "out")], "/nowhere: No such file"),
        ([vm, "-o", "/nowhere/out"], "/nowhere/out: directory /nowhere does not exist"),
    ):
        assert run_command(["trace", "convert", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert why in line
        assert not (tmp_path / "out").exists()
