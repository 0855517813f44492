"""How tools/soak is called, and what two processes see of one ledger."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from soaklib.ledger import COUNTERS, Ledger

from tests.support.threads import DEADLINE_S

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "soaklib", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_help_tells_what_happens_and_how_to_repeat_it() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in ("--minutes", "--seed", "--round K", "--json", "exit status"):
        assert word in done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        ("--minutes", "0"),
        ("--minutes", "nan"),
        ("--settle", "-1"),
        ("--round", "-1"),
        ("--seed", "x"),
        ("x",),
        ("--rounds", "0"),
        ("--round", "3", "--rounds", "2"),
    ],
)
def test_usage_is_one_line_and_status_2(wrong: tuple[str, ...]) -> None:
    done = run(*wrong)
    assert done.returncode == 2
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("tools/soak: ")


def test_a_store_that_does_not_mount_is_a_failure_not_a_traceback(tmp_path: Path) -> None:
    done = run("--round", "0", "--memfsd", "/bin/false")
    assert done.returncode == 1
    assert "memfsd ended with 1" in done.stdout
    assert "Traceback" not in done.stderr


def test_host_and_vmm_see_one_ledger(tmp_path: Path) -> None:
    host = Ledger(tmp_path / "ledger", 16, create=True)
    vmm = Ledger(tmp_path / "ledger", 16)
    with host.moments.taking(3, 5):
        assert vmm.moments.begun.tolist() == [0, 0, 0, 1, 1, *[0] * 11]
        assert not vmm.moments.ended.any()
    assert vmm.moments.ended.tolist() == vmm.moments.begun.tolist()
    assert not host.is_ready and not vmm.must_stop
    vmm.tell_ready()
    host.tell_to_stop()
    assert host.is_ready and vmm.must_stop
    counts = {name: number for number, name in enumerate(COUNTERS)}
    vmm.count(counts)
    assert host.counters() == counts
