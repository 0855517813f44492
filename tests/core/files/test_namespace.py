"""Directories, names and links, as tmpfs has them."""

import os
import stat
from collections.abc import Callable
from functools import partial

import pytest

from memfsd.core.files.inodes import ROOT_INO, Directory
from memfsd.core.files.namespace import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, Creds
from memfsd.core.service import NAMELESS
from memfsd.uapi.limits import LINK_MAX, NAME_MAX, SYMLINK_MAX
from memfsd.uapi.units import Ino
from tests.support.core_store import ME, NO_LEAKS, CoreStore, refused

ROOT = ROOT_INO
LONGEST = "n" * NAME_MAX


def find(store: CoreStore, path: str) -> Ino | None:
    """The inode at a path below the root, or None."""
    at = store.service.inodes.directory(ROOT)
    for name in path.split("/"):
        found = at.entries.get(name.encode()) if isinstance(at, Directory) else None
        if found is None:
            return None
        at = found  # type: ignore[assignment]
    return at.ino


def nlink(store: CoreStore, ino: int) -> int:
    return store.service.inodes.get(ino).nlink


def rename(store: CoreStore, old: str, new: str, flags: int = 0, source: int = ROOT, target: int = ROOT) -> None:
    store.perform(store.service.rename(source, old.encode(), target, new.encode(), flags, store.tick(), ME))


def tree(store: CoreStore) -> dict[int, tuple[int, int, list[tuple[bytes, int]]]]:
    """All that a refusal must leave as it was."""
    return {
        inode.ino: (
            inode.nlink,
            inode.ctime_ns,
            [(name, entry.ino) for name, entry in inode.entries.items()] if isinstance(inode, Directory) else [],
        )
        for inode in store.service.inodes
    }


# -- making


def test_a_new_file_has_mode_without_umask_owner_and_times(store: CoreStore) -> None:
    file = store.names.create(ROOT, b"file", stat.S_IFREG | 0o666, Creds(7, 8, umask=0o027), now_ns=99)
    assert (file.mode, file.uid, file.gid, file.nlink) == (stat.S_IFREG | 0o640, 7, 8, 1)
    assert {file.atime_ns, file.mtime_ns, file.ctime_ns} == {99}
    root = store.service.inodes.get(ROOT)
    assert (root.mtime_ns, root.ctime_ns) == (99, 99)


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
def test_special_files_keep_type_and_device(store: CoreStore, kind: int) -> None:
    node = store.names.create(ROOT, b"node", kind | 0o600, ME, 1, rdev=0x501)
    assert (stat.S_IFMT(node.mode), node.rdev, node.size) == (kind, 0x501, 0)
    with refused("EINVAL"):
        store.service.open(node.ino, os.O_RDWR, 0, 1)


def test_names_are_up_to_255_bytes(store: CoreStore) -> None:
    store.make(LONGEST)
    too_long = (LONGEST + "x").encode()
    calls: list[Callable[[], object]] = [
        lambda: store.names.lookup(ROOT, too_long),
        lambda: store.names.create(ROOT, too_long, stat.S_IFREG, ME, 1),
        lambda: store.names.mkdir(ROOT, too_long, 0o755, ME, 1),
        lambda: store.names.symlink(ROOT, too_long, b"x", ME, 1),
        lambda: store.names.link(store.service.inodes.directory(ROOT).entries[LONGEST.encode()].ino, ROOT, too_long, 1),
        lambda: store.names.rename(ROOT, LONGEST.encode(), ROOT, too_long, 0, 1, ME),
        lambda: store.names.unlink(ROOT, too_long, 1),
    ]
    for call in calls:
        with refused("ENAMETOOLONG"):
            call()


def test_a_name_that_exists_is_not_made_again(store: CoreStore) -> None:
    store.make("taken")
    before = tree(store)
    for name in (b"taken", b".", b".."):
        calls: list[Callable[[], object]] = [
            partial(store.names.create, ROOT, name, stat.S_IFREG, ME, 9),
            partial(store.names.mkdir, ROOT, name, 0o755, ME, 9),
            partial(store.names.symlink, ROOT, name, b"x", ME, 9),
        ]
        for call in calls:
            with refused("EEXIST"):
                call()
    assert tree(store) == before


def test_a_symbolic_link_keeps_its_bytes(store: CoreStore) -> None:
    link = store.service.symlink(ROOT, b"link", b"t" * SYMLINK_MAX, ME, 1)
    assert store.service.readlink(link.ino) == b"t" * SYMLINK_MAX
    assert link.size == SYMLINK_MAX
    with refused("ENAMETOOLONG"):
        store.names.symlink(ROOT, b"longer", b"t" * (SYMLINK_MAX + 1), ME, 1)
    with refused("EINVAL"):
        store.service.readlink(store.make("file").ino)


