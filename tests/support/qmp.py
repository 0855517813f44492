"""A monitor in this process, and a client that can also say what no good client says."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from kvmsim.instruments.monitor.listening import Listening
from kvmsim.instruments.monitor.monitor import Monitor
from kvmsim.instruments.monitor.places import Listener
from kvmsim.shell.execute import Executor
from memfsd.common.rundir import MONITORS

from .threads import DEADLINE_S

Facts = dict[str, Any]


@contextmanager
def monitored(executor: Executor, path: Path) -> Iterator[Monitor]:
    sock = MONITORS.listen(str(path), 0o600)
    sock.setblocking(False)
    listening = Listening([Listener(str(path), sock)], executor)
    monitor = listening.load()
    listening.start()
    try:
        yield monitor
    finally:
        listening.stop("host-ui")
        listening.detach()


class Raw:
    """A connection, message by message."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(str(path))
        self._lines = self.socket.makefile("rb")

    def send(self, data: bytes | Facts) -> None:
        self.socket.sendall(data if isinstance(data, bytes) else json.dumps(data).encode())

    def receive(self) -> Facts | None:
        """The next message; None when the other end has closed the connection."""
        line = self._lines.readline()
        if not line:
            return None
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def negotiate(self) -> "Raw":
        greeting = self.receive()
        assert greeting is not None and greeting["QMP"]["capabilities"] == []
        assert self.ask("qmp_capabilities") == {"return": {}}
        return self

    def ask(self, name: str, /, **arguments: object) -> Facts | None:
        """The answer; events before it are skipped."""
        self.send({"execute": name, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}})
        while (message := self.receive()) is not None and "event" in message:
            pass
        return message

    def value(self, name: str, /, **arguments: object) -> Any:
        answer = self.ask(name, **arguments)
        assert answer is not None and "return" in answer, answer
        return answer["return"]

    def refusal(self, name: str, /, **arguments: object) -> str:
        answer = self.ask(name, **arguments)
        assert answer is not None and "error" in answer, answer
        return f"{answer['error']['class']}: {answer['error']['desc']}"

    def event(self, name: str) -> Facts:
        """The next event of this name."""
        while (message := self.receive()) is None or message.get("event") != name:
            assert message is not None, f"{name} never came"
        assert message["timestamp"].keys() == {"seconds", "microseconds"}
        data = message.get("data", {})
        assert isinstance(data, dict)
        return data

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


@contextmanager
def client(path: Path) -> Iterator[Raw]:
    """A negotiated one."""
    with closing(Raw(path)) as raw:
        yield raw.negotiate()
