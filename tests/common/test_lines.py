"""Tables and bars: what lines up, what is cut, and that what is there shows."""

import pytest

from memfsd.common.lines import ALARM, bar, columns_of, cut, pages, plain, rounded, table

WIDE = 200


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (4096, "4K"), (1 << 20, "1M"), (67_000_000, "63.9M"), (1 << 39, "512G"), (1, "1B")]
)
def test_sizes_have_three_digits(size: int, text: str) -> None:
    assert rounded(size) == text


def test_pages_are_bytes_and_what_is_not_known_is_a_dash() -> None:
    assert [pages(None), pages(0, ALARM), pages(2, ALARM)] == ["-", ("0", ""), ("8K", ALARM)]


def test_columns_line_up_whatever_is_in_them() -> None:
    lines = table([("N", 3), ("WORD", -6), ("LAST", 0)], [["1", "a", "x"], ["4321", "名前", ("y" * 9, "red")]])
    assert [plain(line, WIDE) for line in lines] == ["   N WORD   LAST", "   1 a      x", "4321 名前   yyyyyyyyy"]
    assert lines[2][-1] == ("y" * 9, "red")


def test_a_line_is_cut_between_characters_of_two_columns() -> None:
    assert (cut("a名前", 4), columns_of("a名前")) == ("a名", 5)
    assert plain([("ab", "red"), ("cd", "")], 3) == "abc"


def test_a_bar_is_as_long_as_it_should_be_and_shows_the_least_part() -> None:
    line = bar("pool ", [(1, "a", ""), (500, "b", ""), (499, "c", "")], 1000, 10, "of 4M")
    assert plain(line, WIDE) == "pool [abbbbbcccc] of 4M"
    assert plain(bar("x", [(0, "a", ""), (5, "b", "")], 10, 4), WIDE) == "x[bb  ]"
    assert plain(bar("x", [(1, "a", "")], 0, 4), WIDE) == "x[    ]"
    assert plain(bar("x", [(1, letter, "") for letter in "abcdef"], 1000, 4), WIDE) == "x[abcd]"
