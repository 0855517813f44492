"""Where a process listens: what is asked must be, what is by default may fail, and nothing is left behind."""

import argparse
import os
import stat
from pathlib import Path

import pytest

from kvmsim.instruments.monitor import places
from kvmsim.instruments.monitor.arguments import add_arguments
from memfsd.common.rundir import MONITORS
from memfsd.uapi.errors import Refused


def asked(*arguments: str) -> list[str]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    found = parser.parse_args(arguments).qmp
    assert isinstance(found, list)
    return found


def test_the_address_is_qemus(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked() == []
    assert asked("--qmp", "unix:a", "--qmp", "unix:/b/c,server=on,wait=off", "--qmp", "none") == ["a", "/b/c", "none"]
    for wrong in ("/tmp/x", "tcp:localhost:4444", "unix:", "unix:a,server=off", ""):
        with pytest.raises(SystemExit):
            asked("--qmp", wrong)
        assert "give unix:PATH, or none" in capsys.readouterr().err


def test_it_listens_by_default_and_where_it_was_asked(tmp_path: Path) -> None:
    listeners = places.listen([str(tmp_path / "a")])
    try:
        assert [one.path for one in listeners] == [MONITORS.socket_path(os.getpid()), str(tmp_path / "a")]
        assert listeners[0].path in places.running()
        assert all(stat.S_IMODE(os.stat(one.path).st_mode) == 0o600 for one in listeners)
        assert stat.S_IMODE(os.stat(MONITORS.path).st_mode) == 0o700
    finally:
        for one in listeners:
            one.close()
    assert not any(os.path.exists(one.path) for one in listeners)


def test_none_is_nowhere(tmp_path: Path) -> None:
    assert places.listen(["none"]) == []


def test_a_default_that_cannot_be_stops_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where /run is read-only, or another user made /tmp/kvmsim-UID."""
    (tmp_path / "kvmsim").write_text("a file in its place")
    monkeypatch.setattr("memfsd.common.rundir._ROOT", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert places.listen([]) == []
    (one,) = places.listen([str(tmp_path / "a")])
    one.close()


def test_what_was_asked_and_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"--qmp unix:{tmp_path}/no/a: No such file or directory"):
        places.listen([str(tmp_path / "a"), str(tmp_path / "no/a")])
    assert list(tmp_path.iterdir()) == []
    assert MONITORS.socket_path(os.getpid()) not in places.running()
    with (
        MONITORS.listen(str(tmp_path / "a"), 0o600),
        pytest.raises(Refused, match="another kvmsim listens there: choose another --qmp unix:PATH"),
    ):
        places.listen([str(tmp_path / "a")])
