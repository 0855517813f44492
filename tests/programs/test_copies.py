"""Trees that are copied onto the mount and off it again, by the tools people use, with everything they carry."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.programs.conftest import Run

COPIES: dict[str, Callable[[Path, Path], tuple[str, ...]]] = {
    "cp -a": lambda source, target: ("cp", "-a", f"{source}", f"{target}"),
    "tar": lambda source, target: (
        "bash", "-c", f"mkdir {target} && tar --xattrs --xattrs-include='*' -S -C {source} -cf - . | "
        f"tar --xattrs --xattrs-include='*' -C {target} -xpf -",
    ),
    "rsync -aX": lambda source, target: ("rsync", "-aXHS", f"{source}/", f"{target}/"),
}  # fmt: skip


def make_tree(tree: Path) -> None:
    tree.mkdir()
    (tree / "data").write_bytes(bytes(range(256)) * 100)
    (tree / "empty").touch()
    with open(tree / "sparse", "wb") as sparse:
        sparse.seek(1 << 20)
        sparse.write(b"end")
    os.link(tree / "data", tree / "hard link")
    (tree / "soft link").symlink_to("data")
    (tree / "dangling").symlink_to("/nowhere/at all")
    os.mkfifo(tree / "fifo", 0o640)
    os.mknod(tree / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    deep = tree.joinpath(*"abcdefgh")
    deep.mkdir(parents=True)
    (deep / "leaf").write_text("leaf")
    (tree / os.fsdecode(b"\xff\xfe bytes \n newline")).write_text("strange")
    (tree / ("n" * 255)).write_text("long")
    (tree / "setgid").mkdir()
    for name, mode in (("setgid", 0o2775), ("data", 0o4751), ("empty", 0), ("a", 0o1777)):
        os.chmod(tree / name, mode)
    os.chown(tree / "sparse", 1234, 5678)
    os.chown(tree / "soft link", 12, 34, follow_symlinks=False)
    os.setxattr(tree / "data", "user.colour", b"red\0blue")
    os.setxattr(tree / "a", "user.directory", b"")
    for number, path in enumerate(sorted(tree.rglob("*"), key=lambda path: -len(path.parts))):
        when = 10**18 + number * 1_000_000_007
        os.utime(path, ns=(when, when), follow_symlinks=False)


def told(tree: Path) -> dict[str, tuple[Any, ...]]:
    """All that a copy must keep, by path."""
    found = {}
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        data = path.read_bytes() if kind == stat.S_IFREG else os.readlink(path) if kind == stat.S_IFLNK else None
        kept = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        # Not every tool keeps the times of links and directories, nor tar more than seconds.
        when = status.st_mtime // 1 if kind == stat.S_IFREG else None
        found[str(path.relative_to(tree))] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_nlink if kind != stat.S_IFDIR else 0,
            status.st_rdev, when, data, kept,
        )  # fmt: skip
    return found


@pytest.mark.parametrize("how", COPIES)
def test_a_tree_goes_in_and_out_unchanged(place: Path, run: Run, tmp_path: Path, how: str) -> None:
    copy = COPIES[how]
    source, inside, again, outside = tmp_path / "source", place / "inside", place / "again", tmp_path / "outside"
    make_tree(source)
    for start, end in ((source, inside), (inside, again), (again, outside)):
        run(tmp_path, *copy(start, end))

    expected = told(source)
    assert len(expected) > 15
    for tree in (inside, again, outside):
        assert told(tree) == expected


def test_holes_stay_holes(place: Path, run: Run) -> None:
    with open(place / "sparse", "wb") as sparse:
        sparse.truncate(64 << 20)
        sparse.seek(32 << 20)
        sparse.write(b"data")
    run(place, "cp", "--sparse=auto", "sparse", "copy")
    run(place, "cmp", "sparse", "copy")
    assert (place / "copy").stat().st_blocks == (place / "sparse").stat().st_blocks == 8
    assert run(place, "du", "-k", "copy").split() == ["4", "copy"]


def test_a_second_rsync_has_nothing_to_do(place: Path, run: Run, tmp_path: Path) -> None:
    make_tree(tmp_path / "source")
    run(tmp_path, "rsync", "-aX", "source/", place / "copy")
    assert run(tmp_path, "rsync", "-aXi", "source/", place / "copy") == ""
    (tmp_path / "source/data").write_bytes(b"changed")
    changed = run(tmp_path, "rsync", "-aXi", "--inplace", "source/", place / "copy")
    assert "data" in changed
    assert (place / "copy/data").read_bytes() == b"changed"


def test_mv_over_an_open_file_leaves_its_readers_the_old_one(place: Path, run: Run, tmp_path: Path) -> None:
    (place / "name").write_text("old")
    (place / "next").write_text("new")
    (tmp_path / "from outside").write_text("from outside")
    with open(place / "name", "r+") as held:
        run(place, "mv", "-f", "next", "name")
        assert (place / "name").read_text() == "new"
        assert held.read() == "old"
        held.write(", and longer")
        held.flush()
        assert os.fstat(held.fileno()).st_nlink == 0
        run(place, "mv", "-f", tmp_path / "from outside", "name")
        held.seek(0)
        assert held.read() == "old, and longer"
    assert (place / "name").read_text() == "from outside"


def test_tail_follows_a_file_that_is_written(place: Path) -> None:
    path = place / "log"
    path.touch()
    with (
        subprocess.Popen(["tail", "-n", "+1", "-f", "-s", "0.05", path], stdout=subprocess.PIPE) as tail,
        path.open("a") as log,
    ):
        assert tail.stdout is not None
        for number in range(5):
            log.write(f"line {number}\n")
            log.flush()
            assert tail.stdout.readline() == f"line {number}\n".encode()
        tail.terminate()
