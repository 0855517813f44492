"""Where programs listen: what is in the way is refused in one line, and what a dead process left is replaced."""

import os
import socket
import stat
from pathlib import Path

import pytest

from memfsd.common.rundir import RuntimeDirectory
from memfsd.uapi.errors import Refused

PLACE = RuntimeDirectory("prog", "--at ", "qmp", socket.SOCK_STREAM, root_mode=0o700)


def test_the_socket_has_its_mode_from_the_first_moment(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with PLACE.listen(path, 0o600):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with PLACE.listen(path, 0o666):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o666, "a stale one is replaced, whatever the umask"


def test_a_socket_on_which_somebody_listens_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with PLACE.listen(path, 0o600):
        with pytest.raises(Refused, match=f"--at {path}: another prog listens there: choose another --at PATH"):
            PLACE.listen(path, 0o600)
        assert PLACE.is_live(path)
    assert not PLACE.is_live(path)


def test_another_kind_of_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(Refused, match="another kind of file is there"):
        PLACE.listen(str(path), 0o600)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("path", ["/nowhere/s", "x" * 200])
def test_a_path_that_takes_no_socket_is_one_line(path: str) -> None:
    with pytest.raises(Refused, match=f"--at {path}: "):
        PLACE.listen(path, 0o600)


def test_a_directory_that_everybody_writes_is_refused_as_the_users_choice(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(Refused, match="writable by everybody"):
        PLACE.check_chosen(str(tmp_path))
    tmp_path.chmod(0o1777)
    PLACE.check_chosen(str(tmp_path))


def test_a_sweep_takes_the_sockets_of_processes_that_are_gone(tmp_path: Path) -> None:
    gone = (1 << 22) + 7  # above every pid
    for name in (f"{gone}.qmp", f"{os.getpid()}.qmp", f"{gone}.sock"):
        PLACE.listen(str(tmp_path / name), 0o600).close()
    with PLACE.listen(str(tmp_path / f"{gone + 1}.qmp"), 0o600):
        PLACE.sweep(str(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} == {
            f"{os.getpid()}.qmp",
            f"{gone}.sock",
            f"{gone + 1}.qmp",
        }, "of another suffix, of a live process, and one that is listened on stay"


def test_the_directory_is_the_runtime_directory_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert PLACE.socket_path(5) == f"{tmp_path}/prog/5.qmp"
    assert PLACE.places_of(5, 4711)[0] == f"{tmp_path}/prog/5.qmp"
    assert PLACE.places_of(5, 0) == ["/run/prog/5.qmp"]
    assert PLACE.places_of(5, 99) == ["/run/user/99/prog/5.qmp", "/tmp/prog-99/5.qmp"]
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert PLACE.path == "/tmp/prog-4711"
