"""The use cases of names: each takes the lock itself, and says with a value what it made."""

import stat

from memfsd.store.attributes import Attributes
from tests.support.core_store import ME, NO_LEAKS, CoreStore, refused

ROOT = 1


def test_names_come_and_go(store: CoreStore) -> None:
    names = store.store.names
    made = [
        names.mknod(ROOT, b"file", stat.S_IFREG | 0o644, 0, ME),
        names.mkdir(ROOT, b"dir", 0o755, ME),
        names.symlink(ROOT, b"link", b"target", ME),
    ]
    assert names.readlink(made[2].ino) == b"target"
    assert names.link(made[0].ino, ROOT, b"other", ME.uid).nlink == 2
    assert names.lookup(ROOT, b"other").ino == made[0].ino
    names.rename(ROOT, b"other", made[1].ino, b"inside", 0, ME).run()
    with refused("ENOTEMPTY"):
        names.rmdir(ROOT, b"dir")
    names.unlink(made[1].ino, b"inside").run()
    names.rmdir(ROOT, b"dir").run()
    names.unlink(ROOT, b"file").run()
    names.unlink(ROOT, b"link").run()
    for shown in made:
        names.forget(shown.ino, 9).run()
    assert store.leaks() == NO_LEAKS


def test_a_directory_is_read_until_there_is_no_more_room_and_counts_what_was_taken(store: CoreStore) -> None:
    names = store.store.names
    files = [store.make(f"file{number}") for number in range(4)]
    handle = names.opendir(ROOT, ME.uid)
    taken: list[bytes] = []

    def reply(name: bytes, shown: Attributes, next_offset: int) -> bool:
        assert next_offset == len(taken) + 1
        if len(taken) == 4:
            return False
        taken.append(name)
        return True

    before = [file.lookups for file in files]
    names.readdir(handle, 0, reply)
    assert taken == [b".", b"..", b"file0", b"file1"]
    assert [file.lookups - was for file, was in zip(files, before, strict=True)] == [1, 1, 0, 0]
    names.releasedir(handle).run()
