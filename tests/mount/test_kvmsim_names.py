"""kvmsim on files of any name: quoted as ls(1) does on the terminal, exact in JSON."""

import json
import os
import subprocess

import pytest

from tests.support.real_mount import BIN, DEADLINE_S, ENVIRONMENT, Mount, MountFactory, seal

NAME = b"a\033[2J\xff"
SHOWN = "'a'$'\\033''[2J'$'\\377'"


@pytest.fixture
def mounted(mount: MountFactory) -> Mount:
    """With a sealed file of that name."""
    made = mount("size=16M")
    path = made.path / os.fsdecode(NAME)
    path.touch()
    seal(path)
    os.truncate(path, 1 << 20)
    return made


def attach(mounted: Mount, name: bytes, script: str, *options: str) -> tuple[int, str, str]:
    """In the mount, so that the name is all of the path."""
    done = subprocess.run(
        [BIN / "kvmsim", "attach", name, *options],
        input=script.encode(),
        capture_output=True,
        check=False,
        cwd=mounted.path,
        env=ENVIRONMENT,
        timeout=DEADLINE_S,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_a_file_of_any_name_is_attached_and_shown_quoted(mounted: Mount) -> None:
    status, said, _ = attach(mounted, NAME, "write 0 'hi'\nread 0 2\nexpect data 'hi'\ninfo slots\n")
    assert status == 0
    assert said.splitlines()[-1].endswith(f"  {SHOWN}")
    assert all(line.isprintable() for line in said.splitlines())


def test_json_has_the_name_exactly(mounted: Mount) -> None:
    _, said, _ = attach(mounted, NAME, "info slots\n", "--json")
    assert json.loads(said)["info"][0]["file"] == os.fsdecode(NAME)


def test_refusals_name_the_file_quoted(mounted: Mount) -> None:
    empty = mounted.path / os.fsdecode(NAME + b"2")
    empty.touch()
    seal(empty)
    for name, why in ((NAME + b"1", "No such file or directory"), (NAME + b"2", "the file is empty")):
        status, _, complaint = attach(mounted, name, "")
        shown = f"{SHOWN}'{chr(name[-1])}'"
        assert (status, complaint.startswith(f"kvmsim: {shown}: {why}")) == (1, True), complaint
        assert complaint.rstrip("\n").isprintable()
    attach(mounted, NAME, "")
    status, _, complaint = attach(mounted, NAME, "")
    assert (status, complaint.startswith(f"kvmsim: {SHOWN}: inode ")) == (1, True), complaint


def test_a_slot_past_the_end_is_first_refused_for_what_the_file_is(mounted: Mount) -> None:
    (mounted.path / "ordinary").touch()
    sealed = mounted.path / "sealed"
    sealed.touch()
    seal(sealed)
    os.truncate(sealed, 4096)
    slots = "".join(f"slot set 1 private gpa=1G size=8K file={name}\n" for name in ("ordinary", "sealed"))
    _, said, complaint = attach(mounted, NAME, slots)
    assert "EINVAL: ordinary: the file is not sealed for a guest" in said + complaint
    assert "EINVAL: sealed: offset + size, 0x2000, is past the end of the file (0x1000)" in said + complaint
