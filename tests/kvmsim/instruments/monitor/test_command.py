"""`kvmsim monitor` from a second terminal, `kvmsim shell`, and `quit` wherever the process is."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.prompt import PROMPT, ROOT
from tests.support.terminal import DEADLINE_S, Terminal
from tests.support.threads import until

KVMSIM = [sys.executable, "-m", "kvmsim"]


class Vm:
    """`kvmsim run` of a VM that waits in a guest access until its fifo is written."""

    def __init__(self, place: Path, *arguments: str) -> None:
        self.socket, self.fifo = place / "qmp", place / "fifo"
        os.mkfifo(self.fifo)
        script = place / "script"
        script.write_text(f"slot set 0 shared gpa=0 size=64K\nload 0x8000000000000 {self.fifo}\nsh echo after\n")
        self.process = subprocess.Popen(
            [*KVMSIM, "run", script, "--qmp", f"unix:{self.socket}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        self.pipe = self.fifo.open("wb", buffering=0)

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out

    def close(self) -> None:
        self.pipe.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    vm = Vm(tmp_path)
    yield vm
    vm.close()


def monitor(*arguments: object, lines: str = "") -> tuple[int, str, str]:
    command = [*KVMSIM, "monitor", *map(str, arguments)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=DEADLINE_S, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def test_what_runs_is_listed_and_found_by_pid(vm: Vm) -> None:
    pid = vm.process.pid
    facts = [fact for fact in json.loads(monitor("--json")[1]) if fact["pid"] == pid]
    assert [(fact["vm"], fact["state"], fact["vcpus"], fact["slots"]) for fact in facts] == [("vm0", "running", 1, 1)]
    assert re.search(rf"^ *{pid} vm0 +running +1 +1 .*/{pid}\.qmp$", monitor()[1], re.MULTILINE)
    assert monitor(pid, "info", "slots")[1].startswith("SPACE")
    assert not os.path.exists(facts[0]["socket"]) or oct(os.stat(facts[0]["socket"]).st_mode)[-3:] == "600"


def test_one_command_and_its_refusals(vm: Vm) -> None:
    assert json.loads(monitor(vm.socket, "query-status", "--json")[1]) == {"running": True, "status": "running"}
    assert json.loads(monitor(vm.socket, "query-ept", "space=shared", "gpa=0x0", "--json")[1]) == {"mappings": []}
    for words, why in (
        (["query-ept", "gpa=x"], "Invalid parameter type for 'gpa', expected: integer"),
        (["query-ept", "gpa"], "gpa is no argument: write NAME=VALUE"),
        (["nonsense"], "nonsense is no command of the monitor: see help"),
        (["info", "nonsense"], "column 6"),
    ):
        status, out, err = monitor(vm.socket, *words)
        assert (status, out) == (1, "")
        assert err.startswith("kvmsim: ") and why in err and err.count("\n") == 1
    status, _, err = monitor("/nowhere/socket")
    assert (status, err) == (
        1,
        "kvmsim: /nowhere/socket: No such file or directory: see 'kvmsim monitor' for what runs\n",
    )
    assert "no VM of that name or pid runs" in monitor("no-such-vm")[2]


def test_lines_from_a_pipe_see_events(vm: Vm) -> None:
    status, out, _ = monitor(vm.socket, lines="stop\n\ninfo run\ncont\n")
    assert status == 0
    assert [json.loads(line)["event"] for line in out.splitlines() if line.startswith("{")] == ["STOP", "RESUME"]
    assert "vcpu 0: " in out


def test_a_prompt_has_tab_and_survives_ctrl_c(vm: Vm, tmp_path: Path) -> None:
    text = "(monitor) "
    with Terminal([*KVMSIM, "monitor", str(vm.socket)], tmp_path) as terminal:
        assert "leaves" in terminal.until(text)
        terminal.type("query-stat\t\t")
        assert "query-stats-schemas" in terminal.until(text)
        terminal.interrupt(text)
        terminal.type("info mem\t\n")
        assert "private_mapped" in terminal.until(text)
        terminal.type("exit\n")
        assert terminal.process.wait(DEADLINE_S) == 0
    assert vm.process.poll() is None, "the VM runs on"


def test_quit_ends_a_run_in_the_middle_of_an_access(vm: Vm) -> None:
    assert monitor(vm.socket, "quit")[0] == 0
    status, out = vm.end()
    assert status == 0
    assert "after" not in out.replace("sh echo", "")
    assert not vm.socket.exists()


def test_quit_ends_a_run_whose_sigint_is_ignored(tmp_path: Path) -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        vm = Vm(tmp_path)
    finally:
        signal.signal(signal.SIGINT, previous)
    try:
        monitor(vm.socket, "quit")
        assert vm.end()[0] == 0
    finally:
        vm.close()


def test_ctrl_c_ends_a_run_that_is_stopped(vm: Vm) -> None:
    monitor(vm.socket, "stop")
    vm.process.send_signal(signal.SIGINT)
    assert vm.end()[0] == 130


def test_a_socket_that_cannot_be_is_one_line_and_nothing_runs(vm: Vm, tmp_path: Path) -> None:
    done = subprocess.run(
        [*KVMSIM, "run", "-", "--qmp", f"unix:{vm.socket}"],
        input="sh echo run\n",
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("another kvmsim listens there: choose another --qmp unix:PATH\n")
    assert done.stderr.count("\n") == 1


def test_a_prompt_without_a_file(tmp_path: Path) -> None:
    socket = tmp_path / "qmp"
    with Terminal([*KVMSIM, "shell", "--qmp", f"unix:{socket}"], tmp_path) as terminal:
        assert "vm0 has no memory yet" in terminal.until(PROMPT)
        terminal.type("slot set 0 shared gpa=0 size=4K\n")
        terminal.until(PROMPT)
        monitor(socket, "stop")
        terminal.type("read 0 4 shared\n")
        until(lambda: '"paused"' in monitor(socket, "query-status")[1], "it is stopped")
        terminal.interrupt("EINTR")
        terminal.until(PROMPT)
        monitor(socket, "cont")
        terminal.type("resume\n")
        assert "00 00 00 00" in terminal.until(PROMPT)
        assert monitor(socket, "quit")[0] == 0, "while it waits for a line"
        assert terminal.process.wait(DEADLINE_S) == 0


def test_shell_takes_its_lines_from_a_pipe_and_quit_ends_it_there(tmp_path: Path) -> None:
    socket = tmp_path / "qmp"
    shell = subprocess.Popen(
        [*KVMSIM, "shell", "--qmp", f"unix:{socket}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert shell.stdin is not None and shell.stdout is not None
    shell.stdin.write("info vms\n")
    shell.stdin.flush()
    assert "vm0" in shell.stdout.readline()
    assert monitor(socket, "quit")[0] == 0
    assert shell.wait(DEADLINE_S) == 0
    shell.stdin.close()
    shell.stdout.close()
