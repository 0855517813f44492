"""`run -` on a pipe that stays open: each command is answered when it was read."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmsim.shell.interrupt import Interrupt
from kvmsim.shell.lines import InputLines
from tests.support.threads import DEADLINE_S

ROOT = Path(__file__).parents[3]


class Piped:
    """kvmsim with a pipe for its standard input."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvmsim", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        record: dict[str, Any] = json.loads(self.process.stdout.readline())
        return record

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err


@contextlib.contextmanager
def piped(*arguments: str) -> Iterator[Piped]:
    running = Piped(*arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


@pytest.fixture
def run() -> Iterator[Piped]:
    with piped("run", "-", "--json") as running:
        yield running


def test_a_command_is_answered_while_the_pipe_is_open(run: Piped) -> None:
    run.say("info vms\n")
    first = run.hear()
    assert (first["line"], first["cmd"], first["ok"]) == (1, "info", True)
    assert first["seconds"] >= 0
    run.say("read 0 1\n")
    assert run.hear()["exit"] == "KVM_EXIT_MEMORY_ERROR"
    run.say("\n# its verdict\nexpect exit MEMORY_ERROR\n")
    assert run.hear()["ok"]
    run.say("repeat 2\ninfo vms\n")
    run.say("end\n")
    assert [run.hear()["cmd"] for _ in range(3)] == ["info", "info", "end"]
    assert run.end() == (0, "", "")


def test_what_nobody_expects_ends_it_when_the_next_line_comes(run: Piped) -> None:
    run.say("read 0 1\n")
    assert "failed" not in run.hear()
    run.say("info vms\n")
    status, out, err = run.end()
    assert (status, out) == (1, "")
    assert err == "kvmsim: line 1: it did not do what it should, and no expect follows\n"


def test_what_is_there_at_once_is_judged_at_once(run: Piped) -> None:
    run.say("read 0 1\ninfo vms\n")
    assert run.hear()["failed"]
    assert run.end() == (1, "", "")


def test_a_line_that_cannot_be_parsed_ends_it_there(run: Piped) -> None:
    run.say("info vms\nraed\n")
    assert run.hear()["ok"]
    status, out, err = run.end()
    assert (status, out) == (2, "")
    assert err.startswith("kvmsim: standard input: line 2, column 1: unknown command 'raed'")


@pytest.mark.parametrize("command", ["run", "shell"])
def test_ctrl_c_while_it_waits_for_a_line_ends_it(command: str) -> None:
    with piped(command, "--json", *(["-"] if command == "run" else [])) as waiting:
        waiting.say("info vms\n")
        assert waiting.hear()["ok"]
        waiting.process.send_signal(signal.SIGINT)
        assert waiting.process.wait(DEADLINE_S) == 130


def test_a_script_in_a_file_is_parsed_as_a_whole(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"sh touch {tmp_path}/made\nraed\n")
    with script.open() as stdin:
        run = subprocess.run(
            [sys.executable, "-m", "kvmsim", "run", "-"], stdin=stdin, cwd=ROOT, capture_output=True, timeout=DEADLINE_S
        )
    assert run.returncode == 2
    assert not (tmp_path / "made").exists()


@pytest.fixture
def pipe() -> Iterator[tuple[InputLines, int]]:
    """Lines, and the end to write them to."""
    theirs, ours = os.pipe()
    yield InputLines(theirs, Interrupt()), ours
    os.close(theirs)
    with contextlib.suppress(OSError):
        os.close(ours)


def test_the_next_word_is_known_when_it_is_there(pipe: tuple[InputLines, int]) -> None:
    lines, ours = pipe
    assert lines.next_word() is None
    os.write(ours, b"\n  # nothing\n  expe")
    assert lines.next_word() is None
    os.write(ours, b"ct ok\r\nlast")
    assert lines.next_word() == "expect"
    reading = iter(lines)
    assert [next(reading) for _ in range(3)] == ["", "  # nothing", "  expect ok"]
    assert lines.next_word() is None
    os.close(ours)
    assert lines.next_word() == "last"
    assert list(reading) == ["last"]
    assert lines.next_word() == ""


def test_a_byte_order_mark_is_left_out_and_bad_bytes_are_kept(pipe: tuple[InputLines, int]) -> None:
    lines, ours = pipe
    os.write(ours, b"\xef\xbb\xbfinfo vms\nsh \xff\n")
    os.close(ours)
    assert list(lines) == ["info vms", "sh \udcff"]
