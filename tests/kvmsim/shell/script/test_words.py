"""Lines to words: as a shell does it, with columns."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsim.shell.script.words import ScriptError, Word, split


def texts(line: str) -> list[str]:
    return [word.text for word in split(line, 1)]


def test_words_know_where_they_are_and_whether_they_were_quoted() -> None:
    assert list(split('  read\t0x10 "a b"', 1)) == [
        Word("read", 3, 7, quoted=False, bare_length=4),
        Word("0x10", 8, 12, quoted=False, bare_length=4),
        Word("a b", 13, 18, quoted=True, bare_length=0),
    ]


def test_a_value_may_be_quoted_while_its_key_is_bare() -> None:
    (word,) = split('file="a b.bin"', 1)
    assert word == Word("file=a b.bin", 1, 15, quoted=True, bare_length=5)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        (" \t ", []),
        ("# all of it", []),
        ("a #b c", ["a"]),
        ("a#b", ["a#b"]),
        ("'#a' \\#b", ["#a", "#b"]),
        ("''", [""]),
        ('""', [""]),
        ("a''b", ["ab"]),
        (r"'a\nb'", [r"a\nb"]),
        (r'"a\nb"', [r"a\nb"]),
        (r'"\" \\ \$ \`"', ['" \\ $ `']),
        (r"a\ b", ["a b"]),
        ("$HOME;ls|wc *", ["$HOME;ls|wc", "*"]),
        ("naïve 'é'", ["naïve", "é"]),
    ],
)
def test_quotes_backslashes_and_comments(line: str, expected: list[str]) -> None:
    assert texts(line) == expected


@pytest.mark.parametrize(
    ("line", "column", "said"),
    [
        ('write 0 "abc', 9, 'closing "'),
        ("write 0 ab'c", 11, "closing '"),
        (r'write 0 "abc\"', 9, 'closing "'),
        ("read 0 \\", 8, "backslash"),
        ("read\x000", 5, "U+0000"),
        ("read 0 \x1b[2J", 8, "U+001B"),
        ("read 0 '\x9b'", 9, "U+009B"),
        ("read \udcff", 6, "U+DCFF"),
    ],
)
def test_a_line_without_a_meaning_is_refused_where_it_goes_wrong(line: str, column: int, said: str) -> None:
    with pytest.raises(ScriptError, match="line 7") as raised:
        list(split(line, 7))
    assert (raised.value.line, raised.value.column) == (7, column)
    assert said in raised.value.message
    assert "\n" not in str(raised.value)


def test_words_come_before_a_later_mistake_is_seen() -> None:
    """What follows `sh` is the shell's, so its quotes must not be looked at."""
    assert next(split("sh echo 'it", 1)).text == "sh"


@given(st.text(alphabet="ab'\"\\ \t=", max_size=24))
def test_agrees_with_shlex(line: str) -> None:
    try:
        expected = shlex.split(line)
    except ValueError:
        with pytest.raises(ScriptError):
            texts(line)
    else:
        assert texts(line) == expected


@given(st.lists(st.text(alphabet=st.characters(blacklist_categories=("Cc", "Cs")), max_size=12), max_size=5))
def test_what_a_shell_would_quote_comes_back_whole(words: list[str]) -> None:
    line = " ".join(map(shlex.quote, words))
    found = list(split(line, 1))
    assert [word.text for word in found] == words
    assert all(line[word.column - 1 : word.end - 1] == shlex.quote(word.text) for word in found)
