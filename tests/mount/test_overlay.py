"""A memfsd mount as the upper layer of an overlay."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.real_mount import DirectoryFactory, renameat2, run, sh

WHITEOUT = 4


@pytest.fixture
def place(own_directory: DirectoryFactory) -> Path:
    return own_directory("size=16M,dev,allow_other")


@pytest.fixture(params=["", ",userxattr"])
def overlay(request: pytest.FixtureRequest, place: Path, tmp_path: Path) -> Iterator[Path]:
    sh("mkdir low low/dir ov; echo low | tee low/a low/b > low/dir/x", tmp_path)
    sh("mkdir up work", place)
    layers = f"lowerdir={tmp_path}/low,upperdir={place}/up,workdir={place}/work{request.param}"
    sh(f"mount -t overlay overlay -o {layers} ov", tmp_path)
    assert "rw," in sh("findmnt -no OPTIONS ov", tmp_path), "without xattrs or whiteouts it falls back to read-only"
    yield tmp_path / "ov"
    sh("umount ov", tmp_path)


def test_an_overlay_writes_renames_and_removes(overlay: Path, place: Path) -> None:
    assert sh("echo more >> a; mv a c; rm b; cat c; ls", overlay) == "low\nmore\nc\ndir\n"
    for name in ("a", "b"):
        whiteout = (place / "up" / name).lstat()
        assert (stat.S_IFMT(whiteout.st_mode), whiteout.st_rdev) == (stat.S_IFCHR, 0)
    assert sh("rm -r dir; mkdir dir; ls -A dir; mv dir new; ls", overlay) == "c\nnew\n"
    os.close(os.open(overlay, os.O_TMPFILE | os.O_RDWR))
    sh("umount ov; ls -d ov", overlay.parent)
    layers = f"lowerdir={overlay.parent}/low,upperdir={place}/up,workdir={place}/work"
    kind = ",userxattr" if b"user.overlay.opaque" in b"".join(map(os.fsencode, os.listxattr(place / "up/new"))) else ""
    sh(f"mount -t overlay overlay -o {layers}{kind} ov", overlay.parent)
    assert sh("cat c; ls . new", overlay) == "low\nmore\n.:\nc\nnew\n\nnew:\n"


def test_rename_whiteout_leaves_one(place: Path) -> None:
    (place / "f").write_text("hello")
    renameat2(place / "f", place / "g", WHITEOUT)
    assert (place / "g").read_text() == "hello"
    assert sh("stat -c '%F %a %t %T' f", place) == "character special file 0 0 0\n"
    assert run("cat f", place).returncode != 0
