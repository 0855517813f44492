"""user.memfsd.* report and control; the rest are kept as tmpfs keeps them."""

import os
import stat

import pytest

from memfsd.core.files.inodes import ROOT_INO, Inode
from memfsd.core.files.xattrs import XATTR_CREATE, XATTR_REPLACE
from memfsd.uapi.limits import XATTR_NAME_MAX, XATTR_TOTAL_MAX, XATTR_VALUE_MAX
from memfsd.uapi.proof import split_token
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE
from tests.support.core_store import ME, CoreStore, refused

P = PAGE_SIZE


def get(store: CoreStore, inode: Inode, name: bytes, populated: int | None = None) -> bytes:
    return store.service.getxattr(inode.ino, name, lambda: b"t" * 16, populated)


def put(store: CoreStore, inode: Inode, name: bytes, value: bytes, flags: int = 0) -> None:
    store.perform(store.service.setxattr(inode.ino, name, value, flags, store.tick()))


# -- what anybody may keep


@pytest.mark.parametrize("name", [b"user.note", b"trusted.note", b"security.note", b"user." + bytes([255, 1])])
def test_what_is_set_is_told_listed_and_removed(store: CoreStore, name: bytes) -> None:
    file = store.make("file")
    before = file.ctime_ns
    put(store, file, name, b"v\0alue")
    assert file.ctime_ns > before
    assert get(store, file, name) == b"v\0alue"
    assert store.service.xattrs.list(file) == [name]
    store.service.removexattr(file.ino, name, store.tick())
    assert store.service.xattrs.list(file) == []
    with refused("ENODATA"):
        get(store, file, name)
    with refused("ENODATA"):
        store.service.removexattr(file.ino, name, store.tick())


def test_create_and_replace(store: CoreStore) -> None:
    file = store.make("file")
    with refused("ENODATA"):
        put(store, file, b"user.note", b"1", XATTR_REPLACE)
    put(store, file, b"user.note", b"1", XATTR_CREATE)
    with refused("EEXIST"):
        put(store, file, b"user.note", b"2", XATTR_CREATE)
    put(store, file, b"user.note", b"3", XATTR_REPLACE)
    assert get(store, file, b"user.note") == b"3"


@pytest.mark.parametrize("name", [b"system.posix_acl_access", b"note", b"users.note", b"."])
def test_other_namespaces_do_not_exist(store: CoreStore, name: bytes) -> None:
    file = store.make("file")
    for call in (
        lambda: put(store, file, name, b""),
        lambda: get(store, file, name),
        lambda: store.service.removexattr(file.ino, name, 1),
    ):
        with refused("EOPNOTSUPP"):
            call()


def test_names_values_and_their_sum_are_limited(store: CoreStore) -> None:
    file = store.make("file")
    longest = b"user." + b"n" * (XATTR_NAME_MAX - 5)
    put(store, file, longest, b"v" * XATTR_VALUE_MAX)
    with refused("ERANGE"):
        put(store, file, longest + b"n", b"")
    with refused("E2BIG"):
        put(store, file, b"user.big", b"v" * (XATTR_VALUE_MAX + 1))
    with refused("ENOSPC"):
        for number in range(XATTR_TOTAL_MAX):
            put(store, file, b"user.%d" % number, b"v" * XATTR_VALUE_MAX)
    assert sum(40 + len(n) + len(v) for n, v in file.xattrs.items()) <= XATTR_TOTAL_MAX
    put(store, file, longest, b"smaller")


# -- what the store tells


def test_an_empty_ordinary_file_tells_its_facts(store: CoreStore) -> None:
    file = store.make("file")
    assert {
        name: store.getfattr(file, name) for name in ("seals", "page_size", "numa", "owner", "frames", "socket")
    } == {
        "seals": "",
        "page_size": "4096",
        "numa": "default",
        "owner": "none",
        "frames": "shared=0",
        "socket": "/run/s",
    }


