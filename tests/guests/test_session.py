"""A session, where its steps could meet those of others."""

import pytest

from memfsd.uapi.units import Ino
from tests.support.both_sides import LocalStore
from tests.support.wire import Wire


def test_a_file_that_goes_while_it_is_being_paired_leaves_nothing_behind(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the token and the pairing the last handle is closed: the name was gone already."""
    file = store.create("file", 8)
    window_of = store.backing.window

    def window_after_the_end(ino: Ino) -> int:
        store.unlink("file")
        with store.service.lock:
            effects = store.service.forget(ino, file.lookups)
        store.performer.perform(effects)
        return window_of(ino)

    monkeypatch.setattr(store.backing, "window", window_after_the_end)
    with Wire(store) as wire:
        wire.hello()
        assert wire.pair("file", store.token("file")) == "ESTALE"
    assert store.backing.window_count() == 0
    assert store.brackets.peers == {}
    assert store.service.inodes.find(file.ino) is None
