"""tools/demo tells its story, and leaves nothing behind however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.real_mount import ENVIRONMENT
from tests.support.threads import DEADLINE_S, until

DEMO = Path(__file__).parents[2] / "tools" / "demo.py"


def start(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, DEMO],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**ENVIRONMENT, "TMPDIR": str(directory)},
        start_new_session=True,
    )


def leftovers(directory: Path) -> list[str]:
    """Mounts below, entries in, and processes that were started with the name of something in this directory."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {directory}/" in line]
    commands = []
    for entry in Path("/proc").iterdir():
        try:
            commands.append((entry / "cmdline").read_text(errors="replace"))
        except OSError:
            continue
    return [*mounts, *os.listdir(directory), *(command for command in commands if f"{directory}/" in command)]


def test_it_holds_from_beginning_to_end(tmp_path: Path) -> None:
    demo = start(tmp_path)
    report, _ = demo.communicate(timeout=100)
    assert demo.returncode == 0, report
    assert " 0 failed, in " in report.splitlines()[-1]
    assert "✗" not in report
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("at", ["$ memfsd", "(kvmsim) load"])
def test_it_leaves_nothing_when_it_is_ended(tmp_path: Path, number: int, at: str) -> None:
    demo = start(tmp_path)
    assert demo.stdout is not None
    assert any(at in line for line in demo.stdout)
    os.killpg(demo.pid, number) if number == signal.SIGINT else demo.send_signal(number)
    demo.stdout.read()
    demo.stdout.close()
    assert demo.wait(DEADLINE_S) == (-number if number == signal.SIGKILL else 130)
    until(lambda: leftovers(tmp_path) == [], "nothing is left")
