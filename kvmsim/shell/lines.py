"""Lines from a pipe or a terminal, each as soon as it is there."""

import codecs
import os
import select
from collections.abc import Iterator

from kvmsim.shell.script.commands import Command
from kvmsim.shell.script.repeat import Parser
from memfsd.uapi.limits import MAX_SCRIPT_BYTES

from .interrupt import Interrupt, Quit

_READ_BYTES = 1 << 16


class InputLines:
    """Of a descriptor, without their ends; what is not UTF-8 is refused where lines are split into words. SIGINT, and a
    monitor's `quit`, end them while they are waited for."""

    def __init__(self, fd: int, interrupt: Interrupt) -> None:
        self._fd = fd
        self._interrupt = interrupt
        self._buffer = bytearray()
        self._ended = False
        self._is_first = True

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                with self._interrupt.reads():
                    while b"\n" not in self._buffer and not self._ended and len(self._buffer) < MAX_SCRIPT_BYTES:
                        self._read()
            except Quit:
                return
            if not self._buffer:
                return
            yield self._take()

    def next_word(self) -> str | None:
        """The first word of the next line that is not empty and no comment, if it is there; "" at the end."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            *complete, rest = bytes(self._buffer).split(b"\n")
            for line in [*complete, rest] if self._ended else complete:
                if words := line.decode(errors="replace").partition("#")[0].split(maxsplit=1):
                    return words[0]
            if self._ended:
                return ""
            if not poll.poll(0):
                return None
            self._read()

    def _read(self) -> None:
        chunk = os.read(self._fd, _READ_BYTES)
        self._buffer += chunk
        self._ended = not chunk

    def _take(self) -> str:
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        if self._is_first:
            line, self._is_first = line.removeprefix(codecs.BOM_UTF8), False
        return line.decode(errors="surrogateescape").removesuffix("\r")


class Stream:
    """What lines say is to be done, each line before the next one is read."""

    def __init__(self, lines: InputLines) -> None:
        self._lines = lines
        self._is_in_block = False

    def __iter__(self) -> Iterator[Command]:
        """ScriptError."""
        parser = Parser()
        for number, text in enumerate(self._lines, 1):
            steps = parser.feed(text, number)
            self._is_in_block = text.split()[:1] == ["end"]
            yield from steps
            self._is_in_block = False
        parser.close()

    def is_ready(self) -> bool:
        """The next command is there, or there is none."""
        return self._is_in_block or self._lines.next_word() not in (None, "repeat")