def test_a_setgid_directory_hands_down_its_group_and_to_directories_the_bit(store: CoreStore) -> None:
    shared = store.mkdir("shared", 0o2775)
    store.service.inodes.get(shared).gid = 50
    file = store.names.create(shared, b"file", stat.S_IFREG | 0o644, ME, 1)
    inner = store.names.mkdir(shared, b"inner", 0o755, ME, 1)
    link = store.names.symlink(shared, b"link", b"x", ME, 1)
    assert {file.gid, inner.gid, link.gid} == {50}
    assert not file.mode & stat.S_ISGID
    assert inner.mode & stat.S_ISGID
    assert store.names.create(ROOT, b"plain", stat.S_IFREG, ME, 1).gid == ME.gid


def test_nothing_is_made_in_what_is_no_directory_or_was_removed(store: CoreStore) -> None:
    file = store.make("file")
    with refused("ENOTDIR"):
        store.make("below", parent=file.ino)
    with refused("ENOTDIR"):
        store.service.lookup(file.ino, b"below")
    gone = store.mkdir("gone")
    handle = store.service.opendir(gone, 0)
    store.service.rmdir(ROOT, b"gone", 1)
    with refused("ENOENT", match="removed"):
        store.make("below", parent=gone)
    with refused("ENOENT", match="removed"):
        rename(store, "file", "moved", target=gone)
    store.service.releasedir(handle)


# -- links


def test_links_are_counted_and_the_data_goes_with_the_last(store: CoreStore) -> None:
    file = store.make("one")
    handle = store.open(file)
    store.write(handle, 0, b"data")
    store.close(handle)
    store.service.link(file.ino, ROOT, b"two", 5)
    assert (file.nlink, file.ctime_ns) == (2, 5)
    store.unlink("one")
    assert file.nlink == 1
    handle = store.open(file)
    store.unlink("two")
    assert store.read(handle, 0, 4) == b"data"
    store.close(handle)
    store.forget_all()
    assert store.leaks() == NO_LEAKS


def test_a_directory_has_one_name_and_a_file_at_most_link_max(store: CoreStore) -> None:
    with refused("EPERM"):
        store.names.link(store.mkdir("dir"), ROOT, b"again", 1)
    file = store.make("file")
    file.nlink = LINK_MAX
    with refused("EMLINK"):
        store.names.link(file.ino, ROOT, b"again", 1)


def test_a_file_without_a_name_gets_none_again(store: CoreStore) -> None:
    file = store.make("file")
    store.open(file)
    store.unlink("file")
    with refused("ENOENT"):
        store.names.link(file.ino, ROOT, b"again", 1)


def test_a_directory_counts_itself_its_name_and_its_directories(store: CoreStore) -> None:
    assert nlink(store, ROOT) == 2
    inner = store.mkdir("inner")
    deep = store.mkdir("deep", parent=inner)
    store.make("file", parent=inner)
    assert (nlink(store, ROOT), nlink(store, inner), nlink(store, deep)) == (3, 3, 2)
    store.service.rmdir(inner, b"deep", 1)
    assert (nlink(store, inner), nlink(store, deep)) == (2, 0)


def test_directories_below_a_directory_are_limited(store: CoreStore) -> None:
    full = store.mkdir("full")
    store.service.inodes.get(full).nlink = LINK_MAX
    store.mkdir("moving")
    before = tree(store)
    with refused("EMLINK"):
        store.mkdir("one more", parent=full)
    with refused("EMLINK"):
        rename(store, "moving", "moved", target=full)
    assert tree(store) == before


def test_unlink_is_for_files_and_rmdir_for_empty_directories(store: CoreStore) -> None:
    store.make("file")
    inner = store.mkdir("inner")
    store.make("below", parent=inner)
    before = tree(store)
    with refused("EISDIR"):
        store.unlink("inner")
    with refused("ENOTDIR"):
        store.service.rmdir(ROOT, b"file", 1)
    with refused("ENOTEMPTY"):
        store.service.rmdir(ROOT, b"inner", 1)
    for call in (lambda: store.unlink("none"), lambda: store.service.rmdir(ROOT, b"none", 1)):
        with refused("ENOENT"):
            call()
    assert tree(store) == before


# -- rename


def test_rename_moves_a_name_and_the_inode_stays(store: CoreStore) -> None:
    file = store.make("old")
    inner = store.mkdir("inner")
    rename(store, "old", "new", target=inner)
    assert find(store, "old") is None
    assert find(store, "inner/new") == file.ino
    assert file.nlink == 1
    assert file.ctime_ns == store.service.inodes.get(ROOT).mtime_ns == store.service.inodes.get(inner).mtime_ns