def test_only_guest_memory_lists_ours(store: CoreStore) -> None:
    """Else `cp -a` would try to copy them."""
    file = store.make("file")
    assert store.service.xattrs.list(file) == []
    store.service.add_seals(file.ino, Seal.WRITE, store.tick())
    assert store.service.xattrs.list(file) == []
    file = store.make("guest")
    store.seal(file)
    assert store.service.xattrs.list(file) == [
        b"user.memfsd." + name for name in (b"seals", b"page_size", b"numa", b"owner", b"frames", b"socket")
    ]
    root = store.service.inodes.get(ROOT_INO)
    assert store.service.xattrs.list(root) == []
    assert b"user.memfsd.token" not in store.service.xattrs.list(file)


def test_what_is_listed_can_be_read(store: CoreStore) -> None:
    file = store.guest_file("file", 4)
    for name in store.service.xattrs.list(file):
        assert isinstance(get(store, file, name), bytes)


def test_owner_tells_the_vm_and_what_became_of_it(store: CoreStore) -> None:
    file = store.guest_file("file", 4)
    assert store.getfattr(file, "owner") == "none"
    store.pair(file, "vm7")
    assert store.getfattr(file, "owner") == "vm=vm7 pid=4242 uid=1000 state=paired"
    store.gmem.disconnect(file)
    assert store.getfattr(file, "owner").endswith("state=cut")
    store.release_guest(file)
    assert store.getfattr(file, "owner").endswith("state=ended")


