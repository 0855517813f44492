"""memfs top: what it shows of a mount, of its sealed files and of a guest that runs."""

import json
import os
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memfsd.uapi.limits import MAX_FILES_PER_LIST
from tests.support.real_mount import BIN, DEADLINE_S, ENVIRONMENT, PAGE, Mount, MountFactory, run, seal, sh
from tests.support.tmux import Screen

_HEAD = ["INODE", "SIZE", "HELD", "PENDING", "PUNCHED", "TWICE", "FAULTS/s", "INVAL/s", "VM", "NAME"]
FILE_BYTES = 1 << 20
MANY_VIEWS = 1_000_000
"""More than there will be."""


@pytest.fixture
def mounted(mount: MountFactory) -> Mount:
    return mount("size=16M,open=rw")


def sealed_file(mounted: Mount, name: str = "vm.mem") -> Path:
    path = mounted.path / name
    path.touch()
    seal(path)
    os.truncate(path, FILE_BYTES)
    return path


class Attached:
    """kvmsim at its prompt, paired with a file."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [BIN / "kvmsim", "attach", path, "--gpa", "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT,
        )
        self.tell("read 0 1")

    def tell(self, line: str) -> None:
        """Give a command and wait until it is done: the read after it answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\nread 0 1\n")
        self.process.stdin.flush()
        while "000000000000 " not in (answer := self.process.stdout.readline()):
            assert answer, "kvmsim ended"


@pytest.fixture
def guest(mounted: Mount) -> Iterator[Attached]:
    attached = Attached(sealed_file(mounted))
    yield attached
    attached.process.communicate(timeout=DEADLINE_S)


def views(mounted: Mount, words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sh(f"memfs top {mounted.path} --json {words}", mounted.path).splitlines()]


def test_one_view_shows_the_pool_and_no_files(mounted: Mount) -> None:
    (mounted.path / "ordinary").write_bytes(bytes(PAGE * 3))
    lines = sh(f"memfs top {mounted.path} -n 1", mounted.path).splitlines()
    assert lines[0].startswith(f"memfsd {mounted.path}: pool 16M: free 16372K  shared 12K"[:79])
    assert lines[1].startswith("pool [s  ") and len(lines[1]) == 80
    assert lines[2] == "0 sealed files"
    assert lines[3].split() == _HEAD
    assert len(lines) == 4


def test_a_sealed_file_is_a_line_with_its_owner(mounted: Mount, guest: Attached) -> None:
    guest.tell(f"touch 0 {FILE_BYTES:#x}")
    lines = sh(f"COLUMNS=200 memfs top {mounted.path} --once", mounted.path).splitlines()
    assert lines[3].split() == [str(guest.process.pid), "paired", "1M", *"00000", "vm0"]
    ino = str((mounted.path / "vm.mem").stat().st_ino)
    assert lines[6].split() == [ino, "1M", "1M", *"00000", "vm0", "vm.mem"]


def test_the_view_fits_80_columns_and_its_columns_line_up(mounted: Mount, guest: Attached) -> None:
    guest.tell(f"touch 0 {FILE_BYTES:#x}")
    sealed_file(mounted, "a name that is longer than the rest of a line " * 3)
    sealed_file(mounted, "名前" * 30)
    done = run(f"env COLUMNS=80 memfs top {mounted.path} -n 1", mounted.path.parent)
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    head, rows = lines[5], lines[6:]
    for line in lines:
        assert sum(1 + (unicodedata.east_asian_width(c) == "W") for c in line) <= 80
    for word in ("SIZE", "HELD", "PENDING", "PUNCHED", "TWICE", "FAULTS/s", "INVAL/s"):
        end = head.index(word) + len(word)
        assert all(row[end - 1] != " " and row[end] == " " for row in rows), word
    assert head.index("NAME") < 70
    assert any("vm.mem" in row and " vm0 " in row for row in rows)


def test_a_name_does_not_control_the_terminal_and_json_has_it_exactly(mounted: Mount) -> None:
    names = [b"a\033[2Jb", b"\xff\n", "\u202eevil".encode()]
    for name in names:
        sealed_file(mounted, os.fsdecode(name))
    done = run(f"env COLUMNS=200 memfs top {mounted.path} -n 1", mounted.path)
    assert len(done.stdout.splitlines()) == 4 + len(names)
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert "'a'$'\\033''[2Jb'" in done.stdout
    assert "$'\\377\\n'" in done.stdout
    (view,) = views(mounted, "-n 1")
    assert sorted(os.fsencode(file["name"]) for file in view["files"]) == sorted(names)


