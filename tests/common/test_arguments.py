"""Command lines: a mistake is one line that says where to look, and nobody's text breaks it."""

import argparse

import pytest

from memfsd.common.arguments import Parser, checked, command_of, whole


@pytest.fixture
def parser() -> Parser:
    made = Parser(prog="tool", description="Lines\nstay lines.")
    made.add_argument("number", type=int)
    return made


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "tool: the following arguments are required: number: see tool --help\n"),
        (["7", "8"], "tool: unrecognized arguments: 8: see tool --help\n"),
        (["7", "a\nb\x1b[31m"], "tool: unrecognized arguments: a b\\033[31m: see tool --help\n"),
    ],
    ids=["missing", "too many", "text of an attacker"],
)
def test_a_usage_error_is_one_line_and_exits_2(
    parser: Parser, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", said)


def test_help_keeps_its_line_breaks(parser: Parser) -> None:
    assert "\nLines\nstay lines.\n" in parser.format_help()


def test_help_that_cannot_be_written_is_an_error(parser: Parser, monkeypatch: pytest.MonkeyPatch) -> None:
    """argparse alone says nothing, and exits 0."""
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(OSError, match="No space left"):
            parser.parse_args(["--help"])
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space left"):
            full.close()


@pytest.mark.parametrize(
    ("words", "command"),
    [([], ""), (["--version"], ""), (["run", "x"], "run"), (["-x", "run", "stat"], "run"), (["--", "run"], "run")],
)
def test_the_command_is_found_behind_options_that_there_are_not(words: list[str], command: str) -> None:
    assert command_of(words) == command


@pytest.mark.parametrize("text", ["1", "40", "007", "0" * 5000 + "7"])
def test_whole_numbers_are_decimal_digits(text: str) -> None:
    assert whole(1, 40, "is not a count")(text) == int(text[-4:])


@pytest.mark.parametrize("text", ["0", "41", "-1", "1.0", "0x1", "", "x", "\u0663", "9" * 5000])
def test_other_text_is_shown_in_short(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        whole(1, 40, "is not a count")(text)
    assert str(refused.value) == f"'{text[:40]}' is not a count"


def test_what_is_wrong_is_said_by_who_parses_it() -> None:
    def even(text: str) -> int:
        if int(text) % 2:
            raise ValueError(f"{text} is odd")
        return int(text)

    assert checked(even)("2") == 2
    with pytest.raises(argparse.ArgumentTypeError, match="3 is odd"):
        checked(even)("3")
