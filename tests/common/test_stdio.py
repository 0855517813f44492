"""Programs that are started without stdin, stdout or stderr, or whose output nobody reads."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from memfsd.common.starting import INTERRUPTED
from tests.support.threads import DEADLINE_S, until

SHOW = """
import os, sys
from memfsd.common.stdio import fill_standard_fds
fill_standard_fds()
os.write(int(sys.argv[1]), " ".join(os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)).encode())
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_what_is_closed_becomes_dev_null_and_the_rest_stays(closed: tuple[int, ...]) -> None:
    reader, writer = os.pipe()
    closing = " ".join(f"{fd}<&-" for fd in closed)
    with subprocess.Popen(
        ["/bin/bash", "-c", f'exec {closing}; exec "$@"', "bash", sys.executable, "-c", SHOW, str(writer)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(writer,),
    ) as process:
        process.communicate(timeout=DEADLINE_S)
    os.close(writer)
    with open(reader) as shown:
        found = shown.read().split()
    assert [fd for fd in range(3) if found[fd] == "/dev/null"] == list(closed)


def test_a_closed_stdin_can_not_be_read_nor_a_closed_stdout_be_written() -> None:
    program = "from memfsd.common.stdio import fill_standard_fds as f; f(); import os; os.{}"
    for closing, call in (("<&-", "read(0, 1)"), (">&-", "write(1, b'x')")):
        done = subprocess.run(
            ["/bin/bash", "-c", f'"$@" {closing}', "bash", sys.executable, "-c", program.format(call)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.stderr.endswith("OSError: [Errno 9] Bad file descriptor\n")


SAYS = """
import sys
from memfsd.common.stdio import fill_standard_fds, with_stdout
fill_standard_fds()
sys.exit(with_stdout("it", lambda: print("what is wrong", file=sys.stderr) or int(sys.stderr.isatty())))
"""


def test_what_is_meant_for_a_closed_stderr_is_lost() -> None:
    done = subprocess.run(
        ["/bin/bash", "-c", '"$@" 2>&-', "bash", sys.executable, "-c", SAYS],
        stdout=subprocess.PIPE,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"")


BLOCKED = """
import sys
from memfsd.common.stdio import with_stdout
def run():
    print("said")
    try:
        {}
    except KeyboardInterrupt:
        print("end")
        {}
    return 0
sys.exit(with_stdout("it", run))
"""


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("then", ["raise", "return 130"])
@pytest.mark.parametrize(
    ("waits", "is_full"),
    [("sys.stdout.flush()", True), ("pass", True), ("sys.stdin.readline()", True), ("sys.stdin.readline()", False)],
)
def test_one_interrupt_ends_a_program_whatever_it_waits_for(kind: str, then: str, waits: str, is_full: bool) -> None:
    """What it has said is read where there is room for it."""
    in_read = "stdin" in waits
    reader, writer = os.pipe() if kind == "pipe" else [end.detach() for end in socket.socketpair()]
    filled = _fill(writer) if is_full else 0
    with subprocess.Popen(
        [sys.executable, "-c", BLOCKED.format(waits, then)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdin=subprocess.PIPE,
        stdout=writer,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as program:
        os.close(writer)
        until(lambda: _in_call(program.pid, *((0, 0) if in_read else (1, 1))), "it waits")
        program.send_signal(signal.SIGINT)
        with contextlib.ExitStack() as ending:
            ending.callback(program.kill)
            assert program.wait(DEADLINE_S) == INTERRUPTED
        assert program.stderr is not None and program.stderr.read() == b""
    with open(reader, "rb") as rest:
        assert rest.read()[filled:] == (b"" if is_full else b"said\nend\n")


def _fill(writer: int) -> int:
    """Until not one byte finds room: how many there are."""
    os.set_blocking(writer, False)
    filled = 0
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += os.write(writer, bytes(size))
    os.set_blocking(writer, True)
    return filled


def _in_call(pid: int, number: int, fd: int) -> bool:
    """x86's read(2) is 0, write(2) 1."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[:2] == [str(number), hex(fd)]
