"""Open files and directories."""

import os
from collections.abc import Callable, Iterator

import pytest

from memfsd.core.files.handles import HandleTable, handle_shares, listed_shares
from memfsd.core.files.inodes import ROOT_INO, Inode
from memfsd.core.files.shares import Shares
from tests.support.core_store import ME, RDONLY, RDWR, WRONLY, CoreStore, refused


def listed(store: CoreStore, handle: int) -> Iterator[tuple[int, bytes, Inode]]:
    names = store.service.listing(handle)
    store.service.keep_listing(handle, names, sum(map(len, names)))
    return store.service.entries(handle, 0)


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
    directory = store.service.opendir(ROOT_INO, 0)
    with refused("EBADF"):
        store.read(directory, 0, 1)
    with refused("EBADF"):
        list(listed(store, file))
    with refused("EBADF"):
        store.service.releasedir(file)
    with refused("EBADF"):
        store.service.release(directory)
    assert len(store.service.handles) == 2


@pytest.fixture
def full(store: CoreStore) -> CoreStore:
    """A store with no handle left."""
    store.service.handles = HandleTable(Shares(1, 1, 0, owner_uid=0), listed_shares(0))
    store.open(store.make("other"))
    return store


def test_handles_are_limited(full: CoreStore) -> None:
    with refused("ENFILE", match="uid 0 has 0 of 1 open handles"):
        full.service.opendir(ROOT_INO, 0)


def test_one_user_can_not_take_the_handles_of_others_nor_all_users_those_of_root(store: CoreStore) -> None:
    store.service.handles = HandleTable(Shares(12, 5, 2, owner_uid=7), listed_shares(0))
    file = store.make("file")
    mine = [store.open(file, uid=1001) for _ in range(4)]
    mine.append(store.service.opendir(ROOT_INO, 1001))
    calls: list[Callable[[], object]] = [
        lambda: store.open(file, uid=1001),
        lambda: store.service.opendir(ROOT_INO, 1001),
    ]
    for call in calls:
        with refused("ENFILE", match="uid 1001 has 5 of 5"):
            call()
    others = [store.open(file, uid=1002) for _ in range(5)]
    with refused("ENFILE", match="uid 1003 has 0 of 10"):
        store.open(file, uid=1003)
    store.open(file, uid=7)
    root = store.open(file, uid=0)
    with refused("ENFILE"):
        store.open(file, uid=0)
    for handle in (mine[0], others[0], root):
        store.close(handle)
    store.open(file, uid=1001)
    store.perform(store.service.releasedir(mine[-1]))
    store.service.opendir(ROOT_INO, 1001)


def test_a_create_without_a_handle_creates_nothing(full: CoreStore) -> None:
    with refused("ENFILE"):
        full.service.create(ROOT_INO, b"new", 0o644, RDWR, ME, full.tick())
    with refused("ENOENT"):
        full.names.lookup(ROOT_INO, b"new")
    assert full.service.counts()["inodes"] == 2


def test_a_truncating_open_without_a_handle_truncates_nothing(store: CoreStore) -> None:
    store.service.handles = HandleTable(Shares(1, 1, 0, owner_uid=0), listed_shares(0))
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 0, b"kept")
    with refused("ENFILE"):
        store.open(file, RDWR | os.O_TRUNC)
    assert store.read(handle, 0, 10) == b"kept"


def test_reading_a_directory_goes_on_where_it_stopped_whatever_changed(store: CoreStore) -> None:
    for name in "abcd":
        store.make(name)
    handle = store.service.opendir(ROOT_INO, 0)
    listing = list(listed(store, handle))
    assert [name for _, name, _ in listing] == [b".", b"..", b"a", b"b", b"c", b"d"]
    store.unlink("c")
    store.make("e")
    after_a = listing[2][0]
    assert [name for _, name, _ in store.service.entries(handle, after_a)] == [b"b", b"d"]
    assert [name for _, name, _ in listed(store, handle)] == [b".", b"..", b"a", b"b", b"d", b"e"]


def test_dot_and_dot_dot_are_the_directory_and_its_parent(store: CoreStore) -> None:
    inner = store.mkdir("inner")
    handle = store.service.opendir(inner, 0)
    assert [(name, inode.ino) for _, name, inode in listed(store, handle)] == [
        (b".", inner),
        (b"..", ROOT_INO),
    ]
    at_root = store.service.opendir(ROOT_INO, 0)
    assert [inode.ino for _, _, inode in listed(store, at_root)][:2] == [ROOT_INO, ROOT_INO]


def test_names_that_open_directories_keep_are_limited(store: CoreStore) -> None:
    """A directory of 4 million names is opened once, and not 131,072 times."""
    one = 4 * 41 + len(b"...filemore")
    store.service.handles = HandleTable(handle_shares(0), Shares(5 * one, 2 * one, one, owner_uid=7))
    store.make("file")
    store.make("more")
    handles = [store.service.opendir(ROOT_INO, 1001) for _ in range(3)]
    for handle in handles[:2]:
        assert len(list(listed(store, handle))) == 4
        assert len(list(listed(store, handle))) == 4, "reading again costs nothing more"
    with refused("ENOMEM", match=f"uid 1001 keeps {2 * one} bytes of names"):
        list(listed(store, handles[2]))
    store.service.releasedir(handles[0])
    assert len(list(listed(store, handles[2]))) == 4
    others = [store.service.opendir(ROOT_INO, 1002) for _ in range(2)]
    for handle in others:
        assert len(list(listed(store, handle))) == 4
    mine = store.service.opendir(ROOT_INO, 1003)
    with refused("ENOMEM"):
        list(listed(store, mine))
    assert len(list(listed(store, store.service.opendir(ROOT_INO, 7)))) == 4
