"""A client of QMP, kvmsim's monitor: one command after the other, with a deadline."""

import os
import select
import socket
from typing import Any

import msgspec

from memfsd.uapi.errors import PeerLost
from memfsd.uapi.limits import ANSWER_DEADLINE_S, MAX_QMP_BACKLOG_BYTES

from .quote import quoted
from .sockets import peer_of

_DEADLINE_S = ANSWER_DEADLINE_S + 5.0
"""A command may wait for the VM, which may wait for the store."""
_CHUNK_BYTES = 1 << 16
Facts = dict[str, Any]
NO_ID = object()
"""The request had none: then the answer has none."""


class QmpError(Exception):
    """An error answer: QEMU's classes, GenericError for all but the few that clients distinguish."""

    def __init__(self, description: str, class_: str = "GenericError", id_: object = NO_ID) -> None:
        super().__init__(description)
        self.description = description
        self.class_ = class_
        self.id = id_


class Client:
    """A negotiated connection. PeerLost when nobody listens, who listens is somebody else, or the process ends."""

    def __init__(self, path: str, deadline_s: float = _DEADLINE_S, uid: int | None = None) -> None:
        """uid: whose process it is, when it may be another user's."""
        self._shown = quoted(path)
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(deadline_s)
        try:
            self._socket.connect(path)
            peer = peer_of(self._socket)
            if peer.uid not in (0, os.geteuid(), uid):
                raise PeerLost(f"{self._shown}: uid {peer.uid} listens there, not you: its word is worth nothing")
            greeting = self._receive()
            if "error" in greeting:
                raise PeerLost(f"{self._shown}: {greeting['error'].get('desc')}")
            self.events: list[Facts] = []
            """Those that have come, for the caller to take."""
            self.ask("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise PeerLost(f"{self._shown}: {error.strerror or error}: see 'kvmsim monitor' for what runs") from None
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *raised: object) -> None:
        self._socket.close()

    def ask(self, name: str, arguments: Facts | None = None) -> Any:
        """What the command returns. QmpError."""
        request: Facts = {"execute": name}
        if arguments:
            request["arguments"] = arguments
        try:
            self._socket.sendall(msgspec.json.encode(request) + b"\n")
            while "event" in (answer := self._receive()):
                self.events.append(answer)
        except OSError as error:
            raise PeerLost(f"{self._shown}: {name}: {error.strerror or error}") from None
        if "error" in answer:
            raise QmpError(answer["error"]["desc"], answer["error"]["class"])
        return answer["return"]

    def take_events(self) -> list[Facts]:
        """Those that have come by now."""
        arrived = select.poll()
        arrived.register(self._socket, select.POLLIN)
        while b"\n" in self._buffer or arrived.poll(0):
            self.events.append(self._receive())
        events, self.events = self.events, []
        return events

    def _receive(self) -> Facts:
        while (end := self._buffer.find(b"\n")) < 0:
            data = self._socket.recv(_CHUNK_BYTES)
            if not data or len(self._buffer) > MAX_QMP_BACKLOG_BYTES:
                raise PeerLost(f"{self._shown}: the process has ended")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise PeerLost(f"{self._shown}: it does not speak QMP: {error}") from None
        if not isinstance(message, dict):
            raise PeerLost(f"{self._shown}: it does not speak QMP")
        return message
