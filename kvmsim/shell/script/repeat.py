"""`repeat N` ... `end`: lines that are done several times, with a counter in their words.

In a block, {i} is the number of the turn, from 0, also in quotes and after `sh`; {i*4K} is a multiple of it, and
{1M+i*4K} a multiple from a start. An inner block names its own counter: repeat 8 counter=j. All else in braces is
left as it is. A block is parsed when its lines are read, with the first and the last value of its counters, so that a
mistake is found before anything of it runs; then each turn's lines are parsed as if they had been written out.
"""

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from memfsd.uapi.limits import MAX_REPEAT_DEPTH, MAX_REPEATS, MAX_SCRIPT_BYTES
from memfsd.uapi.units import parse_size

from .commands import Command, End, Expect, Repeat
from .grammar import nothing_to_expect, parse_line
from .words import ScriptError

_SIZE = "[0-9][0-9a-zA-Z]*"
_COUNTER = re.compile(rf"\{{(?:({_SIZE})\+)?([a-z_][a-z0-9_]*)(?:\*({_SIZE}))?\}}")
_END_OF_64_BITS = 1 << 64

Counters = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a block as it was written; parsed, where no counter is in it."""

    text: str
    number: int
    command: Command | None

    def parsed(self, counters: Counters) -> Command:
        command = self.command or parse_line(substituted(self.text, self.number, counters), self.number)
        assert command is not None
        return command


@dataclass(slots=True)
class Block:
    """The lines from `repeat` to `end`."""

    opening: Repeat
    turns: int
    """How often it is done in all, by the blocks around it."""
    body: "list[Line | Block]" = field(default_factory=list)
    closing: End | None = None

    def steps(self, counters: Counters) -> Iterator[Command]:
        for turn in range(self.opening.count):
            now = {**counters, self.opening.counter: turn}
            for part in self.body:
                if isinstance(part, Block):
                    yield from part.steps(now)
                else:
                    yield part.parsed(now)


class Parser:
    """Lines, one after the other, to what is to be done."""

    def __init__(self) -> None:
        self._open: list[Block] = []
        self._is_first = True
        """Nothing is before the next line that an `expect` could be about."""

    @property
    def depth(self) -> int:
        """Blocks that wait for their `end`."""
        return len(self._open)

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    def feed(self, text: str, line: int) -> Iterator[Command]:
        """Parse a line: what is to be done now that it is read, lazily; nothing while a block is open. ScriptError: the
        line is as if it had not been read."""
        first, last = ({b.opening.counter: value(b) for b in self._open} for value in (lambda b: 0, _last))
        command = parse_line(substituted(text, line, last), line)
        if command is None:
            return iter(())
        if isinstance(command, Repeat):
            self._begin(command)
            return iter(())
        if isinstance(command, End):
            return self._end(command)
        if isinstance(command, Expect) and self._is_first:
            raise nothing_to_expect(command, text)
        self._is_first = False
        if not self._open:
            return iter((command,))
        shown = substituted(text, line, first)
        has_counter = shown != text
        if has_counter:
            parse_line(shown, line)
        self._open[-1].body.append(Line(text, line, None if has_counter else command))
        return iter(())

    def drop(self) -> None:
        """The blocks that are open are as if they had not been read."""
        if self._open:
            self._open.clear()
            self._is_first = True

    def close(self) -> None:
        """No line follows. ScriptError when a block is open."""
        if self._open:
            opening = self._open[-1].opening
            raise ScriptError(opening.line, 1, "this repeat has no end: put a line 'end' after what it repeats")

    def _begin(self, command: Repeat) -> None:
        column = command.columns.get("count", 1)
        if len(self._open) >= MAX_REPEAT_DEPTH:
            raise ScriptError(command.line, 1, f"{MAX_REPEAT_DEPTH} blocks in each other are the limit: use fewer")
        for block in self._open:
            if block.opening.counter == command.counter:
                message = f"counter {command.counter} is that of line {block.opening.line}: give counter=NAME"
                raise ScriptError(command.line, command.columns.get("counter", column), message)
        turns = command.count * (self._open[-1].turns if self._open else 1)
        if not command.count >= 1 or turns > MAX_REPEATS:
            message = f"{turns} turns in all: choose 1 to {MAX_REPEATS}, with the blocks around it"
            raise ScriptError(command.line, column, message)
        self._open.append(Block(command, turns))
        self._is_first = True

    def _end(self, command: End) -> Iterator[Command]:
        if not self._open:
            raise ScriptError(command.line, 1, "there is no repeat that this end could be of: leave it out")
        block = self._open.pop()
        block.closing = command
        self._is_first = True
        if self._open:
            self._open[-1].body.append(block)
            return iter(())
        return _all_of(block, command)


def parse_script(script: bytes) -> Iterator[Command]:
    """All commands of a script, blocks as often as they are done; ScriptError for its first mistake, at once.

    A script is UTF-8 of at most MAX_SCRIPT_BYTES; lines end with LF or CR LF.
    """
    parser = Parser()
    read = [parser.feed(text.removesuffix("\r"), line) for line, text in enumerate(decode(script).split("\n"), 1)]
    parser.close()
    return chain.from_iterable(read)


def decode(script: bytes) -> str:
    """The text. ScriptError."""
    if len(script) > MAX_SCRIPT_BYTES:
        raise ScriptError(1, 1, f"the script is longer than {MAX_SCRIPT_BYTES} bytes: split it")
    script = script.removeprefix(codecs.BOM_UTF8)
    try:
        return script.decode()
    except UnicodeDecodeError as error:
        before = script[: error.start].decode().split("\n")
        message = f"byte 0x{script[error.start]:02x} is not UTF-8: save the script as UTF-8"
        raise ScriptError(len(before), len(before[-1]) + 1, message) from None


def _all_of(block: Block, end: End) -> Iterator[Command]:
    yield from block.steps({})
    yield end


def _last(block: Block) -> int:
    return block.opening.count - 1


def substituted(text: str, line: int, counters: Counters) -> str:
    """The line with the values of these counters. ScriptError: one that has no 64 bits."""
    if not counters or "{" not in text:
        return text

    def value(match: re.Match[str]) -> str:
        start, name, factor = match.groups()
        if name not in counters:
            return match.group()
        try:
            number = parse_size(start or "0", 64) + counters[name] * parse_size(factor or "1", 64)
            if number >= _END_OF_64_BITS:
                raise ValueError(f"{match.group()} is {number:#x} in the last turn, more than 64 bits: repeat less")
        except ValueError as error:
            raise ScriptError(line, match.start() + 1, str(error)) from None
        return str(number) if start is None and factor is None else hex(number)

    return _COUNTER.sub(value, text)
