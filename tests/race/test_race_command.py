"""kvmsim race: what it prints, its exit status, and a failure from finding it to its replay."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvmsim.cli import run_command
from tests.race.mutants import MUTANTS, planted

STALE = next(mutant for mutant in MUTANTS if mutant.name == "TLB flush forgotten")


def test_a_scenario_that_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["race", "fault-x-fault", "--seed", "3", "--count", "5"]) == 0
    assert "fault-x-fault: 5 runs (random, seed 3)" in (told := capsys.readouterr().out)
    assert told.rstrip().endswith("all held")


def test_exhaustive_says_whether_it_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["race", "unlink-x-fault", "--exhaustive", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["held"] is told["complete"] is True
    assert run_command(["race", "fault-x-fault", "--exhaustive", "--limit", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is False
    assert run_command(["race", "fault-x-fault", "--exhaustive", "--bound", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True


def test_a_failure_is_drawn_recorded_and_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay = tmp_path / "flush.replay"
    with planted(STALE):
        assert run_command(["race", "access-x-punch", "--record", str(replay)]) == 1
        told = capsys.readouterr().out
        assert "FAILED R6: frame" in told
        for shown in ("= store =", "= vm0 =", "<< sends INVALIDATE_BEGIN", ">> receives INVALIDATE_BEGIN"):
            assert shown in told
        assert run_command(["race", "--replay", str(replay), "--json"]) == 1
        again = json.loads(capsys.readouterr().out)
        assert not again["held"] and "diverged" not in again
        assert again["failures"][0].startswith("R6")
    assert run_command(["race", "--replay", str(replay), "--show"]) == 0
    assert "access-x-punch: held" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "which scenario"),
        (["nothing"], "no scenario 'nothing'"),
        (["fault-x-punch", "--bound", "1"], "--exhaustive"),
        (["/nowhere/x.race"], "No such file"),
        (["--replay", "/nowhere/x"], "No such file"),
    ],
)
def test_usage(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["race", *arguments]) == 2
    assert why in capsys.readouterr().err


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["race", "--points"]) == 0
    points = capsys.readouterr().out
    for needed in ("store up send INVALIDATE_BEGIN", "vm up send answer to INVALIDATE_BEGIN", "Mmu.lock taken"):
        assert needed in points
    assert run_command(["race", "--list", "--json"]) == 0
    assert {"scenario", "about"} == set(json.loads(capsys.readouterr().out)[0])


def test_the_other_commands_do_not_load_it() -> None:
    code = "import kvmsim.cli, sys; sys.exit(any(m.startswith(('kvmsim.race', 'memfsd.core')) for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
