"""A test run that is killed leaves no process and no mount."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.real_mount import DEADLINE_S, mount_minor
from tests.support.threads import until

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-m", "tests.support.namespaces"]
OUTSIDE = {name: value for name, value in os.environ.items() if name != "MEMFSD_OWN_NAMESPACES"}

MOUNT = """
import sys
from pathlib import Path
from tests.support.real_mount import Mount
Mount(Path(sys.argv[1]), "size=1M")
print("mounted", flush=True)
sys.stdin.read()
"""


def start(*command: str | Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, cwd=ROOT, env=OUTSIDE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_in_the_background_ends_with_its_run(tmp_path: Path, number: signal.Signals) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    script = f"setsid sleep 1000 3<{fifo} & mount -t tmpfs none {mnt} && echo ready; wait"
    with start(*RUN, "sh", "-c", script) as run:
        held = os.open(fifo, os.O_WRONLY)
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        assert f" {mnt} " not in Path("/proc/self/mountinfo").read_text()
        os.kill(run.pid, number)
        assert run.wait(DEADLINE_S) == -number
    until(lambda: _no_reader(held), "the last process with the FIFO open ends")
    os.close(held)


def _no_reader(fifo: int) -> bool:
    try:
        os.write(fifo, b"x")
    except BrokenPipeError:
        return True
    return False


def test_the_status_and_ctrl_c_are_the_commands(tmp_path: Path) -> None:
    assert subprocess.run([*RUN, "sh", "-c", "exit 7"], cwd=ROOT, env=OUTSIDE, check=False).returncode == 7
    with start(*RUN, sys.executable, "-c", "import sys; print('ready', flush=True); sys.stdin.read()") as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(DEADLINE_S) in (1, 128 + signal.SIGINT, -signal.SIGINT)


def test_where_there_are_none_one_line_says_so(tmp_path: Path) -> None:
    """Here unshare(1) is missing; where it is not permitted its own words are the reason."""
    done = subprocess.run(
        [*RUN, "/bin/echo", "run"],
        cwd=ROOT,
        env={**OUTSIDE, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "run\n"
    why = "unshare: No such file or directory"
    assert done.stderr == f"no namespaces for this run ({why}): if it is killed, mounts may stay\n"


def test_a_mount_ends_with_the_process_of_its_test(tmp_path: Path) -> None:
    with start(sys.executable, "-c", MOUNT, tmp_path) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "mounted\n"
        assert mount_minor(tmp_path / "mnt") is not None
        run.kill()
    until(lambda: mount_minor(tmp_path / "mnt") is None, "memfsd unmounts")
