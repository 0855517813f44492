"""Lines of a view: text with styles, tables and bars, for a full screen or for none."""

import unicodedata
from collections.abc import Sequence

from memfsd.uapi.units import PAGE_SIZE

Line = list[tuple[str, str]]
"""Pieces of text, each with its style, by rich's words: "bold red"; "" is plain."""
Cell = str | tuple[str, str]
"""Of a table: text, or text with its style."""
Column = tuple[str, int]
"""Its head, and the least width: negative for words, which begin at the left."""
ALARM = "bold white on red"
HEAD = "bold"


def plain(line: Line, columns: int) -> str:
    return cut("".join(text for text, _ in line), columns)


def cut(text: str, columns: int) -> str:
    for end, character in enumerate(text):
        columns -= _width(character)
        if columns < 0:
            return text[:end]
    return text


def columns_of(text: str) -> int:
    return sum(map(_width, text))


def _width(character: str) -> int:
    return 0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")


def rounded(size_bytes: int) -> str:
    """Three digits and a unit, as ls -h: 1M, 63.9M, 512G."""
    size, unit = float(size_bytes), 0
    while size >= 999.5 and unit < 5:
        size, unit = size / 1024, unit + 1
    digits = f"{size:.1f}".removesuffix(".0") if size < 99.95 else f"{size:.0f}"
    return digits + "BKMGTP"[unit] if size_bytes else "0"


def pages(count: int | None, style: str = "") -> Cell:
    """So much memory; "-" where it is not known. The style is for what is not 0."""
    return "-" if count is None else (rounded(count * PAGE_SIZE), style if count else "")


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> list[Line]:
    """A head, and a line for each row; the last column is as long as it is."""
    cells = [[cell if isinstance(cell, tuple) else (cell, "") for cell in row] for row in rows]
    cells.insert(0, [(head, HEAD) for head, _ in columns])
    widths = [max(abs(least), *(columns_of(row[at][0]) for row in cells)) for at, (_, least) in enumerate(columns)]
    lines = []
    for row in cells:
        line: Line = []
        for (text, style), width, (_, least) in zip(row[:-1], widths, columns, strict=False):
            blank = " " * (width - columns_of(text))
            line += [(text, style), (blank + " ", "")] if least < 0 else [(blank, ""), (text, style), (" ", "")]
        lines.append([*line, row[-1]])
    return lines


def bar(label: str, parts: Sequence[tuple[int, str, str]], total: int, width: int, tail: str = "") -> Line:
    """`label[####++    ] tail`: parts are (count, letter, style), of a total that is width letters long. What is there
    shows: at least one letter."""
    line: Line = [(f"{label}[", HEAD)]
    left = width
    for count, letter, style in parts:
        length = min(left, max(1, round(count * width / total))) if count and total else 0
        line.append((letter * length, style))
        left -= length
    return [*line, (" " * left, ""), ("]", HEAD), (f" {tail}" if tail else "", "")]
