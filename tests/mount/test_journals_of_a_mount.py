"""memfsd --journal and kvmsim --journal on a real mount, and what becomes of them on a full disk and in bad places."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reference.mounts import tmpfs_mount
from tests.support.journaled import read_lines
from tests.support.real_mount import BIN, ENVIRONMENT, Mount, MountFactory, remove_mount, run, sh
from tests.support.threads import DEADLINE_S, until

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
        report = sh("kvmsim journal check store.journal vm.journal", tmp_path)
        assert "all rules hold" in report
        shown = sh("kvmsim journal show store.journal vm.journal", tmp_path).splitlines()
        picture = "\n".join(line for line in shown if "HELLO" not in line)  # which names every operation
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
        vm.communicate(timeout=DEADLINE_S)
        until(lambda: b'"gone"' in (tmp_path / "store.journal").read_bytes(), "the store knows")
        assert journaled.stop() == 0
        end, verdict = sh("kvmsim journal check store.journal vm.journal", tmp_path).splitlines()
        assert end.startswith("vm.journal:")
        assert "the process was killed" in end
        assert "no rule is broken in what was recorded" in verdict
        # Put together in any order they are the same journals.
        sh("cat vm.journal store.journal > both.journal", tmp_path)
        report = sh("kvmsim journal check both.journal", tmp_path)
        assert report.splitlines()[1].removesuffix("1 journal") == verdict.removesuffix("2 journals")
    finally:
        journaled.remove()


def test_a_disk_that_fills_up_ends_the_journals_and_nothing_else(tmp_path: Path) -> None:
    with tmpfs_mount("size=64k") as disk:
        mounted = Mount(tmp_path, "size=16M", "--journal", f"{disk}/store.journal")
        try:
            sh("memfs create mnt/vm.mem --size 1M --guest", tmp_path)
            (tmp_path / "script").write_text(f"sh head -c 1M /dev/zero > {disk}/fill || true\n{SCRIPT}")
            report = run(f"kvmsim run script --journal {disk}/vm.journal", tmp_path)
            assert report.returncode == 2, report.stdout
            warning = "the journal cannot be written and has ended: "
            assert report.stdout.count(warning) == 1
            until(lambda: mounted.log.count(warning) == 1, "it is logged once")
            assert mounted.stop() == 0
            lines = sh(f"kvmsim journal check {disk}/store.journal {disk}/vm.journal", tmp_path).splitlines()
            assert "no rule is broken in what was recorded" in lines.pop()
            assert len(lines) == 2
            assert all("(what follows is not known)" in line for line in lines)
        finally:
            mounted.remove()


@pytest.mark.parametrize("command", ["memfsd -o size=16M --journal {}/j mnt", "echo | kvmsim run - --journal {}/j"])
def test_a_journal_that_can_not_begin_is_an_error(tmp_path: Path, command: str) -> None:
    """In the background too, and without anybody who takes the log."""
    (tmp_path / "mnt").mkdir()
    with tmpfs_mount("size=64k") as disk:
        run(f"head -c 1M /dev/zero > {disk}/fill", tmp_path)
        try:
            report = run(command.format(disk), tmp_path)
            assert report.returncode == (1 if command.startswith("memfsd") else 2)
            (line,) = report.stdout.splitlines()
            assert "the journal cannot be written: No space left on device" in line
            assert not os.path.ismount(tmp_path / "mnt")
            assert (disk / "j").read_bytes() == b""
        finally:
            remove_mount(tmp_path / "mnt")


def test_a_log_that_nobody_takes_is_no_traceback() -> None:
    """As on a machine without /dev/log, where memfsd is in the background."""
    done = subprocess.run(
        [sys.executable, "-c", NOBODY_LISTENS], capture_output=True, timeout=DEADLINE_S, check=False, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


NOBODY_LISTENS = """
import logging.handlers
from memfsd.commands.memfsd import _log_to

real = logging.handlers.SysLogHandler
logging.handlers.SysLogHandler = lambda address: real("/nowhere" + address)
_log_to(foreground=False, debug=False)
logging.getLogger("memfsd").warning("the journal has ended")
"""


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    """The first is in the background: the lock went with the fork."""
    for name in ("mnt", "mnt2"):
        (tmp_path / name).mkdir()
    options = f"-o size=16M,socket={tmp_path}/sock"
    try:
        assert sh(f"memfsd {options} --journal same.j mnt", tmp_path) == ""
        before = (tmp_path / "same.j").read_bytes()
        for command, status in ((f"memfsd {options}2 --journal same.j mnt2", 1), ("kvmsim run --journal same.j -", 2)):
            (line,) = sh(command, tmp_path, status=status).splitlines()
            assert "journal same.j: it is the journal of a running process" in line
        assert (tmp_path / "same.j").read_bytes() == before
        sh("fusermount3 -u mnt", tmp_path)
        until(lambda: b'"end"' in (tmp_path / "same.j").read_bytes(), "the first one has ended")
        until(lambda: run("kvmsim run --journal same.j -", tmp_path).returncode == 0, "the journal is free")
        assert "of 1 journal" in sh("kvmsim journal check same.j", tmp_path)
    finally:
        for name in ("mnt", "mnt2"):
            remove_mount(tmp_path / name)


def test_a_journal_below_its_own_mount_point_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "link").symlink_to("mnt/j")
    try:
        for path in ("mnt/j", "./mnt/../mnt/j", "link"):
            (line,) = sh(f"memfsd -o size=16M --journal {path} mnt", tmp_path, status=1).splitlines()
            assert line == (
                f"memfsd: journal {path}: the mount on {tmp_path}/mnt would hide it: choose another place (EINVAL)"
            )
            assert os.listdir(tmp_path / "mnt") == []
    finally:
        remove_mount(tmp_path / "mnt")


@pytest.mark.parametrize(
    ("command", "status"), [("memfsd --journal {} mnt2", 1), ("echo | kvmsim run - --journal {}", 2)]
)
def test_a_journal_that_can_not_be_is_refused_before_anything_is_done(
    tmp_path: Path, mount: MountFactory, command: str, status: int
) -> None:
    mounted = mount("size=16M")
    (tmp_path / "mnt2").mkdir()
    for path, why in (("/nowhere/j", "No such file or directory"), (f"{mounted.path}/j", "would wait for itself")):
        report = run(command.format(path), tmp_path)
        assert report.returncode == status
        (line,) = report.stdout.splitlines()
        assert why in line
        assert not os.path.ismount(tmp_path / "mnt2")
    (tmp_path / "link").symlink_to(mounted.path / "j")
    assert "would wait for itself" in run(command.format("link"), tmp_path).stdout
    assert os.listdir(mounted.path) == [], "nothing was made"
