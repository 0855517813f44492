"""Filters of a trace, in the grammar of the kernel's (Documentation/trace/events.rst, "Event filtering").

    expression   and { || and }            and   not { && not }
    not          ! not | ( expression ) | FIELD OPERATOR VALUE
    OPERATOR     == != < <= > >= & for numbers (decimal, 0x, 0 for octal), == != ~ for text; ~ takes * and ?

Each event also has common_pid, comm and cpu. A filter becomes a function of an event's values, made of closures:
nothing of its text is executed.
"""

import fnmatch
import operator
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .traceevents import Event, Value

MAX_FILTER_BYTES = 4096
_MAX_DEPTH = 32

Predicate = Callable[[Sequence[Value]], bool]
"""Of the values of an event: those of its fields, then common_pid, comm and cpu."""
COMMON = ("common_pid", "comm", "cpu")

_TOKEN = re.compile(r"""\s*(?:(&&|\|\||==|!=|<=|>=|[()!<>&~])|("[^"]*"|'[^']*')|([\w.:/*?+-]+))""")
_NUMERIC: dict[str, Callable[[int, int], object]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "&": operator.and_,
}
_OPERATORS = {*_NUMERIC, "~"}


class BadFilter(ValueError):
    """With the column of what is wrong, from 1."""

    def __init__(self, column: int, why: str) -> None:
        super().__init__(f"column {column}: {why}")


class _Token(NamedTuple):
    text: str
    column: int
    is_operator: bool = False
    is_quoted: bool = False


def parse(text: str, event: Event) -> Predicate:
    """BadFilter for what is no expression, names no field of the event, or compares what cannot be compared."""
    if len(text) > MAX_FILTER_BYTES:
        raise BadFilter(MAX_FILTER_BYTES + 1, f"a filter has at most {MAX_FILTER_BYTES} characters")
    parser = _Parser(_tokens(text), event, len(text.rstrip()) + 1)
    made = parser.either(0)
    rest = parser.peek()
    if rest is not None:
        raise BadFilter(rest.column, f"'{rest.text}' after the end of the expression: join with && or ||")
    return made


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            column = at + len(text[at:]) - len(text[at:].lstrip()) + 1
            what = "a quote that does not end" if text[column - 1] in "\"'" else f"unexpected '{text[column - 1]}'"
            raise BadFilter(column, what)
        sign, quoted, word = match.groups()
        column = match.start(match.lastindex or 0) + 1
        found.append(_Token(sign or (quoted[1:-1] if quoted else word), column, bool(sign), bool(quoted)))
        at = match.end()
    return found


class _Parser:
    def __init__(self, tokens: list[_Token], event: Event, end: int) -> None:
        self._tokens, self._event, self._end, self._at = tokens, event, end, 0

    def peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def either(self, depth: int) -> Predicate:
        parts = [self._both(depth)]
        while self._takes("||"):
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else lambda values: any(part(values) for part in parts)

    def _both(self, depth: int) -> Predicate:
        parts = [self._unary(depth)]
        while self._takes("&&"):
            parts.append(self._unary(depth))
        return parts[0] if len(parts) == 1 else lambda values: all(part(values) for part in parts)

    def _unary(self, depth: int) -> Predicate:
        here = self.peek()
        if depth > _MAX_DEPTH:
            assert here is not None
            raise BadFilter(here.column, f"nested more than {_MAX_DEPTH} deep")
        if self._takes("!"):
            negated = self._unary(depth + 1)
            return lambda values: not negated(values)
        if self._takes("("):
            inner = self.either(depth + 1)
            if not self._takes(")"):
                token = self.peek()
                raise BadFilter(token.column if token else self._end, "a ) is missing here")
            return inner
        return self._comparison()

    def _comparison(self) -> Predicate:
        field = self._next("a field")
        if field.is_operator or field.is_quoted:
            raise BadFilter(field.column, f"'{field.text}' is no field")
        index, is_text = self._field(field)
        sign = self._next("an operator")
        if not sign.is_operator or sign.text not in _OPERATORS:
            raise BadFilter(sign.column, f"'{sign.text}' is no operator: == != < <= > >= & ~")
        value = self._next("a value")
        if value.is_operator:
            raise BadFilter(value.column, f"'{value.text}' is no value")
        return _text(index, sign, value) if is_text else _number(index, sign, value)

    def _field(self, token: _Token) -> tuple[int, bool]:
        name = {"COMM": "comm", "CPU": "cpu"}.get(token.text, token.text)
        if name in COMMON:
            return len(self._event.fields) + COMMON.index(name), name == "comm"
        try:
            index = self._event.index(name)
        except ValueError:
            fields = ", ".join(self._event.fields)
            raise BadFilter(token.column, f"{self._event.name} has no field '{token.text}': it has {fields}") from None
        return index, self._event.is_text(index)

    def _takes(self, text: str) -> bool:
        token = self.peek()
        if token is None or not token.is_operator or token.text != text:
            return False
        self._at += 1
        return True

    def _next(self, what: str) -> _Token:
        token = self.peek()
        if token is None:
            raise BadFilter(self._end, f"{what} is missing here")
        self._at += 1
        return token


def _text(index: int, sign: _Token, value: _Token) -> Predicate:
    wanted = value.text
    match sign.text:
        case "==":
            return lambda values: values[index] == wanted
        case "!=":
            return lambda values: values[index] != wanted
        case "~":
            matches = re.compile(fnmatch.translate(wanted.replace("[", "[[]"))).match
            return lambda values: matches(str(values[index])) is not None
    raise BadFilter(sign.column, f"'{sign.text}' is for numbers: text is compared with == != ~")


def _number(index: int, sign: _Token, value: _Token) -> Predicate:
    if sign.text == "~":
        raise BadFilter(sign.column, "'~' is for text: numbers are compared with == != < <= > >= &")
    number, compare = _integer(value), _NUMERIC[sign.text]
    return lambda values: bool(compare(values[index], number))  # type: ignore[arg-type]


def _integer(value: _Token) -> int:
    text = value.text.removeprefix("-")
    base = 16 if text[:2].lower() == "0x" else 8 if text[:1] == "0" and len(text) > 1 else 10
    digits = text[2:] if base == 16 else text
    if value.is_quoted or not re.fullmatch("[0-9a-fA-F]{1,16}" if base == 16 else "[0-9]{1,22}", digits):
        raise BadFilter(value.column, f"'{value.text}' is no number")
    try:
        return int(value.text.replace(text, digits), base)
    except ValueError:
        raise BadFilter(value.column, f"'{value.text}' is no number of base {base}") from None
