"""Who gets a connection: places are bounded, for all and for each user."""

import logging
import os

import pytest

import memfsd.guests.server
from memfsd.uapi import messages as m
from memfsd.uapi.sockets import Credentials
from tests.support.both_sides import LocalStore
from tests.support.threads import until
from tests.support.wire import Wire


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Who connects next: the last entry."""
    now = [1000]
    monkeypatch.setattr(memfsd.guests.server, "peer_of", lambda _: Credentials(os.getpid(), now[-1], 0))
    monkeypatch.setattr(memfsd.guests.server, "MAX_HALF_OPEN_PER_UID", 3)
    monkeypatch.setattr(memfsd.guests.server, "MAX_CONNECTIONS_PER_UID", 5)
    monkeypatch.setattr(memfsd.guests.server, "MAX_CONNECTIONS", 9)
    return now


def observers(store: LocalStore, count: int) -> list[Wire]:
    """Connections that are no longer half open."""
    made = []
    for _ in range(count):
        wire = Wire(store)
        assert isinstance(wire.hello(role=m.Role.OBSERVER), m.HelloReply)
        made.append(wire)
    return made


def is_refused(store: LocalStore) -> bool:
    with Wire(store) as wire:
        return wire.ended()


def close(store: LocalStore, wires: list[Wire]) -> None:
    for wire in wires:
        wire.close()
    until(lambda: store.server.session_count() == 0, "all sessions end")


def test_half_open_connections_of_a_user_are_few_and_those_of_another_are_his(
    store: LocalStore, users: list[int]
) -> None:
    wires = [Wire(store) for _ in range(3)]
    until(lambda: store.server.session_count() == 3, "they are let in")
    assert is_refused(store)
    users.append(2000)
    wires += observers(store, 1)
    users.append(1000)
    assert isinstance(wires[0].hello(role=m.Role.OBSERVER), m.HelloReply)
    wires += observers(store, 1)
    close(store, wires)


def test_root_has_no_more_half_open_ones_but_all_places(store: LocalStore, users: list[int]) -> None:
    users.append(0)
    wires = observers(store, 9)
    assert is_refused(store)
    close(store, wires)


def test_a_user_can_not_take_all_places(store: LocalStore, users: list[int]) -> None:
    wires = observers(store, 5)
    assert is_refused(store)
    users.append(2000)
    wires += observers(store, 4)
    assert is_refused(store), "these are all there are"
    close(store, wires)


def test_a_flood_is_one_line_in_the_log(store: LocalStore, users: list[int], caplog: pytest.LogCaptureFixture) -> None:
    wires = [Wire(store) for _ in range(3)]
    until(lambda: store.server.session_count() == 3, "they are let in")
    with caplog.at_level(logging.WARNING, "memfsd.guests"):
        for _ in range(20):
            assert is_refused(store)
    assert [record.message for record in caplog.records] == [
        "a connection of uid 1000 was refused: 3 have not paired yet"
    ]
    close(store, wires)
