"""kvmsim race: what it prints, its exit status, and a failure from finding it to its replay."""

import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsim.cli import run_command
from kvmsim.instruments.outputfile import OutputFile
from kvmsim.instruments.race import cli, exhaustive, explore, minimise, order, record, spread, workers
from kvmsim.instruments.race.runner import Result, run_once
from kvmsim.instruments.race.scenario import Scenario, load
from kvmsim.instruments.race.scheduler import Step, Task
from tests.race.mutants import MUTANTS, planted
from tests.support.threads import DEADLINE_S

STALE = next(mutant for mutant in MUTANTS if mutant.name == "TLB flush forgotten")


def test_a_scenario_that_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["race", "fault-x-fault", "--seed", "3", "--count", "5"]) == 0
    assert "fault-x-fault: 5 runs (random, seed 3)" in (report := capsys.readouterr().out)
    assert report.rstrip().endswith("all held")


def test_exhaustive_says_whether_it_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["race", "unlink-x-fault", "--exhaustive", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["held"] is report["complete"] is True
    assert run_command(["race", "fault-x-fault", "--exhaustive", "--limit", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is False
    assert run_command(["race", "fault-x-fault", "--exhaustive", "--bound", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True


def test_a_failure_is_drawn_recorded_and_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay = tmp_path / "flush.replay"
    with planted(STALE):
        assert run_command(["race", "access-x-punch", "--record", str(replay)]) == 1
        report = capsys.readouterr().out
        assert "FAILED R6: frame" in report
        for shown in ("= store =", "= vm0 =", "<< sends INVALIDATE_BEGIN", ">> receives INVALIDATE_BEGIN"):
            assert shown in report
        assert run_command(["race", "--replay", str(replay), "--json"]) == 1
        again = json.loads(capsys.readouterr().out)
        assert not again["held"] and "diverged" not in again
        assert again["failures"][0].startswith("R6")
    assert run_command(["race", "--replay", str(replay), "--show"]) == 3, "held, but under another schedule"
    assert "access-x-punch: held" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "which scenario"),
        (["nothing"], "no scenario 'nothing'"),
        (["fault-x-punch", "--bound", "1"], "--exhaustive"),
        (["/nowhere/x.race"], "No such file"),
        (["--replay", "/nowhere/x"], "No such file"),
        ([""], "which scenario"),
        (["fault-x-fault", "--exhaustive", "--seed", "3"], "--seed belongs to random"),
        (["fault-x-fault", "--workers", "2", "--cluster", "x"], "--workers does not go with --cluster"),
        (["fault-x-fault", "--workers", "2", "--exhaustive", "--bound", "1"], "--bound runs in one process"),
        (["fault-x-fault", "--show"], "--show belongs to --replay"),
        (["--page-map", "off", "--replay", "x"], "--page-map does not go with --replay"),
        (["fault-x-fault", "--replay", "x"], "SCENARIO does not go with --replay"),
        (["fault-x-fault", "--record", "/nowhere/x"], "does not exist: create it first"),
        (["fault-x-fault", "--record", "/tmp"], "is a directory"),
        (["fault-x-fault", "--record", "-"], "- is standard output"),
        (["--list", "--exhaustive"], "--exhaustive does not go with --list"),
        (["--list", "fault-x-fault"], "SCENARIO does not go with --list"),
        (["--list", "--replay", "x"], "--replay does not go with --list"),
        (["--points", "--list"], "--list does not go with --points"),
        (["./a\nb\x1b[31m"], r"'a'$'\n''b'$'\033''[31m': No such file"),
        (["a\nb\x1b[31m"], r"no scenario 'a\nb\033[31m'"),
        (["fault-x-fault", "--record", "/nowhere/\x1b"], r"'/nowhere/'$'\033': directory /nowhere does not exist"),
    ],
)
def test_usage(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["race", *arguments]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scenario", "said", "reads"),
    [
        ("two-vms", [], set()),
        ("two-vms", ["--page-map", "off"], set()),
        ("two-vms", ["--page-map", "on"], {"vm0", "vm1"}),
        ("map-x-punch", [], {"vm0"}),
        ("map-x-punch", ["--page-map", "off"], set()),
    ],
)
def test_page_maps_are_read_by_every_vm_or_by_none(
    scenario: str, said: list[str], reads: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raced: list[set[str]] = []

    def explored(_: object, scenario: Scenario) -> int:
        raced.append(scenario.page_maps)
        return 0

    monkeypatch.setattr(cli, "_explore", explored)
    assert run_command(["race", scenario, *said]) == 0
    assert raced == [reads]


def test_a_number_of_workers(capsys: pytest.CaptureFixture[str]) -> None:
    for number in ("0", "65", "two"):
        with pytest.raises(SystemExit):
            run_command(["race", "fault-x-fault", "--workers", number])
        assert f"'{number}' is not a number of processes: choose 1 to 64" in capsys.readouterr().err
    assert run_command(["race", "fault-x-fault", "--count", "3", "--workers", "1"]) == 0
    assert "3 runs (random, seed 0)" in capsys.readouterr().out


def test_an_address_is_not_empty(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_command(["race", "fault-x-fault", "--cluster", ""])
    assert end.value.code == 2
    assert "the address is empty" in capsys.readouterr().err


def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line that finds a failure, in its own directory."""
    monkeypatch.chdir(tmp_path)
    return ["race", "access-x-punch"]


def test_a_failure_that_can_not_be_recorded_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = failing(tmp_path, monkeypatch)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with planted(STALE):
        assert run_command([*command, "--record", "a.replay"]) == 1
        report = capsys.readouterr()
        assert "FAILED R6: frame" in report.out
        assert "not recorded: a.replay: No space left" in report.err
        assert run_command([*command, "--record", "a.replay", "--json"]) == 1
        again = json.loads(capsys.readouterr().out)
        assert again["replay"] is None and again["failures"]


class Broken(io.StringIO):
    """A standard output whose reader is gone."""

    def write(self, _: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_failure_is_recorded_and_told_when_standard_output_fails(
    how: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = failing(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "stdout", Broken())
    with planted(STALE):
        with pytest.raises(BrokenPipeError):
            run_command([*command, *how])
        assert "FAILED, in " in capsys.readouterr().err
        monkeypatch.undo()
        assert run_command(["race", "--replay", str(tmp_path / "access-x-punch.replay")]) == 1


def test_where_no_record_can_be_written_nothing_is_explored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may write into any directory: here the name is too long."""
    scenario = tmp_path / f"{'x' * 250}.race"
    scenario.write_text("file mem 4\nvm vm0\nvcpu0: read 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_search", lambda *_: pytest.fail("it is explored"))
    assert run_command(["race", str(scenario)]) == 2
    assert "File name too long: name another file (--record)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [scenario]


def test_a_failure_of_a_run_that_was_cut_short_is_recorded_up_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = failing(tmp_path, monkeypatch)
    monkeypatch.setattr(minimise, "minimise", lambda _, failed: failed)
    with planted(STALE):
        whole = next(result for result in explore.seeded(load("access-x-punch"), 0, 1000) if result.failures)
        cut = next(at for at in range(len(whole.steps)) if run_once(load("access-x-punch"), Cut(whole, at)).failures)

        def every(scenario: Scenario) -> Iterator[Result]:
            yield run_once(scenario, Cut(whole, cut))

        monkeypatch.setattr(exhaustive, "every", every)
        assert run_command([*command, "--exhaustive", "--json"]) == 1
        steps = json.loads(capsys.readouterr().out)["steps"]
        assert steps > cut
        assert run_command(["race", "--replay", "access-x-punch.replay", "--json"]) == 1
        again = json.loads(capsys.readouterr().out)
        assert "diverged" not in again and again["steps"] == steps


class Cut:
    """Follows a run, and cuts it short."""

    def __init__(self, run: Result, at: int) -> None:
        self._replay = explore.Replay(run.schedule)
        self._at = at

    def choose(self, steps: list[Step], enabled: list[Task], current: Task | None) -> Task | None:
        return None if len(steps) == self._at else self._replay.choose(steps, enabled, current)


def test_a_failure_whose_turn_has_not_come_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker has found it; then Ctrl-C comes, or the workers are lost."""
    command = failing(tmp_path, monkeypatch)
    ends: list[BaseException] = [KeyboardInterrupt(), workers.WorkersLost("the workers are lost"), MemoryError()]
    with planted(STALE):
        failed = next(result for result in explore.seeded(load("access-x-punch"), 0, 1000) if result.failures)

        def every(*_: object, ahead: spread.Ahead) -> Iterator[spread.Ran]:
            yield 1, None
            ahead(failed.schedule)
            raise ends.pop()

        monkeypatch.setattr(spread, "every", every)
        while ends:
            assert run_command([*command, "--exhaustive", "--workers", "1"]) == 1
            assert "FAILED R6: frame" in capsys.readouterr().out
            Path("access-x-punch.replay").unlink()


def test_an_interruption_while_the_record_is_written_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = failing(tmp_path, monkeypatch)
    save = record.save

    def interrupted(to: OutputFile, scenario: Scenario, failed: Result) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save(to, scenario, failed)

    monkeypatch.setattr(record, "save", interrupted)
    with planted(STALE):
        assert run_command(command) == 1
    assert "FAILED R6: frame" in capsys.readouterr().out
    assert Path("access-x-punch.replay").exists()


def test_memory_that_is_short_is_no_failure_that_was_found() -> None:
    done = subprocess.run(
        ["/bin/bash", "-c", f"ulimit -v 250000; exec {sys.executable} -m kvmsim race fault-x-fault"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("kvmsim: out of memory")


def test_the_command_that_it_tells_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = failing(tmp_path, monkeypatch)
    with planted(STALE):
        assert run_command([*command, "--record=-a b"]) == 1
        typed = shlex.split(capsys.readouterr().out.rpartition(": kvmsim ")[2])
        assert run_command(typed) == 1


def test_a_file_that_is_no_record_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = failing(tmp_path, monkeypatch)
    mine = tmp_path / "access-x-punch.replay"
    mine.write_text("my notes")
    assert run_command(command) == 2
    assert "not a record: name another file" in capsys.readouterr().err
    assert mine.read_text() == "my notes"
    mine.write_text("")
    with planted(STALE):
        assert run_command(command) == 1
        assert run_command(command) == 1, "a record of before is replaced"


def test_an_interruption_tells_what_was_found_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = failing(tmp_path, monkeypatch)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(minimise, "minimise", interrupted)
    with planted(STALE):
        assert run_command(command) == 1
    assert "FAILED R6: frame" in capsys.readouterr().out
    assert (tmp_path / "access-x-punch.replay").exists()
    monkeypatch.setattr(order, "class_of", interrupted)
    assert run_command([*command, "--exhaustive", "--json"]) == 130
    report = json.loads(capsys.readouterr().out)
    assert report["interrupted"] and report["held"] and not report["complete"]


def test_a_limit_that_is_not_reached_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["race", "fault-x-fault", "--exhaustive", "--json"])
    runs = json.loads(capsys.readouterr().out)["runs"]
    for limit, complete in ((runs, True), (runs - 1, False)):
        assert run_command(["race", "fault-x-fault", "--exhaustive", "--json", "--limit", str(limit)]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["runs"], report["complete"]) == (limit, complete)


def test_a_record_of_other_code_is_no_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.replay"
    scenario = load("fault-x-punch")
    record.save(record.record_file(path), scenario, next(explore.seeded(scenario, 1, 1)))
    report = json.loads(path.read_text())
    for turns in (report["turns"][:-1], [*report["turns"], ["host", 3]], [["nobody", 1], *report["turns"]]):
        path.write_text(json.dumps(report | {"turns": turns}))
        assert run_command(["race", "--replay", str(path)]) == 3
        assert "cannot be replayed" in capsys.readouterr().err


def test_a_scenario_that_can_not_be_set_up_is_not_raced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.race"
    path.write_text("file mem 4\nvm vm0\nbefore vmm: slot 0 mem 0 3 4\nvcpu0: read 0\n")
    assert run_command(["race", str(path)]) == 2
    assert "before vm0.vmm: slot 0 mem 0 3 4: EINVAL" in capsys.readouterr().err


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["race", "--points"]) == 0
    points = capsys.readouterr().out
    for needed in ("store up send INVALIDATE_BEGIN", "vm up send answer to INVALIDATE_BEGIN", "Mmu.lock taken"):
        assert needed in points
    assert run_command(["race", "--list", "--json"]) == 0
    assert {"scenario", "about"} == set(json.loads(capsys.readouterr().out)[0])


def test_the_other_commands_do_not_load_it() -> None:
    apart = ("kvmsim.instruments.race", "memfsd.core")
    code = f"import kvmsim.cli, sys; sys.exit(any(m.startswith({apart}) for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=DEADLINE_S, check=False).returncode == 0
