"""A client of QMP: what it sends, what comes back, and an other end that lies, ends, or says nothing."""

import json
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from memfsd.common.qmp import Client, QmpError
from memfsd.uapi.errors import PeerLost
from tests.support.threads import DEADLINE_S, Beside, until

GREETING = b'{"QMP": {}}\n{"return": {}}\n'


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qmp"))
        server.listen()
        yield server


def path_of(listener: socket.socket) -> str:
    return str(listener.getsockname())


def serve(listener: socket.socket, answer: bytes) -> list[dict[str, object]]:
    """Says all of it to the first client; what that sent until it hung up."""
    sock, _ = listener.accept()
    with sock:
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: sock.recv(4096), b""))
    return [json.loads(line) for line in received.splitlines()]


def test_a_command_is_sent_and_events_on_the_way_to_its_answer_are_kept(listener: socket.socket) -> None:
    answer = GREETING + b'{"event": "STOP"}\n{"return": 7}\n{"event": "RESUME"}\n'
    other = Beside(lambda: serve(listener, answer))
    with Client(path_of(listener), DEADLINE_S) as client:
        assert client.ask("query-it", {"vm": "a"}) == 7
        assert client.events == [{"event": "STOP"}]
    assert other.result() == [{"execute": "qmp_capabilities"}, {"execute": "query-it", "arguments": {"vm": "a"}}]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "the process has ended"),
        (b"nonsense\n", "it does not speak QMP"),
        (b"[]\n", "it does not speak QMP"),
        (b'{"error": {"desc": "no room"}}\n', "no room"),
        (GREETING, "the process has ended"),
    ],
)
def test_an_other_end_that_ends_or_lies_is_lost(listener: socket.socket, answer: bytes, why: str) -> None:
    other = Beside(lambda: serve(listener, answer))
    with pytest.raises(PeerLost, match=why), Client(path_of(listener), DEADLINE_S) as client:
        client.ask("query-it")
    other.result()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Those that follow are beyond what select(2) takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    held = [os.dup(2) for _ in range(1024)]
    yield
    for fd in held:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_events_are_taken_as_they_come_by_a_process_with_many_files(
    listener: socket.socket, many_descriptors: None
) -> None:
    other = Beside(lambda: listener.accept()[0])
    listener.settimeout(DEADLINE_S)
    answered = Beside(lambda: other.result().sendall(GREETING))
    with Client(path_of(listener), DEADLINE_S) as client, other.result() as sock:
        answered.result()
        assert client.take_events() == []
        sock.sendall(b'{"event": "STOP"}\n')
        until(lambda: client.take_events() == [{"event": "STOP"}], "the event comes")


def test_an_error_is_an_error_and_silence_ends_at_the_deadline(listener: socket.socket) -> None:
    other = Beside(lambda: serve(listener, GREETING + b'{"error": {"class": "GenericError", "desc": "no"}}\n'))
    with Client(path_of(listener), DEADLINE_S) as client, pytest.raises(QmpError, match="no"):
        client.ask("query-it")
    other.result()
    with pytest.raises(PeerLost, match="timed out"):  # nobody accepts
        Client(path_of(listener), 0.01)
