"""tools/soak for half a minute, and proof that it can fail: memfsd with a fault is found out.

With MEMFSD_LONG=1 for two minutes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from soaklib import programs

from tests.soak.report import SOAKS

ROOT = Path(__file__).parents[2]
SICK = Path(__file__).with_name("sick_memfsd.py")
SEED = 20211
MINUTES = 2 if os.environ.get("MEMFSD_LONG") else 0.5
DEADLINE_S = 900
"""For a machine that is busy with other things. Nothing here asks how fast anything is."""

pytestmark = pytest.mark.minutes


def soak(base: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, object]]:
    """The exit status, and what it report."""
    done = subprocess.run(
        [sys.executable, "-m", "soaklib", "--json", "--seed", str(SEED), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools"), "TMPDIR": str(base), **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stdout, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return done.returncode, report


def sick_program(base: Path) -> Path:
    """It must start with this interpreter, whatever python is in PATH."""
    program = base / "memfsd"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {SICK} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.timeout(1000)
def test_the_soak(tmp_path: Path) -> None:
    status, report = soak(tmp_path, "--minutes", str(MINUTES))
    assert report["failures"] == []
    assert status == 0
    counts, levels = report["counts"], report["levels"]
    assert isinstance(counts, dict) and isinstance(levels, list)
    SOAKS.append(report)
    # Everything that was to happen has happened, but for what two must meet for: else the verdict means nothing.
    for name, count in counts.items():
        by_chance = ("starved", "pool_full", "refused", "lost_pages", "memory_failures", "programs_taken_from")
        without_the_extra = () if programs.are_there() else ("code_vms", "programs", "programs_ok")
        assert count > 0 or name in (*by_chance, *without_the_extra), f"{name}: {counts}"
    assert list(tmp_path.iterdir()) == [], "what it made is gone"


@pytest.mark.timeout(1000)
def test_an_injected_leak_is_found_out(tmp_path: Path) -> None:
    """By the curves, after two epochs."""
    short = ("--rounds", "2", "--actions", "4", "--code", "0")
    settle = ("--settle", "20")  # it would wait for what never comes: idle threads end after ten
    status, report = soak(tmp_path, *short, *settle, "--memfsd", str(sick_program(tmp_path)), MEMFSD_SICK="leak")
    failures = report["failures"]
    assert status == 1 and isinstance(failures, list)
    assert [failure.split(" rose")[0] for failure in failures[:-1]] == ["not flat: rss_kib", "not flat: fds"]


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("sick", ["no-scrub", "no-callback"])
def test_a_store_that_breaks_its_word_is_found_out(tmp_path: Path, sick: str) -> None:
    """By the guests, or by `memfs check`; and how to repeat it is told."""
    status, report = soak(
        tmp_path, "--round", "0", "--code", "0", "--memfsd", str(sick_program(tmp_path)), MEMFSD_SICK=sick
    )
    failures = report["failures"]
    assert status == 1 and isinstance(failures, list)
    assert failures[0].startswith(f"round 0 (--seed {SEED} --round 0): "), failures
    assert "memfs check: R" in failures[0] or " holds " in failures[0], failures
