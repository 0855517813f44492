"""`kvmsim top` of a VM that runs: once, as JSON, on a full screen, until the VM ends."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.prompt import ROOT
from tests.support.terminal import DEADLINE_S
from tests.support.tmux import Screen

KVMSIM = [sys.executable, "-m", "kvmsim"]
RED = "\033[1m\033[37m\033[41m"


class Vm:
    """At its prompt, with 64 KiB of shared memory."""

    def __init__(self, place: Path) -> None:
        self.socket = place / "qmp"
        self.process = subprocess.Popen(
            [*KVMSIM, "shell", "--json", "--qmp", f"unix:{self.socket}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.do("slot set 0 shared gpa=0 size=64K")

    def do(self, line: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert json.loads(self.process.stdout.readline())["ok"], line

    def end(self) -> None:
        self.process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    vm = Vm(tmp_path)
    yield vm
    vm.end()


def top(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [*KVMSIM, "top", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, cwd=ROOT)


def test_once_for_scripts_and_for_people(vm: Vm) -> None:
    vm.do("touch 8K 16K shared")
    facts = json.loads(top(vm.socket, "--once", "--json").stdout)
    assert (facts["vm"], facts["pid"], facts["running"]) == ("vm0", vm.process.pid, True)
    assert facts["memory"] | {"files": []} == {
        "private": 0, "shared": 16384, "doubled": 0, "punched": 0, "files": [], "held-twice": []
    }  # fmt: skip
    assert [(run["gpa"], run["size"]) for run in facts["mappings"]["shared"]] == [(8192, 16384)]
    assert facts["stats"]["pf_fixed"] >= 1 and facts["store"] is None
    shown = top(vm.socket, "--once").stdout.splitlines()
    assert shown[0].startswith(f"vm0 of {vm.process.pid}  running  policy none")
    assert "held twice 0" in shown[2]
    assert shown[-1] == "0x00000000000  ..SSSS.........."
    assert max(map(len, shown)) <= 80


def test_a_full_screen_follows_the_vm_has_the_screens_size_and_ends_with_it(vm: Vm) -> None:
    command = " ".join([*KVMSIM, "top", str(vm.socket), "-d", "0.1"])
    with Screen(f"cd {ROOT}; {command}") as screen:
        screen.until("unmapped")
        vm.do("slot set 1 shared gpa=1M size=32K")
        vm.do("touch 1M 32K shared")
        screen.until("0x00000100000  SSSSSSSS")
        screen.resize(60, 12)
        screen.until(lambda shown: "tables" in shown and max(map(len, shown.splitlines())) <= 60)
        vm.end()
        assert screen.ended() == "0"
        assert "vm0 has ended" in screen.text()


@pytest.mark.parametrize("key", ["q", "C-c"])
def test_it_quits_and_the_vm_runs_on(vm: Vm, key: str) -> None:
    with Screen(f"cd {ROOT}; {' '.join(KVMSIM)} top {vm.socket}") as screen:
        screen.until("held twice")
        screen.press(key)
        assert screen.ended() == "0"
    vm.do("touch 0 4K shared")


def test_a_vm_that_ends_ends_a_stream_of_views_well(vm: Vm) -> None:
    with subprocess.Popen(
        [*KVMSIM, "top", vm.socket, "--json", "-d", "0.1"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as views:
        assert views.stdout is not None
        assert json.loads(views.stdout.readline())["vm"] == "vm0"
        vm.end()
        assert views.wait(DEADLINE_S) == 0


def test_what_does_not_run_or_makes_no_sense_is_one_line(tmp_path: Path) -> None:
    done = top(tmp_path / "none")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "see 'kvmsim monitor' for what runs" in done.stderr
    for words in (["-d", "0"], ["-n", "0"], ["-d", "soon"]):
        assert top(tmp_path, *words).returncode == 2
