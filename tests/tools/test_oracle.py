"""tools/oracle: what it prints, what it refuses, and that it goes on without /dev/kvm."""

import json
import os
from pathlib import Path

import pytest
from fidelity import oracle
from fidelity.vectors import Vector, load, save

ONE = "create/size/4096"


@pytest.fixture(autouse=True)
def no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recording is what ours is compared with, so that the test is the same on every machine."""
    monkeypatch.setattr(oracle, "unavailable", lambda: "there is no /dev/kvm here")


def test_each_difference_is_a_line_of_json_and_the_sums_are_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    assert oracle.main(["--json", ONE, "create/size/0"]) == 0
    said = capsys.readouterr()
    *lines, sums = map(json.loads, said.out.splitlines())
    (line,) = lines
    assert (line["case"], line["op"]) == (ONE, 2)
    assert line["kvm"]["result"]["nlink"] == 1
    assert line["kvmsim"]["result"]["nlink"] == 0
    assert line["reason"].startswith("st_blocks is truthful")
    assert sums == {"asked": 6, "same": 5, "listed": 1, "unlisted": 0, "not_asked": 0}
    assert said.err == "tools/oracle: there is no /dev/kvm here: compared with the recording instead\n"


def test_what_is_not_listed_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = [vector for vector in load(oracle.VECTORS) if vector.name == ONE]
    path = tmp_path / "other.json"
    save(path, [Vector(found.name, found.ops[:2], ({"result": "fd"}, {"errno": "ENOSYS"}))])
    assert oracle.main(["--vectors", str(path)]) == 1
    assert "NOT LISTED" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", '{"cases": [{}]}', '{"cases": [{"name": "x", "ops": [1]}]}'])
def test_a_file_that_is_no_recording_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vectors.json"
    path.write_text(text)
    assert oracle.main(["--vectors", str(path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(path) in said


def test_nothing_is_recorded_without_a_kvm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert oracle.main(["--record", str(tmp_path / "new.json"), ONE]) == 1
    assert "nothing recorded: there is no /dev/kvm here" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    vectors = load(oracle.VECTORS)
    save(tmp_path / "again.json", vectors)
    assert load(tmp_path / "again.json") == vectors
