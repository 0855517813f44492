"""Who gets a connection: places are bounded, for all and for each user."""

import contextlib
import errno
import logging
import os
import resource
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

import memfsd.peers.server
import memfsd.peers.session
from memfsd.common.sockets import Credentials
from memfsd.uapi import messages as m
from memfsd.uapi.errors import Refused
from memfsd.uapi.framing import NOT_LET_IN, decode_failure, decode_header, encode_request
from memfsd.uapi.limits import GREETING_DEADLINE_S, MAX_PACKET_BYTES
from memfsd.uapi.messages import Kind
from tests.support.both_sides import LocalStore, opened_store, page
from tests.support.threads import DEADLINE_S, until
from tests.support.wire import Wire


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Who connects next: the last entry."""
    now = [1000]
    monkeypatch.setattr(memfsd.peers.server, "peer_of", lambda _: Credentials(os.getpid(), now[-1], 0))
    monkeypatch.setattr(memfsd.peers.server, "MAX_UNPAIRED_PER_UID", 6)
    monkeypatch.setattr(memfsd.peers.server, "MAX_CONNECTIONS_PER_UID", 5)
    monkeypatch.setattr(memfsd.peers.server, "MAX_CONNECTIONS", 11)
    monkeypatch.setattr(memfsd.peers.server, "RESERVED_CONNECTIONS", 2)
    return now


def observers(store: LocalStore, count: int) -> list[Wire]:
    """Connections that are no longer half open."""
    made = []
    for _ in range(count):
        wire = Wire(store)
        assert isinstance(wire.hello(role=m.Role.OBSERVER), m.HelloReply)
        made.append(wire)
    return made


def refusal(store: LocalStore) -> str:
    """Why one more is not let in."""
    with Wire(store) as wire:
        packet = wire.down.recv(MAX_PACKET_BYTES)
        assert wire.ended()
    header = decode_header(packet)
    assert (header.id, header.kind, header.errno) == (NOT_LET_IN, Kind.HELLO, errno.EUSERS)
    return decode_failure(packet).reason


def close(store: LocalStore, wires: list[Wire]) -> None:
    for wire in wires:
        wire.close()
    until(lambda: store.server.session_count() == 0, "all sessions end")


def test_unpaired_connections_of_a_user_are_few_and_those_of_another_are_his(
    store: LocalStore, users: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Observers among them: two users with 512 each that said PING once locked out root's memfs check."""
    monkeypatch.setattr(memfsd.peers.server, "MAX_UNPAIRED_PER_UID", 3)
    wires = [Wire(store), *observers(store, 2)]
    until(lambda: store.server.session_count() == 3, "they are let in")
    assert "3 have not paired yet" in refusal(store)
    users.append(2000)
    wires += observers(store, 1)
    close(store, wires)


def test_a_vm_that_has_paired_makes_room_for_another(
    store: LocalStore, users: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memfsd.peers.server, "MAX_UNPAIRED_PER_UID", 1)
    store.create("file", 4)
    with Wire(store) as wire:
        wire.paired("file", 4)
        close_me = observers(store, 1)
        wire.ask(Kind.BYE)
    close(store, close_me)


def test_a_user_can_not_take_all_places_and_all_users_not_those_of_root(store: LocalStore, users: list[int]) -> None:
    wires = observers(store, 5)
    assert "5 of a user are open" in refusal(store)
    users.append(2000)
    wires += observers(store, 4)
    assert "9 are open" in refusal(store), "but for two"
    users.append(0)
    wires += observers(store, 2)
    assert "11 are open" in refusal(store)
    close(store, wires)


def test_an_observer_that_only_says_ping_is_ended(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """PING keeps no place; a question does, until it is old."""
    clock = [100.0]
    monkeypatch.setattr(memfsd.peers.session, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with Wire(store) as pinging, Wire(store) as asking:
        pinging.hello(role=m.Role.OBSERVER)
        asking.hello(role=m.Role.OBSERVER)
        clock[0] += GREETING_DEADLINE_S - 1
        assert pinging.ask(Kind.PING) == m.Empty()
        assert isinstance(asking.ask(Kind.LIST), m.ListReply)
        clock[0] += 2
        pinging.down.send(encode_request(9, Kind.PING, m.Empty()))
        assert pinging.ended()
        assert isinstance(asking.ask(Kind.LIST), m.ListReply)
        clock[0] += GREETING_DEADLINE_S + 1
        asking.down.send(encode_request(9, Kind.LIST, m.Empty()))
        assert asking.ended()


def test_a_store_without_descriptors_says_so(store: LocalStore, users: list[int]) -> None:
    """It was 'HELLO: Broken pipe', or silence until one was free."""
    store.create("file", 4)
    files = [os.open("/dev/null", os.O_RDONLY)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    down = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    down.settimeout(DEADLINE_S)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, hard))
        with contextlib.suppress(OSError):
            while True:
                files.append(os.dup(files[0]))
        down.connect(store.socket_path)
        packet = down.recv(MAX_PACKET_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in files:
            os.close(fd)
        down.close()
    assert decode_header(packet).errno == errno.EMFILE
    assert "Too many open files" in decode_failure(packet).reason
    with Wire(store) as wire:
        assert isinstance(wire.hello(), m.HelloReply)


def test_kvmsim_says_why_it_was_not_let_in(
    store: LocalStore, users: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was 'the store is gone'."""
    monkeypatch.setattr(memfsd.peers.server, "MAX_CONNECTIONS_PER_UID", 0)
    store.create("file", 4)
    local = store.vm()
    with pytest.raises(Refused, match="0 of a user are open: end some, or try again later") as refused:
        local.private_slot(0, 0, page(4), "file")
    assert refused.value.errno == errno.EUSERS


def test_a_flood_is_one_line_in_the_log(
    store: LocalStore, users: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memfsd.peers.server, "MAX_UNPAIRED_PER_UID", 3)
    wires = [Wire(store) for _ in range(3)]
    until(lambda: store.server.session_count() == 3, "they are let in")
    with caplog.at_level(logging.WARNING, "memfsd.peers"):
        for _ in range(20):
            assert refusal(store)
    assert [record.message for record in caplog.records] == [
        "a connection of uid 1000 was refused: 3 have not paired yet"
    ]
    close(store, wires)


def test_a_server_that_has_stopped_holds_no_descriptor(tmp_path: Path) -> None:
    with opened_store(tmp_path, 16) as store, Wire(store) as wire:
        wire.hello(role=m.Role.OBSERVER)
        stop_pipe = os.readlink(f"/proc/self/fd/{store.server._stop_read}")
        assert links().count(stop_pipe) == 2
        store.unmount()
        assert stop_pipe not in links()


def links() -> list[str]:
    """What this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found
