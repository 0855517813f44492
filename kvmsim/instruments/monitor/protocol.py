"""QMP: bytes to requests; answers and events to bytes. Knows no socket and no clock.

As QEMU's parser, it needs no line ends: a message is complete with its last brace, so that clients that send none work,
too. A byte 0xFF, which is in no UTF-8, drops what was begun.
"""

import json
import re
from typing import Any, NamedTuple

import msgspec

from memfsd.common.qmp import NO_ID, QmpError
from memfsd.common.version import VERSION
from memfsd.uapi.limits import MAX_QMP_DEPTH, MAX_QMP_MESSAGE_BYTES

_TOKENS = re.compile(rb'[{}\[\]"]|\\.?', re.DOTALL)
_NOT_BLANK = re.compile(rb"[^ \t\r\n\xff]")
_MEMBERS = ("execute", "arguments", "id")
_decode = msgspec.json.Decoder().decode


class Request(NamedTuple):
    """A command, and what its answer repeats."""

    name: str
    arguments: dict[str, Any]
    id: object


class Framer:
    """Bytes as they come, to whole messages. Once `is_over`, a limit is broken and nothing is read any more."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0
        """Where the message begins that is not complete yet."""
        self._at = 0
        """It was looked at up to here."""
        self._depth = 0
        self._in_string = False
        self._skipped = 0
        """Bytes of a line that is no message."""
        self.is_over = False

    def feed(self, data: bytes) -> list[bytes | QmpError]:
        """Messages that are complete now, and an error for each that cannot be one."""
        self._buffer += data
        found: list[bytes | QmpError] = []
        while not self.is_over and self._step(found):
            pass
        del self._buffer[: self._start]
        self._at -= self._start
        self._start = 0
        if max(len(self._buffer), self._skipped) > MAX_QMP_MESSAGE_BYTES:
            self.is_over = True
            found.append(QmpError(f"a message is longer than {MAX_QMP_MESSAGE_BYTES} bytes: the connection ends"))
        return found

    def _step(self, found: list[bytes | QmpError]) -> bool:
        """To the next end of something; False: it has not come yet."""
        if self._skipped:
            return self._skip_line()
        if not self._depth:
            begin = _NOT_BLANK.search(self._buffer, self._start)
            self._start = self._at = begin.start() if begin else len(self._buffer)
            if not begin:
                return False
            if begin[0] not in b"{[":
                found.append(QmpError("JSON parse error, expecting an object: send {'execute': 'COMMAND'}"))
                self._skipped = 1
                return True
        return self._scan(found)

    def _skip_line(self) -> bool:
        end = self._buffer.find(b"\n", self._start)
        stop = len(self._buffer) if end < 0 else end
        self._skipped = self._skipped + stop - self._start if end < 0 else 0
        self._start = stop
        return end >= 0

    def _scan(self, found: list[bytes | QmpError]) -> bool:
        """To the end of the message, or of the buffer: then False."""
        reset = self._buffer.find(b"\xff", self._at)
        stop = len(self._buffer) if reset < 0 else reset
        for token in _TOKENS.finditer(self._buffer, self._at, stop):
            mark = token[0]
            if mark == b"\\":
                stop = token.start()  # what it escapes has not come yet
            elif mark == b'"':
                self._in_string = not self._in_string
            elif len(mark) == 1 and not self._in_string:
                self._depth += 1 if mark in b"{[" else -1
                if not self._depth:
                    found.append(bytes(self._buffer[self._start : token.end()]))
                    self._start = self._at = token.end()
                    return True
                if self._depth > MAX_QMP_DEPTH:
                    self.is_over = True
                    found.append(QmpError(f"a message nests deeper than {MAX_QMP_DEPTH}: the connection ends"))
                    return False
        self._at = stop
        if reset >= 0:
            self._start = self._at = reset + 1
            self._depth, self._in_string = 0, False
        return reset >= 0


def parse_request(message: bytes) -> Request:
    """QmpError, with the id if there is one, as QEMU's qmp_dispatch() words it."""
    try:
        request = _decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise QmpError(f"JSON parse error, {error}") from None
    if not isinstance(request, dict):
        raise QmpError("QMP input must be a JSON object")
    id_ = request.get("id", NO_ID)
    for name in request:
        if name not in _MEMBERS:
            raise QmpError(f"QMP input member '{name}' is unexpected", id_=id_)
    if "execute" not in request:
        raise QmpError("QMP input lacks member 'execute'", id_=id_)
    name, arguments = request["execute"], request.get("arguments", {})
    if not isinstance(name, str):
        raise QmpError("QMP input member 'execute' must be a string", id_=id_)
    if not isinstance(arguments, dict):
        raise QmpError("QMP input member 'arguments' must be an object", id_=id_)
    return Request(name, arguments, id_)


def version() -> dict[str, object]:
    """In QEMU's shape; the numbers are kvmsim's."""
    major, minor, micro = (int(part) for part in (*re.findall(r"\d+", VERSION), "0", "0")[:3])
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": f"kvmsim {VERSION}"}


def greeting() -> bytes:
    return _line({"QMP": {"version": version(), "capabilities": []}})


def success(value: object, id_: object) -> bytes:
    return _line({"return": value} | _id(id_))


def failure(error: QmpError, id_: object) -> bytes:
    return _line({"error": {"class": error.class_, "desc": error.description}} | _id(id_))


def event(name: str, data: dict[str, Any], time_ns: int) -> bytes:
    """time_ns: CLOCK_REALTIME."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    stamp = {"seconds": seconds, "microseconds": rest // 1000}
    return _line({"timestamp": stamp, "event": name} | ({"data": data} if data else {}))


def _id(id_: object) -> dict[str, object]:
    return {} if id_ is NO_ID else {"id": id_}


def _line(message: dict[str, object]) -> bytes:
    return json.dumps(message).encode() + b"\r\n"
