"""What a command may write over, and what stays as it is; and that each command asks before it begins."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmsim.cli import run_command
from kvmsim.instruments.compare.plot import draw, plot_file
from kvmsim.instruments.compare.rig import Sample
from kvmsim.instruments.outputfile import OutputFile
from memfsd.uapi.errors import Refused
from tests.kvmsim.instruments.views.test_comparison import rows
from tests.kvmsim.instruments.views.test_history import both
from tests.support.journaled import record_run
from tests.support.traced import write_traces


def output(path: Path | str, *used: str, stdout: str = "") -> OutputFile:
    return OutputFile(str(path), "a page", lambda head: head.startswith(b"page"), used, stdout)


def written(path: Path, data: bytes = b"page 2") -> None:
    to = output(path)
    to.refuse_unusable()
    with to.opened() as file:
        file.write(data)


@pytest.mark.parametrize("before", [None, b"", b"page 1"])
def test_a_new_file_an_empty_one_and_an_older_one_get_it_whole(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "out"
    if before is not None:
        path.write_bytes(before)
        path.chmod(0o600)
    written(path)
    assert path.read_bytes() == b"page 2"
    assert before is None or stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed_and_stays_one(tmp_path: Path) -> None:
    link, target, dangling = tmp_path / "link", tmp_path / "target", tmp_path / "dangling"
    link.symlink_to("target")
    dangling.symlink_to("new")
    target.write_bytes(b"page 1")
    written(link)
    written(dangling)
    assert link.is_symlink() and target.read_bytes() == b"page 2"
    assert dangling.is_symlink() and (tmp_path / "new").read_bytes() == b"page 2"
    target.write_bytes(b"somebody's")
    with pytest.raises(Refused, match="is there and is not a page"):
        written(link)
    assert target.read_bytes() == b"somebody's"


def _file(path: Path) -> None:
    path.write_bytes(b"somebody's")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


THERE: dict[str, Callable[[Path], None]] = {
    "is not": _file,
    "a directory": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a device": _device,
}


@pytest.mark.parametrize("kind", THERE)
@pytest.mark.parametrize("by_link", [False, True])
def test_everything_else_that_is_there_stays(tmp_path: Path, kind: str, by_link: bool) -> None:
    there, named = tmp_path / "there", tmp_path / ("link" if by_link else "there")
    THERE[kind](there)
    if by_link:
        named.symlink_to(there)
    before = there.stat()
    with pytest.raises(Refused, match=kind):
        output(named).refuse_unusable()
    with pytest.raises(Refused, match=kind), output(named).opened():
        """It came after the question."""
    assert os.path.samestat(there.stat(), before) and there.stat().st_mode == before.st_mode
    assert {entry.name for entry in tmp_path.iterdir()} == {"there", named.name}


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"page 1")
    with pytest.raises(ZeroDivisionError), output(path).opened() as file:
        file.write(b"page 2" * (1 // 0))
    assert path.read_bytes() == b"page 1"
    assert list(tmp_path.iterdir()) == [path]


def test_no_other_file_of_the_command(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    with pytest.raises(Refused, match="is used by this command"):
        output(one, str(tmp_path / "." / "one")).refuse_unusable()
    one.touch()
    os.link(one, other)
    with pytest.raises(Refused, match="is used by this command"):
        output(one, "-", str(other)).refuse_unusable()


def test_names_that_are_none(tmp_path: Path) -> None:
    for name, why in (("", "is empty"), ("-", "is standard output"), (tmp_path / "no" / "x", "create it first")):
        with pytest.raises(Refused, match=why):
            output(name).refuse_unusable()


def test_standard_output(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with output("-", stdout="data").opened() as file:
        file.write(b"page")
    assert capfdbinary.readouterr().out == b"page"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output("-", stdout="text").refuse_unusable()
    with pytest.raises(Refused, match="is a terminal"):
        output("-", stdout="data").refuse_unusable()


SCRIPT = "slot set 0 shared gpa=0 size=64K\nsh touch ran\n"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("report store.journal -o store.journal", 1),
        ("report store.journal -o mine", 1),
        ("run s.kvm --report s.kvm", 2),
        ("run s.kvm --report mine", 2),
        ("run s.kvm --report=", 2),
        ("run s.kvm --report -", 2),
        ("run s.kvm --journal new --report new", 2),
        ("run s.kvm --trace new --report ./new", 2),
        ("abi --situations bind-twice --html mine", 1),
        ("abi --situations bind-twice --html=", 1),
        ("compare --workloads boot --html mine", 1),
        ("compare --plot same.svg --html same.svg", 1),
        ("compare --workloads misbehave --plot mine.png", 1),
        ("compare --workloads misbehave --plot=", 1),
        ("race fault-x-fault --count 1 --record mine", 2),
        ("trace convert store.journal -o mine", 2),
        ("trace convert store.journal -o store.journal", 2),
        ("trace convert mine -o new", 2),
        ("trace convert mine -o old", 2),
    ],
)
def test_every_command_refuses_before_it_begins(
    command: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    record_run(tmp_path, both)
    Path("s.kvm").write_text(SCRIPT)
    for name in ("mine", "mine.png"):
        Path(name).write_text("somebody's")
    assert run_command(["trace", "convert", "store.journal", "-o", "old"]) == 0
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run_command(command.split()) == status
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1), said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "command",
    [
        "report store.journal -o out",
        "run s.kvm --report out",
        "abi --situations bind-twice --html out",
        "trace convert store.journal -o out",
    ],
)
def test_what_a_command_wrote_it_may_write_again(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    record_run(tmp_path, both)
    Path("s.kvm").write_text(SCRIPT)
    for _ in range(2):
        assert run_command(command.split()) == 0, capsys.readouterr().err
    assert Path("out").stat().st_size > 1000


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_may_be_drawn_again(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"slots.{suffix}"
    for _ in range(2):
        draw(rows([Sample(1, 2, 12.5)]), plot_file(str(path), ["misbehave"]))
    assert path.stat().st_size > 1000


def test_a_page_or_a_converted_trace_on_standard_output(tmp_path: Path) -> None:
    store, _ = write_traces(tmp_path)
    journals = record_run(tmp_path, both)
    for command, beginning in (
        (["report", *journals, "-o", "-"], b"<!DOCTYPE html>"),
        (["trace", "convert", store, "-o", "-"], b"\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "kvmsim", *map(str, command)], capture_output=True, cwd=Path(__file__).parents[3]
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(beginning) and len(done.stdout) > 500
        assert not done.stdout.endswith(b"-\n")
        assert run_command([*map(str, command), "--json"]) == (1 if command[0] == "report" else 2)