def test_rename_over_a_file_frees_what_was_there(store: CoreStore) -> None:
    old, new = store.make("old"), store.make("new")
    handle = store.open(old)
    store.write(handle, 0, bytes(3 * 4096))
    store.close(handle)
    rename(store, "new", "old")
    assert find(store, "old") == new.ino
    assert old.nlink == 0
    assert store.pool.free_count == store.pool.frame_count


def test_rename_of_one_name_of_a_file_over_another_does_nothing(store: CoreStore) -> None:
    file = store.make("one")
    store.service.link(file.ino, ROOT, b"two", 1)
    before = tree(store)
    rename(store, "one", "two")
    rename(store, "one", "one")
    assert tree(store) == before


def test_rename_noreplace_refuses_what_exists(store: CoreStore) -> None:
    store.make("one")
    store.make("two")
    before = tree(store)
    with refused("EEXIST"):
        rename(store, "one", "two", RENAME_NOREPLACE)
    with refused("EEXIST"):
        rename(store, "one", "one", RENAME_NOREPLACE)
    assert tree(store) == before
    rename(store, "one", "three", RENAME_NOREPLACE)
    assert find(store, "three") is not None


def test_rename_exchange_swaps_a_file_and_a_directory_across_directories(store: CoreStore) -> None:
    left, right = store.mkdir("left"), store.mkdir("right")
    file = store.make("file", parent=left)
    inner = store.mkdir("inner", parent=right)
    below = store.make("below", parent=inner)
    rename(store, "file", "inner", RENAME_EXCHANGE, left, right)
    assert find(store, "right/inner") == file.ino
    assert find(store, "left/file/below") == below.ino
    assert store.service.inodes.directory(inner).parent == left
    assert (nlink(store, left), nlink(store, right), nlink(store, inner), file.nlink) == (3, 2, 2, 1)


def test_rename_exchange_of_two_directories_keeps_the_counts(store: CoreStore) -> None:
    left, right = store.mkdir("left"), store.mkdir("right")
    a, b = store.mkdir("a", parent=left), store.mkdir("b", parent=right)
    rename(store, "a", "b", RENAME_EXCHANGE, left, right)
    assert (find(store, "left/a"), find(store, "right/b")) == (b, a)
    assert (nlink(store, left), nlink(store, right)) == (3, 3)


def test_rename_exchange_needs_both(store: CoreStore) -> None:
    store.make("one")
    with refused("ENOENT"):
        rename(store, "one", "none", RENAME_EXCHANGE)
    with refused("ENOENT"):
        rename(store, "none", "one", RENAME_EXCHANGE)


@pytest.mark.parametrize("flags", [RENAME_NOREPLACE | RENAME_EXCHANGE, RENAME_WHITEOUT | RENAME_EXCHANGE, 8, 1 << 31])
def test_other_rename_flags_are_einval(store: CoreStore, flags: int) -> None:
    store.make("one")
    with refused("EINVAL"):
        rename(store, "one", "two", flags)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_whiteout_is_left_where_the_name_was(store: CoreStore, replaced: bool) -> None:
    file = store.make("old")
    if replaced:
        store.make("new")
    rename(store, "old", "new", RENAME_WHITEOUT)
    assert store.names.lookup(ROOT, b"new") is file
    whiteout = store.names.lookup(ROOT, b"old")
    assert (whiteout.mode, whiteout.rdev, whiteout.nlink, whiteout.uid) == (stat.S_IFCHR, 0, 1, ME.uid)
    store.make("other")
    with refused("EEXIST"):
        rename(store, "other", "new", RENAME_WHITEOUT | RENAME_NOREPLACE)
    with refused("ENOTEMPTY"):
        directory, full = store.mkdir("d"), store.mkdir("full")
        store.mkdir("inner", parent=full)
        rename(store, "d", "full", RENAME_WHITEOUT)
    assert store.names.lookup(ROOT, b"d") is store.service.inodes.get(directory)


def test_the_names_dot_and_dot_dot_lead_from_any_inode(store: CoreStore) -> None:
    """The kernel looks them up when it opens a file handle whose inode it has forgotten."""
    inner = store.mkdir("inner")
    file = store.make("file")
    assert store.service.lookup(file.ino, b".") is file
    assert store.service.lookup(inner, b".") is store.service.inodes.get(inner)
    assert store.service.lookup(inner, b"..") is store.service.inodes.get(ROOT)
    assert store.service.lookup(ROOT, b"..") is store.service.inodes.get(ROOT)
    with refused("ENOTDIR"):
        store.service.lookup(file.ino, b"..")
    with refused("ESTALE"):
        store.service.lookup(12345, b".")


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE])
def test_a_directory_does_not_move_into_itself(store: CoreStore, flags: int) -> None:
    top = store.mkdir("top")
    middle = store.mkdir("middle", parent=top)
    before = tree(store)
    for target in (top, middle):
        with refused("EINVAL"):
            rename(store, "top", "inside", flags, target=target)
    assert tree(store) == before


