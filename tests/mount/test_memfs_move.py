"""memfs move and fmove_pages under a guest, on a mount with two nodes."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

import memfsd
from tests.support.real_mount import PAGE, Mount, MountFactory, fallocate, opened, refused, sh

SCRIPT = """\
slot set 0 private gpa=0 size=64K file=vm.mem
write 0 "first"
write 0x5000 "sixth"
sh memfs move vm.mem -o 4K -l 60K 1
sh memfs move vm.mem 1 --json
read 0 5
expect data "first"
read 0x5000 5
expect data "sixth"
sh memfs map vm.mem --json
sh memfs move vm.mem 0
read 0x5000 5
expect data "sixth"
sh memfs check .
"""


@pytest.fixture
def mounted(mount: MountFactory) -> Mount:
    made = mount("size=4M,nodes=2")
    sh("memfs create vm.mem --guest --size 64K", made.path)
    return made


def outputs(report: str) -> list[str]:
    """Of the `sh` commands."""
    records: list[dict[str, Any]] = [json.loads(line) for line in report.splitlines()]
    return [record["text"] for record in records if record["source"].startswith("sh ")]


def test_a_guest_keeps_its_data_while_its_pages_change_nodes(mounted: Mount, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(SCRIPT)
    first, second, shown, back, check = outputs(sh(f"kvmsim run --json {script}", mounted.path))
    assert first == "vm.mem: 1 pages moved to node 1"
    assert json.loads(second) == {"file": "vm.mem", "node": 1, "moved": 1, "stayed": {}}
    assert [(run["offset"], run["node"]) for run in json.loads(shown)["runs"]] == [(0, 1), (5 * PAGE, 1)]
    assert back == "vm.mem: 2 pages moved to node 0"
    assert check.startswith("R1-R8 hold")


def test_a_kvm_that_cannot_move(mounted: Mount, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(
        'slot set 0 private gpa=0 size=64K file=vm.mem\nwrite 0 "first"\nsh memfs move vm.mem 1\nexpect status 1\n'
        'read 0 5\nexpect data "first"\n'
    )
    (said,) = outputs(sh(f"kvmsim run --json --no-op move {script}", mounted.path))
    assert said.splitlines()[0] == "vm.mem: 0 pages moved to node 1"
    assert said.splitlines()[1].startswith("vm.mem: 1 pages stay where they are (EBUSY): ")


def test_what_move_refuses(mounted: Mount) -> None:
    fallen = sh("memfs move vm.mem 7", mounted.path)
    assert fallen == "vm.mem: 0 pages moved to node 7\n", "there is no page"
    with opened(mounted.path / "vm.mem", os.O_WRONLY) as fd:
        fallocate(fd, 0, 0, 3 * PAGE)
        assert memfsd.fmove_pages(fd, [0, 1, 2, 3, 16], [1, 0, 2, 1, 1]) == [
            1, 0, -errno.ENODEV, -errno.ENOENT, -errno.EFAULT,
        ]  # fmt: skip
    assert "(ENODEV): there is no such node" in sh("memfs move vm.mem 7", mounted.path, status=1)
    for arguments in ("vm.mem -1", "vm.mem x", "vm.mem"):
        sh(f"memfs move {arguments}", mounted.path, status=2)
    sh("memfs move vm.mem -o 1 1", mounted.path, status=1)
    sh("memfs move missing 1", mounted.path, status=1)


def test_who_only_reads_cannot_move(mounted: Mount) -> None:
    path = mounted.path / "shared"
    path.write_bytes(b"data")
    with opened(path, os.O_RDONLY) as fd:
        assert memfsd.fmove_pages(fd, [0]) == [0]
        with refused(errno.EPERM):
            memfsd.fmove_pages(fd, [0], [1])
    with opened(path, os.O_RDWR) as fd:
        assert memfsd.fmove_pages(fd, [0], [1]) == [-errno.EBUSY], "ordinary pages stay"


def test_kvmsim_names_the_operations_that_may_be_left_out(mounted: Mount) -> None:
    for text, why in (
        ("jump", "'jump' is not an operation of KVM: choose move, page-map, report, revoke"),
        (
            "invalidate-begin",
            "a KVM without invalidate-begin cannot pair with any file: choose move, page-map, report, revoke",
        ),
    ):
        assert why in sh(f"kvmsim run --no-op {text} - 2>&1", mounted.path, status=2)


NODES = """\
slot set 0 private gpa=0 size=64K file=vm.mem
write 0 "first"
write 0x5000 "sixth"
sh memfs offline . 0
read 0 5
expect data "first"
write 0x6000 "seventh"
sh memfs map vm.mem --json
sh memfs online . 0
sh memfs compact . --json
read 0x5000 5
expect data "sixth"
sh memfs check .
"""


def test_a_node_goes_offline_under_a_guest_and_comes_back(mounted: Mount, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(NODES)
    off, shown, on, compacted, check = outputs(sh(f"kvmsim run --json {script}", mounted.path))
    assert off == "node 0 is offline: 2 pages moved to others"
    assert {run["node"] for run in json.loads(shown)["runs"]} == {1}
    assert on == "node 0 is online"
    report = json.loads(compacted)
    assert (report["moved"], report["free_before"], report["free_after"]) == (0, {"2M": 1, "1G": 0}, {"2M": 1, "1G": 0})
    assert check.startswith("R1-R8 hold")
    (mounted.path / "shared").write_bytes(b"data")
    assert "frames that cannot leave it: 1 shared" in sh("memfs offline . 0", mounted.path, status=1)
    assert "the last one that is online" in sh("memfs offline . 1 2>&1", mounted.path, status=1)
    assert "node 2 does not exist" in sh("memfs online . 2 2>&1", mounted.path, status=1)