def test_frames_tell_touched_untouched_and_quarantined(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    store.fault(file, 0, 8)
    store.fault(file, 1, 8)
    store.fault(file, 3, 8)
    assert guest.pending == 4
    assert get(store, file, b"user.memfsd.frames") == b"private=3 pending=4 quarantined=0 punched=0 leaked=0"
    assert (
        get(store, file, b"user.memfsd.frames", populated=6)
        == b"private=6 pending=1 quarantined=0 punched=0 leaked=0 populated=6"
    )
    assert (
        get(store, file, b"user.memfsd.frames", populated=7)
        == b"private=7 pending=0 quarantined=0 punched=0 leaked=0 populated=7"
    )
    store.gmem.disconnect(file)
    assert (
        get(store, file, b"user.memfsd.frames", populated=7)
        == b"private=0 pending=0 quarantined=7 punched=0 leaked=0 populated=7"
    )


def test_the_root_tells_the_pool_and_nothing_else_does(store: CoreStore) -> None:
    file = store.make("file")
    store.write(store.open(file), 0, b"x" * 3 * P)
    line = get(store, store.service.inodes.get(ROOT_INO), b"user.memfsd.pool").decode()
    fields = dict(word.split("=") for word in line.split())
    assert fields["frames"] == "64"
    assert (fields["free"], fields["shared"], fields["node_free"]) == ("61", "3", "61")
    with refused("ENODATA"):
        get(store, file, b"user.memfsd.pool")


def test_a_token_is_new_each_time_and_names_its_file(store: CoreStore) -> None:
    file, other = store.guest_file("file"), store.guest_file("other")
    tokens = [
        split_token(store.service.getxattr(file.ino, b"user.memfsd.token", lambda: os.urandom(16))) for _ in range(3)
    ]
    assert len({token.id for token in tokens}) == len({token.key for token in tokens}) == 3
    for token in tokens:
        assert store.service.file_by_token(token.id) == (file, token), "the key is found again, none is kept"
    for wrong in (b"", tokens[0].id[:-1], b"?" * 16, other.ino.to_bytes(8, "little") + tokens[0].id[8:]):
        with refused("EACCES"):
            store.service.file_by_token(wrong)


def test_only_sealed_files_give_tokens(store: CoreStore) -> None:
    for inode in (store.make("file"), store.service.inodes.get(ROOT_INO)):
        with refused("ENODATA"):
            get(store, inode, b"user.memfsd.token")


# -- what the store is told


def test_the_page_size_is_chosen_while_a_sealed_file_is_empty(store: CoreStore) -> None:
    file = store.guest_file("file")
    store.setfattr(file, "page_size", "2M")
    assert store.getfattr(file, "page_size") == str(2 << 20)
    store.setfattr(file, "page_size", "4096")
    store.resize(file, 4 * P)
    with refused("EBUSY"):
        store.setfattr(file, "page_size", "2M")
    assert store.getfattr(file, "page_size") == "4096"


@pytest.mark.parametrize("value", ["", "8K", "lots", "0", "-4096", "4K "])
def test_a_page_size_that_does_not_exist_is_einval(store: CoreStore, value: str) -> None:
    with refused("EINVAL"):
        store.setfattr(store.guest_file("file"), "page_size", value)


def test_large_pages_are_for_sealed_files(store: CoreStore) -> None:
    with refused("EINVAL"):
        store.setfattr(store.make("file"), "page_size", "2M")


def test_numa_prefers_a_node() -> None:
    store = CoreStore(pages=64, nodes=2)
    file = store.make("file")
    store.setfattr(file, "numa", "1")
    store.write(store.open(file), 0, b"x" * 4 * P)
    assert store.pool.node_free_counts() == [32, 28]
    assert store.getfattr(file, "numa") == "preferred:1"
    store.setfattr(file, "numa", "any")
    assert (store.getfattr(file, "numa"), file.policies) == ("default", None)
    for value in ("2", "-1", "", "all", "\u0661", "1.0", "bind:2", "bind", "bind:0@1+4096", "99999999999999999999"):
        with refused("EINVAL"):
            store.setfattr(file, "numa", value)
    assert store.getfattr(file, "numa") == "default"


def test_numa_takes_what_it_shows() -> None:
    store = CoreStore(pages=64, nodes=2)
    file, other = store.make("file"), store.make("other")
    store.setfattr(file, "numa", "interleave:0-1@0+0x4000 bind:1@0x2000+1")
    shown = store.getfattr(file, "numa")
    assert shown == "interleave:0-1@0x0+0x2000 bind:1@0x2000+0x1000 interleave:0-1@0x3000+0x1000"
    store.setfattr(other, "numa", shown)
    assert store.getfattr(other, "numa") == shown


def test_numastat_is_the_mounts() -> None:
    store = CoreStore(pages=64, nodes=2)
    file = store.make("file")
    store.setfattr(file, "numa", "bind:1")
    store.write(store.open(file), 0, b"x" * 4 * P)
    root = store.store.files.getxattr(1, b"user.memfsd.numastat").decode().splitlines()
    assert root[1].startswith("node=1 total=32 free=28 numa_hit=4 numa_miss=0")
    assert root[2] == "distances=10:20/20:10"
    with refused("ENODATA"):
        store.getfattr(file, "numastat")


@pytest.mark.parametrize("name", ["owner", "frames", "socket", "pool", "counts", "numastat", "token"])
def test_facts_can_not_be_set(store: CoreStore, name: str) -> None:
    with refused("EPERM"):
        store.setfattr(store.make("file"), name, "1")


def test_an_attribute_of_ours_that_does_not_exist_is_refused(store: CoreStore) -> None:
    file = store.make("file")
    with refused("EOPNOTSUPP"):
        store.setfattr(file, "color", "red")
    with refused("ENODATA"):
        store.getfattr(file, "color")


@pytest.mark.parametrize("name", [b"seals", b"page_size", b"token", b"color"])
def test_ours_can_not_be_removed(store: CoreStore, name: bytes) -> None:
    with refused("EPERM"):
        store.service.removexattr(store.guest_file("file").ino, b"user.memfsd." + name, 1)


def test_directories_and_special_files_have_none_of_the_files_facts(store: CoreStore) -> None:
    fifo = store.service.mknod(ROOT_INO, b"fifo", stat.S_IFIFO | 0o600, 0, ME, 1)
    for inode in (fifo, store.service.inodes.get(ROOT_INO)):
        with refused("ENODATA"):
            get(store, inode, b"user.memfsd.frames")
        with refused("EPERM"):
            put(store, inode, b"user.memfsd.page_size", b"4K")
