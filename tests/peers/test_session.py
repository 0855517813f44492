"""A session, where its steps could meet those of others."""

import os

import pytest

from memfsd.uapi import messages as m
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import Ino
from tests.support.both_sides import LocalStore
from tests.support.threads import until
from tests.support.wire import Wire, settled


def test_a_file_that_goes_while_it_is_being_paired_leaves_nothing_behind(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the token and the pairing the last handle is closed: the name was gone already."""
    file = store.create("file", 8)
    window_of = store.windows.make_window

    def window_after_the_end(ino: Ino) -> int:
        store.unlink("file")
        store.store.names.forget(ino, file.lookups).run()
        return window_of(ino)

    monkeypatch.setattr(store.windows, "make_window", window_after_the_end)
    with Wire(store) as wire:
        wire.hello(store.token("file"))
        assert wire.pair() == "ESTALE"
    assert store.windows.window_count() == 0
    assert store.invalidator.peers == {}
    assert store.service.inodes.find(file.ino) is None


def test_a_pair_that_is_refused_late_leaves_no_window(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another VM pairs, and ends, between the look at the file and the pairing: its window went with it."""
    store.create("file", 8)
    window_of = store.windows.make_window
    fds = len(os.listdir("/proc/self/fd"))

    def window_after_another_pairs(ino: Ino) -> int:
        monkeypatch.setattr(store.windows, "make_window", window_of)
        with Wire(store) as first:
            first.paired("file", 8)
            first.ask(Kind.BYE)
        until(lambda: store.windows.window_count() == 0, "the first VM has ended")
        return window_of(ino)

    monkeypatch.setattr(store.windows, "make_window", window_after_another_pairs)
    with Wire(store) as wire:
        wire.hello(store.token("file"))
        assert wire.pair() == "EPERM"
    settled(store)
    assert store.windows.window_count() == 0
    assert len(os.listdir("/proc/self/fd")) <= fds
    assert store.findings() == []


def test_a_window_that_nobody_needs_is_a_finding(store: LocalStore) -> None:
    file = store.create("file", 8)
    store.windows.adopt_window(file.ino, store.windows.make_window(file.ino))
    assert store.findings() == [("R6", f"window {file.ino} is held, and no VM may reach frames through it")]
    store.windows.drop_window(file.ino)


def test_a_dump_goes_on_only_where_one_was_begun(store: LocalStore) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    with Wire(store) as wire:
        wire.hello(role=m.Role.OBSERVER)
        assert wire.ask(Kind.KCORE, m.Kcore(5)) == "EINVAL"
        reply, pool = wire.ask_with_fds(Kind.KCORE, m.Kcore(0))
        assert reply.runs[-1][0] + reply.runs[-1][1] == reply.pool_frames
        assert wire.ask(Kind.KCORE, m.Kcore(5)) == "EINVAL"
        again, more = wire.ask_with_fds(Kind.KCORE, m.Kcore(0))
        assert again == reply
        for fd in [*pool, *more]:
            assert os.get_inheritable(fd) is False
            os.close(fd)
    settled(store)
    assert len(os.listdir("/proc/self/fd")) <= fds, "memfsd keeps none of those that it sent"