def test_json_is_one_object_a_view(mounted: Mount, guest: Attached) -> None:
    guest.tell(f"touch 0 {FILE_BYTES:#x}")
    first, second = views(mounted, "-n 2 -d 0.1")
    assert first == second, "nothing happens"
    assert first["mount"] == str(mounted.path)
    assert sum(first["pool"].values()) == (16 << 20) // PAGE
    assert first["pool"]["private"] + first["pool"]["pending"] == FILE_BYTES // PAGE
    (file,) = first["files"]
    assert first["sealed_files"] == 1
    assert (file["name"], file["size"], file["frames"]) == ("vm.mem", FILE_BYTES, FILE_BYTES // PAGE)
    assert (file["faults_per_s"], file["invalidations_per_s"]) == (0, 0)
    uid = os.getuid()
    assert file["owner"] == {"vm": "vm0", "pid": guest.process.pid, "uid": uid, "state": "paired"}


def test_faults_and_invalidations_of_a_running_guest_are_rates(mounted: Mount, guest: Attached) -> None:
    with subprocess.Popen(
        [BIN / "memfs", "top", mounted.path, "--json", "-d", "0.1", "-n", str(MANY_VIEWS)],
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as top:
        assert top.stdout is not None
        views = (json.loads(line)["files"][0] for line in top.stdout)
        assert next(views)["faults_per_s"] == 0, "a first view has nothing to compare with"
        guest.tell(f"touch 0 {FILE_BYTES:#x}")
        assert any(view["faults_per_s"] > 0 for view in views)
        sh("memfs fallocate -p -l 64K vm.mem", mounted.path)
        assert any(view["invalidations_per_s"] > 0 for view in views)
        assert any(view["invalidations_per_s"] == view["faults_per_s"] == 0 for view in views), "and then it is quiet"
        top.kill()


def test_an_unlinked_file_and_an_ended_vm_are_shown(mounted: Mount) -> None:
    path = sealed_file(mounted)
    attached = Attached(path)
    os.unlink(path)
    (file,) = views(mounted, "-n 1")[0]["files"]
    assert file["name"] == ""
    assert "(unlinked)" in sh(f"memfs top {mounted.path} -n 1", mounted.path)
    attached.process.communicate(timeout=DEADLINE_S)

    other = sealed_file(mounted, "other")
    Attached(other).process.communicate(timeout=DEADLINE_S)
    (file,) = views(mounted, "-n 1")[0]["files"]
    assert file["owner"]["state"] == "ended"


def test_more_files_than_lines_are_counted(mounted: Mount) -> None:
    for number in range(70):
        sealed_file(mounted, f"f{number}")
    (view,) = views(mounted, "-n 1")
    assert view["sealed_files"] == 70
    assert len(view["files"]) == MAX_FILES_PER_LIST
    lines = sh(f"LINES=10 COLUMNS=60 memfs top {mounted.path} -n 1", mounted.path).splitlines()
    assert len(lines) <= 10
    assert all(len(line) <= 60 for line in lines)


def test_on_a_terminal_it_fills_the_screen_shows_what_is_held_twice_in_red_and_quits(
    mounted: Mount, guest: Attached
) -> None:
    red = "\033[1m\033[37m\033[41m"
    with Screen(f"{BIN}/memfs top {mounted.path} -d 0.1") as screen:
        screen.until("vm0  vm.mem")
        assert red not in screen.text(styled=True)
        guest.tell("slot set 1 shared gpa=0 size=64K")
        guest.tell("touch 0 64K")
        guest.tell("touch 32K 64K shared")
        screen.until(lambda shown: f"{red}32K" in shown.replace(" ", ""), styled=True)
        screen.resize(60, 8)
        screen.until(lambda shown: "1 sealed files" in shown and max(map(len, shown.splitlines())) <= 60)
        screen.press("C-c")
        assert screen.ended() == "0"


def test_a_terminal_that_cannot_move_its_cursor_gets_views_one_after_the_other(mounted: Mount) -> None:
    with Screen(f"TERM=dumb {BIN}/memfs top {mounted.path} -d 0.1 -n 2") as screen:
        assert screen.ended() == "0"
        assert screen.text().count("0 sealed files") == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("-d 0", "'0' is not a delay: choose 0.1 to 3600 seconds"),
        ("-d -1", "'-1' is not a delay"),
        ("-d nan", "'nan' is not a delay"),
        ("-d inf", "'inf' is not a delay"),
        ("-d soon", "'soon' is not a delay"),
        ("-d", "expected one argument"),
        ("-n 0", "'0' is not a count: choose 1 or more"),
        ("-n 1.5", "'1.5' is not a count"),
    ],
)
def test_delays_and_counts_that_make_no_sense_are_usage_errors(mounted: Mount, words: str, named: str) -> None:
    done = run(f"memfs top {mounted.path} {words}", mounted.path)
    assert done.returncode == 2
    assert named in done.stdout.splitlines()[-1]


def test_a_path_elsewhere_and_a_memfsd_that_ends_are_one_line(mounted: Mount, tmp_path: Path) -> None:
    done = run(f"memfs top {tmp_path}", tmp_path)
    assert (done.returncode, done.stdout) == (
        1,
        f"memfs: {tmp_path} is not on a memfsd mount: name a file or directory on one (EOPNOTSUPP)\n",
    )
    with subprocess.Popen(
        [BIN / "memfs", "top", mounted.path, "-d", "0.1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    ) as top:
        assert top.stdout is not None
        assert json.loads(top.stdout.readline())["files"] == []
        mounted.stop()
        _, said = top.communicate(timeout=DEADLINE_S)
        assert top.returncode == 1
        assert said.startswith("memfs: ")
        assert len(said.splitlines()) == 1, said
