"""Names and foreign text as a person may see them: no byte of them controls the terminal.

A name is quoted as ls(1) does for a terminal, so that it can be pasted into a shell: a, 'a b', "it's", 'a'$'\\033''b'.
"""

import os
import re

_PLAIN = re.compile(r"[\w@%+:,./-][\w@%+:,./=#-]*")
_SHORT = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r"}
_NOT_IN_DOUBLE = frozenset('"`$\\!')


def quoted(name: str | bytes) -> str:
    """A file's or VM's name. A str may hold bytes that are not UTF-8 as os.fsdecode() leaves them."""
    text = os.fsdecode(name)
    if _PLAIN.fullmatch(text):
        return text
    if text.isprintable():
        if "'" in text and not _NOT_IN_DOUBLE & set(text):
            return f'"{text}"'
        return "'" + text.replace("'", "'\\''") + "'"
    shown, escaping = "'", False
    for character in text:
        escape = not character.isprintable()
        if escape != escaping:
            shown += "'$'" if escape else "''"
            escaping = escape
        if escape:
            shown += _escaped(character)
        else:
            shown += "'\\''" if character == "'" else character
    return (shown + "'").removeprefix("''")


def printable(text: str) -> str:
    """A line that others had a hand in, with escapes for what is not printable; tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return "".join(_SHORT.get(byte, f"\\{byte:03o}") for byte in os.fsencode(character))
