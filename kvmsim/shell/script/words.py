"""A line of a script, split into words as a shell splits it, without any expansion."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_REFUSED = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")
_BARE = re.compile(r"[^ \t'\"\\]+")
_QUOTED = re.compile(r"""'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|\\(?P<escaped>.)""")
_ESCAPE = re.compile(r"\\([\"\\$`])")
"""Inside double quotes a backslash quotes only these; before anything else it stands for itself."""


class ScriptError(Exception):
    """A line that cannot be parsed: nothing was run.

    ``line`` and ``column`` (in characters) count from 1; ``message`` is one line for a person.
    """

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(line, column, message)
        self.line = line
        self.column = column
        self.message = message

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}"


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a line."""

    text: str
    """Without its quotes."""
    column: int
    """Where it starts, from 1."""
    end: int
    """The column just past it."""
    quoted: bool = False
    """Any part of it was quoted."""
    bare_length: int = 0
    """Characters of `text` before the first quote: in key="value" the key is bare."""


def split(text: str, line: int) -> Iterator[Word]:
    """The words of one line without its line end, lazily: what follows `sh` is not split at all.

    ScriptError for a quote without an end, a backslash at the end, and control characters.
    """
    refused = _REFUSED.search(text)
    if refused:
        code = ord(refused.group())
        raise ScriptError(line, refused.start() + 1, f"control character U+{code:04X}: remove it from the line")
    at = 0
    while at < len(text):
        if text[at] in " \t":
            at += 1
        elif text[at] == "#":
            return
        else:
            word = _word(text, at, line)
            yield word
            at = word.end - 1


def _word(text: str, start: int, line: int) -> Word:
    pieces: list[str] = []
    bare_length: int | None = None
    at = start
    while at < len(text) and text[at] not in " \t":
        if bare := _BARE.match(text, at):
            pieces.append(bare.group())
            at = bare.end()
            continue
        if bare_length is None:
            bare_length = at - start
        quoted = _QUOTED.match(text, at)
        if quoted is None:
            raise ScriptError(line, at + 1, _unfinished(text[at]))
        single, double, escaped = quoted.groups()
        if double is not None:
            double = _ESCAPE.sub(r"\1", double)
        pieces.append(next(piece for piece in (single, double, escaped) if piece is not None))
        at = quoted.end()
    word = "".join(pieces)
    if bare_length is None:
        return Word(word, start + 1, at + 1, False, len(word))
    return Word(word, start + 1, at + 1, True, bare_length)


def _unfinished(opening: str) -> str:
    if opening == "\\":
        return "nothing follows the backslash: a command is one line; for a backslash write \\\\"
    return f"quote without an end: add the closing {opening}"
