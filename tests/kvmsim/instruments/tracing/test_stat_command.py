"""kvmsim stat: once, as a log, live, by VM."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvmsim.cli import run_command
from tests.support.threads import DEADLINE_S, until
from tests.support.traced import vm_exit, write_traces

ROOT = Path(__file__).parents[4]
KVMSIM = [sys.executable, "-c", "from kvmsim.cli import main; main()"]


def test_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(path) for path in write_traces(tmp_path)]
    assert run_command(["stat", *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "kvm_exit(EPT_VIOLATION)" + " " * 38 + "2" in lines
    totals = [int(line.split()[-1]) for line in lines]
    assert totals == sorted(totals, reverse=True)
    assert run_command(["stat", "-1", "--json", "-f", "^kvm_page", *paths]) == 0
    assert json.loads(capsys.readouterr().out) == {"kvm_page_fault": 1}
    assert run_command(["stat", "-b", "--json", *paths]) == 0
    assert json.loads(capsys.readouterr().out) == {"memfsd": 5, "vm0": 15}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["/nowhere"], "/nowhere: No such file"),
        (["-f", "(", "x"], "'(' is no regular expression"),
        (["-s", "0", "x"], "'0' is no interval"),
        (["-s", "nan", "x"], "'nan' is no interval"),
        (["-1", "-l", "x"], "not allowed with"),
        ([], "name traces (FILE), or one VM with -m"),
        (["-m", "vm0", "x"], "name traces (FILE), or one VM with -m"),
        (["-m", "/nowhere/socket"], "/nowhere/socket: No such file"),
    ],
)
def test_what_is_refused(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = run_command(["stat", *words])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_log_goes_on_as_the_trace_grows_until_ctrl_c(tmp_path: Path, as_json: bool) -> None:
    _, vm = write_traces(tmp_path)
    words = ["stat", "-l", "-s", "0.1", "-f", "^kvm_exit$", str(vm), *(["--json"] if as_json else [])]
    run = subprocess.Popen(
        [*KVMSIM, *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert run.stdout is not None
        first = run.stdout.readline()
        if as_json:
            assert json.loads(first)["came"] == {"kvm_exit": 2}
        else:
            assert (first.split(), run.stdout.readline().split()) == (["kvm_exit"], ["2"])
        with vm.open("a") as file:
            file.write(vm_exit(400))
        while True:
            line = run.stdout.readline()
            if (json.loads(line)["came"]["kvm_exit"] if as_json else int(line)) == 1:
                break
        run.send_signal(signal.SIGINT)
        assert run.wait(DEADLINE_S) == 0
    finally:
        run.kill()
        run.communicate()


def test_live_on_a_terminal_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    _, vm = write_traces(tmp_path)
    ours, theirs = os.openpty()
    run = subprocess.Popen(
        [*KVMSIM, "stat", "-s", "0.1", str(vm)],
        stdout=theirs,
        cwd=ROOT,
    )
    os.close(theirs)
    try:
        said = b""
        while b"kvm_exit(EPT_VIOLATION)" not in said:
            said += os.read(ours, 4096)
        assert said.startswith(b"\x1b[H\x1b[JEvent")
        run.send_signal(signal.SIGINT)
        assert run.wait(DEADLINE_S) == 0
    finally:
        run.kill()
        run.wait()
        os.close(ours)


def test_the_statistics_of_a_vm_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    socket = str(tmp_path / "qmp")
    run = subprocess.Popen(
        [*KVMSIM, "shell", "--qmp", f"unix:{socket}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    try:
        assert run.stdin is not None
        run.stdin.write(
            "slot set 0 shared gpa=0 size=64K\nwrite 0 aa shared\nread 3G 4 shared\nsh touch done\n".replace(
                "done", str(tmp_path / "done")
            )
        )
        run.stdin.flush()
        until((tmp_path / "done").exists, "the script ran")
        assert run_command(["stat", "-m", socket, "--json", "-f", "^(pf_taken|mmio_exits|pages_4k)$"]) == 0
        assert json.loads(capsys.readouterr().out) == {"mmio_exits": 1, "pages_4k": 1, "pf_taken": 2}
        assert run_command(["stat", "-m", socket, "-g", "other"]) == 2
        assert "other" in capsys.readouterr().err
    finally:
        run.kill()
        run.communicate()
