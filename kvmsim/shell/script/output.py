"""Records for a person, or as JSON. Each one is flushed, so that a reader sees it when it happened."""

import json
from collections.abc import Iterator
from typing import TextIO

from memfsd.common.quote import printable

from .commands import Expect
from .outcome import Outcome, Record, format_exit

_DIM, _RED, _GREEN, _PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[0m"
_INDENT = "    "
_ROW_BYTES = 16


class JsonPrinter:
    """One object per line: "line", "cmd", "source", "ok", "errno", "exit", "exit_fields" and "data" always;
    "ret", "status", "text", "info", "reason", "failed" and "seconds" (that the command took) when there is something to
    say.

    "cmd" is the words that select the command ("slot set"), null for a line that is none, "data" hex digits or null.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def emit(self, record: Record) -> None:
        command, outcome = record.command, record.outcome
        fields: dict[str, object] = {
            "line": command.line,
            "cmd": command.name or None,
            "source": command.source,
            "ok": outcome.ok,
            "errno": outcome.errno,
            "exit": outcome.exit,
            "exit_fields": dict(outcome.exit_fields),
            "data": None if outcome.data is None else outcome.data.hex(),
        }
        if outcome.ret is not None:
            fields["ret"] = outcome.ret
        if outcome.status is not None:
            fields["status"] = outcome.status
        if outcome.text:
            fields["text"] = outcome.text
        if outcome.info is not None:
            fields["info"] = outcome.info
        if outcome.reason:
            fields["reason"] = outcome.reason
        if record.failed:
            fields["failed"] = True
        if record.seconds is not None:
            fields["seconds"] = round(record.seconds, 6)
        print(json.dumps(fields), file=self._stream, flush=True)


class HumanPrinter:
    """The line as it was written, and below it, indented, what came of it, if there is anything to say.

    ``echo`` off is for a prompt, where the line is on the screen already. Colours only on a terminal.
    """

    def __init__(self, stream: TextIO, echo: bool = True) -> None:
        self._stream = stream
        self._echo = echo
        self._colours = stream.isatty()

    def emit(self, record: Record) -> None:
        command = record.command
        lines = [self._paint(_DIM, f"{command.line}> {printable(command.source)}")] if self._echo else []
        lines += [_INDENT + line for line in self._result(record)]
        for line in lines:
            print(line, file=self._stream)
        self._stream.flush()

    def _result(self, record: Record) -> Iterator[str]:
        outcome = record.outcome
        yield from map(printable, outcome.text.splitlines())
        if outcome.data is not None and not outcome.text:
            if outcome.address is not None:
                yield from hexdump(outcome.data, outcome.address)
            else:
                yield outcome.data.hex()
        if outcome.info is not None and not outcome.text and outcome.ok:
            yield from json.dumps(outcome.info, indent=2).splitlines()
        if record.failed:
            yield self._paint(_RED, f"FAILED: {printable(_trouble(outcome))}")
        elif not outcome.ok:
            yield printable(_trouble(outcome))
        elif isinstance(record.command, Expect):
            yield self._paint(_GREEN, "ok")

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colours else text


def hexdump(data: bytes, address: int) -> Iterator[str]:
    """Rows of 16 bytes: address, hex, text. Rows like the one before are one "*"; the last is shown."""
    previous, repeating = b"", False
    for at in range(0, len(data), _ROW_BYTES):
        row = data[at : at + _ROW_BYTES]
        if row == previous and at + _ROW_BYTES < len(data):
            if not repeating:
                yield "*"
            repeating = True
            continue
        previous, repeating = row, False
        characters = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{address + at:#014x}  {row.hex(' '):<{_ROW_BYTES * 3 - 1}}  |{characters}|"


def _trouble(outcome: Outcome) -> str:
    """Why an outcome is not ok, in one line."""
    if outcome.exit is not None and outcome.errno is not None:
        what = f"{outcome.errno}, {format_exit(outcome.exit, outcome.exit_fields)}"
    elif outcome.errno is not None:
        what = outcome.errno
    elif outcome.exit is not None:
        what = format_exit(outcome.exit, outcome.exit_fields)
    elif outcome.status is not None:
        what = f"exit status {outcome.status}"
    else:
        return outcome.reason
    return f"{what}: {outcome.reason}" if outcome.reason else what
