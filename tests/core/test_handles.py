"""Open files and directories."""

import errno
import os

import pytest

from memfsd.core import handles
from memfsd.core.handles import HandleTable
from memfsd.core.inodes import ROOT_INO
from memfsd.uapi.errors import Refused
from tests.support.core_store import ME, RDONLY, RDWR, WRONLY, CoreStore, refused


@pytest.mark.parametrize(("flags", "readers", "writers"), [(RDONLY, 1, 0), (WRONLY, 0, 0), (RDWR, 1, 1)])
def test_a_handle_counts_as_what_it_could_map(store: CoreStore, flags: int, readers: int, writers: int) -> None:
    file = store.make("file")
    handle = store.open(file, flags)
    assert (file.opens, file.readers, file.mappable_writers) == (1, readers, writers)
    store.close(handle)
    assert (file.opens, file.readers, file.mappable_writers) == (0, 0, 0)


def test_a_number_is_never_used_twice(store: CoreStore) -> None:
    file = store.make("file")
    first = store.open(file)
    store.close(first)
    assert store.open(file) != first
    with refused("EBADF"):
        store.service.release(first)


def test_a_directory_is_no_file_and_a_file_no_directory(store: CoreStore) -> None:
    file = store.open(store.make("file"))
    directory = store.service.opendir(ROOT_INO)
    with refused("EBADF"):
        store.read(directory, 0, 1)
    with refused("EBADF"):
        list(store.service.entries(file, 0))
    with refused("EBADF"):
        store.service.releasedir(file)
    with refused("EBADF"):
        store.service.release(directory)
    assert len(store.service.handles) == 2


@pytest.fixture
def full(store: CoreStore, monkeypatch: pytest.MonkeyPatch) -> CoreStore:
    """A store with no handle left."""
    monkeypatch.setattr(handles, "MAX_HANDLES", 1)
    store.open(store.make("other"))
    return store


def test_handles_are_limited(full: CoreStore) -> None:
    with refused("ENFILE", match="1 open handles are the limit"):
        full.service.opendir(ROOT_INO)
    with pytest.raises(Refused) as caught:
        HandleTable.check_room(full.service.handles)
    assert caught.value.errno == errno.ENFILE


def test_a_create_without_a_handle_creates_nothing(full: CoreStore) -> None:
    with refused("ENFILE"):
        full.service.create(ROOT_INO, b"new", 0o644, RDWR, ME, full.tick())
    with refused("ENOENT"):
        full.names.lookup(ROOT_INO, b"new")
    assert full.service.counts()["inodes"] == 2


def test_a_truncating_open_without_a_handle_truncates_nothing(
    store: CoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 0, b"kept")
    monkeypatch.setattr(handles, "MAX_HANDLES", 1)
    with refused("ENFILE"):
        store.open(file, RDWR | os.O_TRUNC)
    assert store.read(handle, 0, 10) == b"kept"


def test_reading_a_directory_goes_on_where_it_stopped_whatever_changed(store: CoreStore) -> None:
    for name in "abcd":
        store.make(name)
    handle = store.service.opendir(ROOT_INO)
    listing = list(store.service.entries(handle, 0))
    assert [name for _, name, _ in listing] == [b".", b"..", b"a", b"b", b"c", b"d"]
    store.unlink("c")
    store.make("e")
    after_a = listing[2][0]
    assert [name for _, name, _ in store.service.entries(handle, after_a)] == [b"b", b"d"]
    assert [name for _, name, _ in store.service.entries(handle, 0)] == [b".", b"..", b"a", b"b", b"d", b"e"]


def test_dot_and_dot_dot_are_the_directory_and_its_parent(store: CoreStore) -> None:
    inner = store.mkdir("inner")
    handle = store.service.opendir(inner)
    assert [(name, inode.ino) for _, name, inode in store.service.entries(handle, 0)] == [
        (b".", inner),
        (b"..", ROOT_INO),
    ]
    at_root = store.service.opendir(ROOT_INO)
    assert [inode.ino for _, _, inode in store.service.entries(at_root, 0)][:2] == [ROOT_INO, ROOT_INO]
