"""What inodes, names and attributes take of nr_inodes, and of whose share."""

import stat

import pytest

from memfsd.core.files.inodes import ROOT_INO, Changes, InodeTable
from memfsd.uapi.limits import XATTR_VALUE_MAX
from tests.support.core_store import ME, CoreStore, refused

OTHER = 1001


@pytest.fixture
def store() -> CoreStore:
    return CoreStore(inode_count=64)


def used(store: CoreStore) -> int:
    """Bytes, besides those of the root."""
    table = store.service.inodes
    assert table._shares.used == sum(inode.charge for inode in table)
    return table._shares.used - 1024


def setxattr(store: CoreStore, ino: int, name: str, value: bytes) -> None:
    store.service.setxattr(ino, name.encode(), value, 0, store.tick())


def test_an_inode_and_each_name_after_the_first_take_1024_bytes(store: CoreStore) -> None:
    file = store.make("file")
    store.mkdir("directory")
    assert used(store) == 2048
    store.service.link(file.ino, ROOT_INO, b"second", store.tick())
    store.service.link(file.ino, ROOT_INO, b"third", store.tick())
    assert (used(store), store.service.inodes.free_count) == (4096, 59)
    store.unlink("file")
    store.service.rename(ROOT_INO, b"directory", ROOT_INO, b"moved", 0, store.tick(), ME)
    assert used(store) == 3072
    store.make("new")
    store.perform(store.service.rename(ROOT_INO, b"new", ROOT_INO, b"third", 0, store.tick(), ME))
    assert used(store) == 3072, "one name lost, one inode more"
    store.unlink("second")
    assert used(store) == 3072, "the kernel still knows it"
    store.forget_all()
    assert used(store) == 2048


def test_a_nameless_file_takes_no_more_with_its_first_name(store: CoreStore) -> None:
    file = store.names.create_nameless(ROOT_INO, stat.S_IFREG | 0o644, ME, store.tick())
    store.service.link(file.ino, ROOT_INO, b"first", store.tick())
    assert used(store) == 1024


@pytest.mark.parametrize(("length", "charge"), [(128, 1024), (129, 1024 + 129), (4095, 1024 + 4095)])
def test_a_long_target_of_a_symbolic_link_takes_its_length(store: CoreStore, length: int, charge: int) -> None:
    store.service.symlink(ROOT_INO, b"link", b"t" * length, ME, store.tick())
    assert used(store) == charge
    store.unlink("link")
    store.forget_all()
    assert used(store) == 0


def test_attributes_take_40_bytes_their_names_and_values(store: CoreStore) -> None:
    file = store.make("file")
    setxattr(store, file.ino, "user.a", b"v" * 100)
    assert used(store) == 1024 + 40 + 6 + 100
    setxattr(store, file.ino, "user.a", b"v")
    assert used(store) == 1024 + 40 + 6 + 1
    setxattr(store, file.ino, "user.bb", b"")
    store.service.removexattr(file.ino, b"user.a", store.tick())
    assert used(store) == 1024 + 40 + 7
    store.unlink("file")
    store.forget_all()
    assert used(store) == 0


def test_attributes_of_empty_files_end_with_their_users_half(store: CoreStore) -> None:
    first, second = store.make("first"), store.make("second")
    with refused("ENOSPC", match="uid 1000 has .* of .* inodes in use, of 64"):
        for number in range(64):
            setxattr(store, (first, second)[number % 2].ino, f"user.{number}", b"v" * 1024)
    before = used(store)
    assert 31 * 1024 < before <= 32 * 1024
    with refused("ENOSPC"):
        setxattr(store, first.ino, "user.0", b"v" * 4096)
    assert used(store) == before
    assert first.xattrs[b"user.0"] == b"v" * 1024, "refused, and nothing changed"
    setxattr(store, first.ino, "user.0", b"less")


def test_the_reserve_is_for_root_and_the_owner() -> None:
    store = CoreStore(inode_count=64)
    root = store.service.inodes
    for uid in (1000, 1001):
        with refused("ENOSPC"):
            for _ in range(64):
                root.next_ino(uid)
    assert root.free_count == 8
    for _ in range(8):
        root.next_ino(0)
    with refused("ENOSPC"):
        root.next_ino(0)


def test_who_gets_a_file_gets_all_that_is_charged_for_it(store: CoreStore) -> None:
    file, table = store.make("file"), store.service.inodes
    setxattr(store, file.ino, "user.a", b"v" * 2000)
    store.service.link(file.ino, ROOT_INO, b"second", store.tick())
    charged = file.charge
    store.service.setattr(file.ino, Changes(uid=OTHER), store.tick())
    assert (table._shares.held(ME.uid), table._shares.held(OTHER)) == (0, charged)
    store.unlink("file")
    store.unlink("second")
    store.forget_all()
    assert (table._shares.held(OTHER), used(store)) == (0, 0)


def test_nobody_links_what_another_pays_for(store: CoreStore) -> None:
    """Where the kernel lets them: a file that they may write."""
    file = store.make("file", mode=0o666)
    charged = file.charge
    with refused("EPERM", f"uid {ME.uid}, who is charged"):
        store.service.link(file.ino, ROOT_INO, b"theirs", store.tick(), uid=OTHER)
    assert (file.nlink, file.charge) == (1, charged)
    for name, uid in ((b"mine", ME.uid), (b"roots", 0)):
        store.service.link(file.ino, ROOT_INO, name, store.tick(), uid=uid)
    assert file.nlink == 3


def test_the_largest_attribute_needs_65_inodes() -> None:
    store = CoreStore(inode_count=66, creds=ME)
    file = store.make("file")
    with refused("ENOSPC"):
        setxattr(store, file.ino, "user.a", b"v" * XATTR_VALUE_MAX)
    assert store.service.inodes.free_count == 64


def test_a_table_of_one_inode_holds_the_root() -> None:
    table = InodeTable(1, owner_uid=0)
    assert (table.next_ino(0), table.free_count) == (ROOT_INO, 0)
