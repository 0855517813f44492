"""memfs vms: who holds files of a mount, and the monitor that a second terminal looks into."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.test_memfs import facts
from tests.support.real_mount import BIN, DEADLINE_S, ENVIRONMENT, sh


@pytest.fixture
def attached(place: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A VM with two files, 3 pages of which it has touched; it waits for a line."""
    sh("memfs create a --size 1M --guest && memfs create b --size 1M --guest", place)
    run = subprocess.Popen(
        [BIN / "kvmsim", "attach", place / "a", "--gpa", "0", "--qmp", f"unix:{tmp_path}/qmp", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert run.stdin is not None and run.stdout is not None
    lines = [f"slot set 1 private gpa=1G size=1M file={place}/b", "touch 0 8K", "touch 1G 4K"]
    for line in lines:
        run.stdin.write(f"{line}\n")
        run.stdin.flush()
        assert json.loads(run.stdout.readline())["ok"]
    yield run
    run.stdin.close()
    run.stdout.close()
    run.wait(DEADLINE_S)


def mine(found: dict[str, Any], pid: int) -> dict[str, Any]:
    (vm,) = [vm for vm in found["vms"] if vm["pid"] == pid]
    assert isinstance(vm, dict)
    return vm


def test_a_vm_is_named_with_its_monitor_for_as_long_as_it_lives(
    attached: "subprocess.Popen[str]", place: Path, tmp_path: Path
) -> None:
    vm = mine(facts(f"vms {place}", tmp_path), attached.pid)
    assert (vm["vm"], vm["uid"], vm["state"], len(vm["files"])) == ("vm0", os.geteuid(), "paired", 2)
    assert vm["frames"] >= 3
    status = sh(f"kvmsim monitor {vm['monitor']} query-status --json", tmp_path)
    assert json.loads(status) == {"running": True, "status": "running"}
    shown = sh(f"memfs vms {place}", tmp_path)
    assert shown.split()[:2] == ["PID", "UID"]
    assert vm["monitor"] in shown
    sh(f"kvmsim monitor {attached.pid} quit", tmp_path)
    assert attached.wait(DEADLINE_S) == 0
    left = facts(f"vms {place}", tmp_path)["vms"]
    assert attached.pid not in [vm["pid"] for vm in left]


def test_one_without_a_monitor_and_a_place_that_is_no_mount(place: Path, tmp_path: Path) -> None:
    """With the socket that a killed process of its pid left."""
    sh("memfs create c --size 1M --guest", place)
    (tmp_path / "leave.py").write_text(
        "import os, sys; from memfsd.common.rundir import MONITORS; MONITORS.make(); "
        "MONITORS.listen(MONITORS.socket_path(os.getppid()), 0o600); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    script = f"""slot set 0 private gpa=0 size=1M file={place}/c
sh exec {sys.executable} {tmp_path}/leave.py memfs vms {place} --json
"""
    done = subprocess.run(
        [sys.executable, "-m", "kvmsim", "run", "--qmp", "none", "-", "--json"],
        input=script,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=DEADLINE_S,
    )
    found = json.loads(json.loads(done.stdout.splitlines()[-1])["text"])
    ino = os.stat(place / "c").st_ino
    assert [vm["monitor"] for vm in found["vms"] if ino in vm["files"]] == [None]
    assert "is not on a memfsd mount" in sh(f"memfs vms {tmp_path}", tmp_path, 1)