def test_a_directory_is_not_exchanged_with_one_that_holds_it(store: CoreStore) -> None:
    top = store.mkdir("top")
    middle = store.mkdir("middle", parent=top)
    store.make("low", parent=middle)
    before = tree(store)
    with refused("EINVAL"):
        rename(store, "low", "top", RENAME_EXCHANGE, source=middle)
    with refused("EINVAL"):
        rename(store, "top", "low", RENAME_EXCHANGE, target=middle)
    with refused("ENOTEMPTY"):
        rename(store, "middle", "top", source=top)
    assert tree(store) == before


def test_a_directory_replaces_an_empty_directory_and_nothing_else(store: CoreStore) -> None:
    moving = store.mkdir("moving")
    file, empty, full = store.make("file"), store.mkdir("empty"), store.mkdir("full")
    store.make("below", parent=full)
    before = tree(store)
    with refused("ENOTDIR"):
        rename(store, "moving", "file")
    with refused("EISDIR"):
        rename(store, "file", "empty")
    with refused("ENOTEMPTY"):
        rename(store, "moving", "full")
    assert tree(store) == before
    assert nlink(store, ROOT) == 5
    rename(store, "moving", "empty")
    assert find(store, "empty") == moving
    assert nlink(store, empty) == 0
    assert nlink(store, ROOT) == 4
    assert file.nlink == 1


def test_a_directory_that_replaces_one_elsewhere_keeps_the_counts(store: CoreStore) -> None:
    left, right = store.mkdir("left"), store.mkdir("right")
    moving = store.mkdir("moving", parent=left)
    store.mkdir("empty", parent=right)
    rename(store, "moving", "empty", source=left, target=right)
    assert (nlink(store, left), nlink(store, right), nlink(store, ROOT)) == (2, 3, 4)
    assert store.service.inodes.directory(moving).parent == right
    assert store.names.lookup(moving, b"..").ino == right


# -- what is left


def test_a_path_is_found_from_the_inode(store: CoreStore) -> None:
    inner = store.mkdir("inner")
    file = store.make("file", parent=inner)
    assert store.names.name_of(file) == b"inner/file"
    store.open(file)
    store.unlink("file", inner)
    assert store.names.name_of(file) == b""


def test_the_size_of_a_directory_is_tmpfss(store: CoreStore) -> None:
    """BOGO_DIRENT_SIZE is 20 bytes an entry, "." and ".." too."""
    root = store.service.inodes.get(ROOT)
    assert root.size == 40
    store.make("file")
    assert root.size == 60


def test_inodes_are_limited_and_a_refused_one_leaves_no_trace() -> None:
    store = CoreStore(inode_count=2, creds=ME)
    file = store.make("last")
    before = tree(store)
    for call in (
        lambda: store.make("more"),
        lambda: store.mkdir("more"),
        lambda: store.names.symlink(ROOT, b"more", b"last", ME, store.tick()),
        lambda: store.names.link(file.ino, ROOT, b"more", store.tick()),
        lambda: store.names.create_nameless(ROOT, stat.S_IFREG, ME, store.tick()),
        lambda: store.names.rename(ROOT, b"last", ROOT, b"more", RENAME_WHITEOUT, store.tick(), ME),
    ):
        with refused("ENOSPC", match="uid 1000 has 2 of 2 inodes in use, of 2 .* larger nr_inodes"):
            call()
    assert tree(store) == before
    store.unlink("last")
    store.forget_all()
    store.make("room again")


# -- open(O_TMPFILE)


def test_a_nameless_file_may_be_given_its_first_name_and_no_second_first_one() -> None:
    store = CoreStore()
    before = tree(store)
    file, handle = store.service.create(ROOT, NAMELESS, 0o644, os.O_RDWR, ME, store.tick())
    assert file.nlink == 0
    assert {ino: seen for ino, seen in tree(store).items() if ino != file.ino} == before
    store.service.link(file.ino, ROOT, b"named", store.tick())
    assert (find(store, "named"), file.nlink) == (file.ino, 1)
    store.unlink("named")
    with refused("ENOENT"):
        store.service.link(file.ino, ROOT, b"again", store.tick())
    store.close(handle)
    store.forget_all()
    assert store.leaks() == NO_LEAKS


def test_a_nameless_file_goes_with_its_handle_and_has_the_group_of_its_directory() -> None:
    store = CoreStore()
    directory = store.mkdir("d", 0o2755)
    store.service.inodes.get(directory).gid = 77
    file, handle = store.service.create(directory, NAMELESS, 0o644, os.O_RDWR, ME, store.tick())
    assert file.gid == 77
    store.write(handle, 0, b"x" * 5000)
    store.close(handle)
    store.perform(store.service.rmdir(ROOT, b"d", store.tick()))
    store.forget_all()
    assert store.leaks() == NO_LEAKS
