"""Ctrl-C stops a command and nothing else: the prompt, the VM and the access that was under way stay."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
from contextlib import closing
from pathlib import Path

import pytest

from kvmsim.shell.execute import Executor
from kvmsim.shell.script.grammar import parse_line
from kvmsim.shell.script.outcome import Outcome
from memfsd.uapi.errors import Refused
from tests.support.prompt import PROMPT, ROOT, PromptTerminal
from tests.support.terminal import CTRL_C
from tests.support.threads import DEADLINE_S, until


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_an_access_is_stopped_and_goes_on_where_it_was(terminal: PromptTerminal, fifo: Path) -> None:
    terminal.run("slot set 0 shared gpa=0 size=64K")
    terminal.run("hlt")
    terminal.type(f"load 0x8000000001000 {fifo}\n")  # with the SHARED bit
    with fifo.open("wb", buffering=0) as pipe:  # returns when the command has opened it
        pipe.write(b"first ")
        terminal.type(CTRL_C)
        assert "EINTR" in terminal.until(PROMPT)
        assert "under way" in terminal.run("info run")
        terminal.type("resume\n")
        pipe.write(b"second")
        pipe.close()
        assert "12 bytes" in terminal.until(PROMPT)
    assert "first second" in terminal.run("read 0x1000 12 shared").replace("|", "")


def test_it_can_be_stopped_again_and_again(terminal: PromptTerminal, fifo: Path) -> None:
    terminal.run("slot set 0 shared gpa=0 size=64K")
    terminal.type(f"load 0x8000000000000 {fifo}\n")
    with fifo.open("wb", buffering=0) as pipe:
        for _ in range(3):
            pipe.write(b"x")
            until(lambda: unread(pipe.fileno()) == 0, "the command reads")
            terminal.type(CTRL_C)
            assert "EINTR" in terminal.until(PROMPT)
            terminal.type("resume\n")
    assert "3 bytes" in terminal.until(PROMPT)
    assert terminal.run("read 0 3 shared").endswith("|xxx|\n"), "nobody is kicked by what came before"


def test_machine_code_that_never_exits_is_stopped_and_goes_on(terminal: PromptTerminal, tmp_path: Path) -> None:
    """The signal's handler is Python, on the thread that is in the emulator."""
    (tmp_path / "loop").write_bytes(bytes.fromhex("ebfe"))  # jmp $
    terminal.run("slot set 0 shared gpa=0 size=64K")
    terminal.run(f"boot {tmp_path}/loop at=0x8000000001000")
    pid = terminal.process.pid
    for command in ("cpu run", "resume"):
        before = cpu_time(pid)
        terminal.type(f"{command}\n")
        until(lambda before=before: cpu_time(pid) > before + 50, "it is in the loop")  # type: ignore[misc]
        terminal.type(CTRL_C)
        assert "EINTR" in terminal.until(PROMPT)
        assert "rip" in terminal.run("cpu regs")


def cpu_time(pid: int) -> int:
    """Of a process so far, in ticks."""
    return sum(int(field) for field in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])


def unread(fd: int) -> int:
    """Bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_wait_for_a_started_vcpu_ends_and_the_vcpu_runs_on(fifo: Path) -> None:
    with closing(Executor(8)) as executor:
        run = Run(executor)
        run("slot set 0 shared gpa=0 size=64K")
        run(f"start load 0x8000000000000 {fifo}")
        with fifo.open("wb", buffering=0) as pipe:
            with pytest.raises(Refused, match="EINTR: vCPU 0 runs on"):
                run("join", interrupted=True)
            pipe.write(b"all of it")
        assert run("join").text == "9 bytes"


def test_an_interrupt_that_comes_too_late_for_a_command_is_not_the_next_one_s() -> None:
    with closing(Executor(8)) as executor:
        run = Run(executor)
        run("slot set 0 shared gpa=0 size=64K")
        with pytest.raises(Refused, match="EINTR"):
            run("read 0 1 shared", interrupted=True)
        assert run("resume").data == b"\0"
        run("info slots", interrupted=True)
        assert run("read 0 1 shared").data == b"\0"


class Run:
    """Commands of a script, one by one."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def __call__(self, line: str, *, interrupted: bool = False) -> Outcome:
        """interrupted: SIGINT comes as soon as it has begun."""
        command = parse_line(line, 1)
        assert command is not None
        with self._executor.interrupt.listen(), self._executor.interrupt.command():
            if interrupted:
                signal.raise_signal(signal.SIGINT)
            return self._executor(command)


def test_a_shell_command_is_stopped(terminal: PromptTerminal, fifo: Path) -> None:
    """`exec`, since dash loses a SIGINT that comes between two of its commands."""
    terminal.type(f"sh exec cat {fifo}; echo not reached\n")
    with fifo.open("wb", buffering=0):  # returns when cat has opened it
        terminal.type(CTRL_C)
        said = terminal.until(PROMPT)
    assert "exit status 130" in said and "SIGINT" in said
    assert "not reached" not in said.split("\n", 1)[1]
    assert terminal.run("sh echo still here") == "    still here\n"


def test_a_shell_command_that_ignores_it_is_ended(terminal: PromptTerminal, fifo: Path) -> None:
    terminal.type(f"sh trap '' INT; echo begun > {fifo}; sleep 1000 & wait\n")
    assert fifo.read_text() == "begun\n"
    terminal.type(CTRL_C)
    assert "exit status" in terminal.until(PROMPT)


def test_at_the_prompt_it_clears_the_line(terminal: PromptTerminal) -> None:
    terminal.type("nonsense that is never run")
    terminal.until("never run")
    terminal.interrupt(PROMPT)
    assert terminal.run("info vms").startswith("    * vm0")
    terminal.type("q\n")
    assert terminal.process.wait(DEADLINE_S) == 0


def test_run_ends_in_order_with_130(fifo: Path, tmp_path: Path) -> None:
    script = f"slot set 0 shared gpa=0 size=64K\nload 0x8000000000000 {fifo}\nsh touch {tmp_path}/reached\n"
    journal = tmp_path / "journal"
    run = subprocess.Popen(
        [sys.executable, "-m", "kvmsim", "run", "--journal", journal, "--keep-going", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        text=True,
    )
    assert run.stdin is not None
    run.stdin.write(script)
    run.stdin.close()
    run.stdin = None
    with fifo.open("wb", buffering=0):
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=DEADLINE_S)
    assert (run.returncode, err) == (130, "")
    assert "EINTR" in out
    assert not (tmp_path / "reached").exists()
    assert '"end"' in journal.read_text().splitlines()[-1]
