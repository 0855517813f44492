"""The file of a journal: whose it is, what is refused, and how a run that was cut short goes on in it."""

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from memfsd.common.journalfile import open_journal, start_journal
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_RECORD_BYTES
from tests.support.journaled import read_lines, recording

OPENING = b'{"type":"journal","t":1,"version":1,"side":"memfsd","pid":7}\n'


def test_a_device_that_is_always_full() -> None:
    fd = open_journal("/dev/full")
    with pytest.raises(Refused, match="the journal cannot be written: No space left on device") as caught:
        start_journal(fd, "memfsd", time.monotonic_ns, print)
    assert caught.value.errno == errno.ENOSPC
    os.close(fd)


def test_a_first_record_that_does_not_fit_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "journal", os.write
    path.write_bytes(OPENING + b'{"type":"no')
    fd = open_journal(str(path))
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:20]))
    with pytest.raises(Refused, match="the disk is full"):
        start_journal(fd, "memfsd", time.monotonic_ns, print)
    monkeypatch.undo()
    os.close(fd)
    assert path.read_bytes() == OPENING + b'{"type":"no'


def test_a_journal_is_appended_to_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for _ in range(2):
        with recording(path, "memfsd") as journal:
            journal.note("out")
    assert [line["type"] for line in read_lines(path)] == ["journal", "note", "end"] * 2
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_crash_tore_is_closed_first(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(OPENING + b'{"type":"no')
    with recording(path, "memfsd"):
        pass
    _, torn, opening, _ = path.read_bytes().splitlines()
    assert torn == b'{"type":"no'
    assert json.loads(opening)["type"] == "journal"


def test_a_journal_that_is_full_already_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(OPENING)
    fd = open_journal(str(path))
    with pytest.raises(Refused, match="is full"):
        start_journal(fd, "memfsd", time.monotonic_ns, print, MAX_RECORD_BYTES)
    os.close(fd)


@pytest.mark.parametrize("path", ["/nowhere/journal", "/", "/proc/self/fd/-1"])
def test_a_journal_that_can_not_be_opened_is_refused_with_its_name(path: str) -> None:
    with pytest.raises(Refused, match=f"journal {path}: "):
        open_journal(path)


def test_a_fifo_that_nobody_reads_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Refused, match="fifo"):
        open_journal(str(tmp_path / "fifo"))


def test_a_journal_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with recording(path, "memfsd"):
        before = path.read_bytes()
        with pytest.raises(Refused, match=f"journal {path}: it is the journal of a running process") as caught:
            open_journal(str(path))
        assert caught.value.errno == errno.EBUSY
        assert path.read_bytes() == before
    with recording(path, "kvmsim"):
        pass
    assert [line.get("side") for line in read_lines(path)] == ["memfsd", None, "kvmsim", None]


def test_a_fork_that_lives_on_keeps_the_journal(tmp_path: Path) -> None:
    """memfsd goes into the background: its parent ends."""
    path = str(tmp_path / "journal")
    fd = open_journal(path)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tell)
        os.read(told, 1)  # the end of file
        os._exit(0)
    os.close(fd)
    with pytest.raises(Refused, match="of a running process"):
        open_journal(path)
    os.close(tell)
    os.close(told)
    os.waitpid(child, 0)
    os.close(open_journal(path))


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_journal_that_others_can_read_is_closed_to_them(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "journal"
    path.write_bytes(OPENING)
    path.chmod(mode)
    with recording(path, "memfsd"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_journal_that_can_not_be_closed_to_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to another user, who lets this one write."""

    def not_yours(fd: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    path = tmp_path / "journal"
    path.write_bytes(OPENING)
    path.chmod(0o666)
    monkeypatch.setattr(os, "fchmod", not_yours)
    with pytest.raises(Refused, match="others can read it"):
        open_journal(str(path))
    monkeypatch.undo()
    os.close(open_journal(str(path)))


@pytest.mark.parametrize(
    "content",
    [
        b"slot set 0 private gpa=0 size=512K file=mnt/vm.mem\n",
        b"\x7fELF\xff\xfe",
        b"\n",
        b'{"type":"end","t":9,"why":"closed"}\n' + OPENING,
        OPENING.replace(b'"version":1', b'"version":2'),
    ],
    ids=["script", "binary", "blank", "no opening", "another format"],
)
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    path.chmod(0o644)
    with pytest.raises(Refused, match=f"journal {path}: the file is there and is no journal"):
        open_journal(str(path))
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o644


def _overwrite_descriptor(fd: int, path: Path) -> None:
    with path.with_name("other").open("wb") as other:
        os.dup2(other.fileno(), fd)


def _overwrite_with_null(fd: int, path: Path) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd)
    os.close(null)


@pytest.mark.parametrize(
    ("lose", "why"),
    [
        (_overwrite_with_null, "its descriptor leads to another file"),
        (_overwrite_descriptor, "its descriptor leads to another file"),
        (lambda fd, path: os.truncate(path, 0), "another process changed it"),
        (lambda fd, path: path.write_bytes(b"x" * 1000), "another process changed it"),
        (lambda fd, path: path.unlink(), "its file was removed"),
    ],
)
def test_a_journal_whose_file_loses_what_was_written_says_so_and_ends(
    tmp_path: Path, lose: Callable[[int, Path], None], why: str
) -> None:
    path, warnings = tmp_path / "journal", list[str]()
    fd = open_journal(str(path))
    journal = start_journal(fd, "memfsd", time.monotonic_ns, warnings.append)
    journal.note("freed", ino=1)
    assert warnings == []
    lose(fd, path)
    for number in range(3):
        journal.note("freed", ino=number)
    journal.close()
    (warning,) = warnings
    assert warning.startswith("the journal cannot be written and has ended: ")
    assert why in warning
    os.close(fd)
