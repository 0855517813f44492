"""kvmsim attach on a real mount: its exit status when commands come from a pipe, and its prompt."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.real_mount import BIN, DEADLINE_S, ENVIRONMENT, DirectoryFactory, seal
from tests.support.terminal import CTRL_C, Terminal

SIZE = 64 << 20


@pytest.fixture
def file(own_directory: DirectoryFactory) -> Path:
    path = own_directory("size=256M") / "vm.mem"
    path.touch()
    seal(path)
    os.truncate(path, SIZE)
    return path


def attach(file: Path, script: str, *options: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [BIN / "kvmsim", "attach", *options, file],
        input=script,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=ENVIRONMENT,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("write 0 aa\nread 0 1\nexpect data aa\n", 0, ""),
        ("read 0 1 shared\nexpect exit MEMORY_ERROR\n", 0, ""),
        ("read 0 1 shared\nread 0 1\n", 1, "kvmsim: line 1: it did not do what it should, and no expect follows\n"),
        ("read 0 1\nexpect data ff\n", 1, ""),
        ("raed 0 1\nread 0 1\n", 2, "kvmsim: line 1, column 1: unknown command 'raed': did you mean 'read'?\n"),
        ("sh exit 3\nquit\n", 1, "kvmsim: line 1: it did not do what it should, and no expect follows\n"),
    ],
)
def test_commands_from_a_pipe_have_an_exit_status(file: Path, script: str, status: int, said: str) -> None:
    code, out, err = attach(file, script)
    assert (code, err) == (status, said), out


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("-v", ["is paired with inode", "is no longer paired with inode"]),
        ("-vv", ["is paired with inode", "gave back pages 0x0-0x1 of", "is over, sequence", "is no longer paired"]),
    ],
)
def test_what_a_vm_logs_goes_to_stderr(file: Path, option: str, said: list[str]) -> None:
    script = f"write 0 aa\nsh memfs fallocate -p -o 0 -l 4096 {file}\n"
    code, out, err = attach(file, script, option)
    assert (code, out) == (0, ""), err
    lines = err.splitlines()
    assert len(lines) == len(said), lines
    for line, part in zip(lines, said, strict=True):
        assert line.startswith("kvmsim: VM vm0")
        assert part in line


def test_a_closed_stderr_does_not_keep_a_vm_from_logging(file: Path) -> None:
    done = subprocess.run(
        f"echo read 0 1 | {BIN / 'kvmsim'} attach -vv {file} 2>&-",
        shell=True,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=ENVIRONMENT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_json_is_one_object_a_line(file: Path) -> None:
    script = "write 0 aa\nraed\nhelp\nread 0 1\n"
    code, out, _ = attach(file, script, "--json")
    assert code == 2
    assert [json.loads(line)["source"] for line in out.splitlines()] == script.splitlines()


def test_bytes_that_are_not_text_are_refused_and_named(file: Path) -> None:
    done = subprocess.run(
        [BIN / "kvmsim", "attach", file],
        input=b"\xff\nread 0 1\n",
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"kvmsim: line 1, column 1: ") and done.stderr.count(b"\n") == 1


def test_a_journal_that_cannot_be_written_is_in_the_exit_status(file: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    limited = ["prlimit", "--fsize=4096", str(BIN / "kvmsim"), "attach", "--journal", str(journal), str(file)]
    script = "".join(f"read {page:#x} 1\n" for page in range(0, 64 << 12, 1 << 12)) * 2
    done = subprocess.run(limited, input=script, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and str(journal) in done.stderr


def test_ctrl_c_stops_an_access_and_the_file_stays_attached(file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with Terminal([str(BIN / "kvmsim"), "attach", str(file)], tmp_path) as terminal:
        terminal.until("(kvmsim) ")
        terminal.type(f"load 0 {tmp_path}/fifo\n")
        with (tmp_path / "fifo").open("wb", buffering=0) as pipe:
            terminal.type(CTRL_C)
            assert "EINTR" in terminal.until("(kvmsim) ")
            terminal.type("resume\n")
            pipe.write(b"private")
        assert "7 bytes" in terminal.until("(kvmsim) ")
        terminal.type("read 0 7\n")
        assert "|private|" in terminal.until("(kvmsim) ")
        terminal.type("q\n")
        assert terminal.process.wait(DEADLINE_S) == 0
