"""What Tab offers."""

from pathlib import Path

import pytest

from kvmsim.shell.script.complete import completions
from kvmsim.shell.script.grammar import FORMS, INFO_TOPICS


@pytest.mark.parametrize(
    ("before", "word", "offered"),
    [
        ("", "re", ["read ", "resume ", "repeat "]),
        ("", "he", ["help "]),
        ("", "xyz", []),
        ("slot ", "", ["set ", "delete ", "punch ", "dirty ", "set2 ", "delete2 "]),
        ("slot ", "d", ["delete ", "delete2 ", "dirty "]),
        ("slot set 0 private ", "fi", ["file="]),
        ("start ", "sha", ["sha256 "]),
        ("help slot ", "s", ["set ", "set2 "]),
        ("info ", "ep", ["ept "]),
        ("policy overlay ", "under=f", ["under=freed "]),
        ("read ", "0x", []),
    ],
)
def test_words_that_continue_a_line(before: str, word: str, offered: list[str]) -> None:
    assert sorted(completions(before, word)) == sorted(offered)


def test_an_empty_line_is_offered_every_command_once() -> None:
    offered = completions("", "")
    assert len(offered) == len(set(offered))
    assert {form.name.split()[0] for form in FORMS} < {word.strip() for word in offered}


def test_all_topics_of_info_are_offered_and_its_option() -> None:
    assert completions("info ", "") == [*(f"{topic} " for topic in INFO_TOPICS), "vm="]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "vm.mem").touch()
    (tmp_path / "vm[1]").touch()
    (tmp_path / "vms").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_path_is_completed_after_its_key_and_as_a_word(place: Path) -> None:
    """A blank ends the word after a file; a directory goes on."""
    assert completions("slot set 0 private gpa=0 size=4K ", "file=vm") == ["file=vm.mem ", "file=vm[1] ", "file=vms/"]
    assert completions("load 0 ", "vms") == ["vms/"]
    assert completions("sh cat ", "vm.") == ["vm.mem "]


def test_signs_of_a_pattern_in_a_name_are_themselves(place: Path) -> None:
    assert completions("load 0 ", "vm[") == ["vm[1] "]
    assert completions("load 0 ", "*") == []


def test_a_home_directory_is_written_out(place: Path) -> None:
    assert completions("load 0 ", "~/vm.") == [f"{place}/vm.mem "]
