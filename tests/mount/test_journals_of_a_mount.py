"""memfsd --journal and kvmsim --journal on a real mount, and what becomes of them on a full disk and in bad places."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.journaled import read_lines
from tests.support.real_mount import BIN, ENVIRONMENT, Mount, MountFactory, run, sh
from tests.support.threads import until

SCRIPT = """\
slot set 0 private gpa=0 size=512K file=mnt/vm.mem
touch 0 512K
sh memfs fallocate -p -o 64K -l 64K mnt/vm.mem
touch 0 512K
slot punch 0 gpa=0 size=16K
sh memfs check mnt
"""


@pytest.fixture
def journaled(tmp_path: Path) -> Mount:
    return Mount(tmp_path, "size=16M", "--journal", str(tmp_path / "store.journal"))


def test_a_run_is_recorded_on_both_sides_and_keeps_all_rules(tmp_path: Path, journaled: Mount) -> None:
    try:
        sh("memfs create mnt/vm.mem --size 1M --guest", tmp_path)
        (tmp_path / "script").write_text(SCRIPT)
        sh("kvmsim run script --journal vm.journal", tmp_path)
        assert journaled.stop() == 0
        told = sh("kvmsim journal check store.journal vm.journal", tmp_path)
        assert "all rules hold" in told
        picture = sh("kvmsim journal show store.journal vm.journal", tmp_path)
        assert picture.index("INVALIDATE_BEGIN") < picture.index("* freed") < picture.index("INVALIDATE_END")
        assert [read_lines(tmp_path / f"{side}.journal")[-1]["why"] for side in ("store", "vm")] == ["closed"] * 2
    finally:
        journaled.remove()


def test_a_killed_vm_leaves_journals_that_keep_all_rules(tmp_path: Path, journaled: Mount) -> None:
    try:
        sh("memfs create mnt/vm.mem --size 1M --guest", tmp_path)
        vm = subprocess.Popen(
            [BIN / "kvmsim", "attach", "mnt/vm.mem", "--journal", "vm.journal"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=tmp_path,
            env=ENVIRONMENT,
        )
        assert vm.stdin is not None
        (tmp_path / "vm.journal").touch()
        vm.stdin.write(b"touch 0 1M\n")
        vm.stdin.flush()
        until(lambda: b"installed" in (tmp_path / "vm.journal").read_bytes(), "the guest runs")
        vm.send_signal(signal.SIGKILL)
        vm.communicate(timeout=10)
        until(lambda: b'"gone"' in (tmp_path / "store.journal").read_bytes(), "the store knows")
        assert journaled.stop() == 0
        assert "all rules hold" in sh("kvmsim journal check store.journal vm.journal", tmp_path)
    finally:
        journaled.remove()


def test_a_full_disk_ends_the_journal_and_nothing_else(tmp_path: Path) -> None:
    mounted = Mount(tmp_path, "size=16M", "--journal", "/dev/full")
    try:
        sh("memfs create mnt/vm.mem --size 1M --guest", tmp_path)
        (tmp_path / "script").write_text(SCRIPT)
        told = run("kvmsim run script --journal /dev/full", tmp_path)
        assert told.returncode == 0
        warning = "the journal can not be written and has ended: No space left on device"
        assert told.stdout.count(warning) == 1
        assert mounted.log.count(warning) == 1
    finally:
        mounted.remove()


@pytest.mark.parametrize(
    ("command", "status"), [("memfsd --journal {} mnt2", 1), ("echo | kvmsim run - --journal {}", 2)]
)
def test_a_journal_that_can_not_be_is_refused_before_anything_is_done(
    tmp_path: Path, mount: MountFactory, command: str, status: int
) -> None:
    mounted = mount("size=16M")
    (tmp_path / "mnt2").mkdir()
    for path, why in (("/nowhere/j", "No such file or directory"), (f"{mounted.path}/j", "would wait for itself")):
        told = run(command.format(path), tmp_path)
        assert told.returncode == status
        (line,) = told.stdout.splitlines()
        assert why in line
        assert not os.path.ismount(tmp_path / "mnt2")
    assert os.listdir(mounted.path) == [], "nothing was made"
    (tmp_path / "link").symlink_to(mounted.path / "j")
    assert "would wait for itself" in run(command.format("link"), tmp_path).stdout
