"""The service as a whole: lookups, times of attributes, and that nothing leaks."""

import os
import random
import stat
from collections.abc import Callable

import pytest

from memfsd.core.files.inodes import ROOT_INO, Changes, Directory, Regular
from memfsd.core.gmem import guest_of
from memfsd.core.private import strategies
from memfsd.uapi.errors import Refused
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE, Pgoff
from tests.support.core_store import KEEP_SIZE, ME, NO_LEAKS, PUNCH, RDONLY, RDWR, WRONLY, CoreStore, refused

P = PAGE_SIZE


# -- lookups


def test_an_inode_stays_while_the_kernel_knows_it(store: CoreStore) -> None:
    file = store.make("file")
    store.service.lookup(ROOT_INO, b"file")
    store.unlink("file")
    store.perform(store.service.forget(file.ino, 1))
    assert store.service.inodes.find(file.ino) is file
    store.perform(store.service.forget(file.ino, 1))
    assert store.service.inodes.find(file.ino) is None
    with refused("ESTALE"):
        store.open(file)
    assert store.service.forget(file.ino, 1) == []


def test_data_goes_with_the_last_name_whatever_the_kernel_remembers(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 0, b"x" * 4 * P)
    store.close(handle)
    store.unlink("file")
    assert file.lookups == 1
    assert store.pool.free_count == 64


def test_the_root_stays_for_ever(store: CoreStore) -> None:
    store.perform(store.service.forget(ROOT_INO, 1 << 40))
    assert store.service.inodes.find(ROOT_INO) is not None


def test_numbers_are_never_used_twice(store: CoreStore) -> None:
    seen = set()
    for _ in range(5):
        file = store.make("file")
        assert file.ino not in seen
        seen.add(file.ino)
        store.unlink("file")
        store.forget_all()


# -- attributes


def test_setattr_changes_what_it_names_and_the_ctime(store: CoreStore) -> None:
    file = store.make("file", 0o644)
    before = file.uid, file.atime_ns, file.mtime_ns
    store.service.setattr(file.ino, Changes(mode=stat.S_IFDIR | 0o4711), 77)
    assert file.mode == stat.S_IFREG | 0o4711
    assert (file.uid, file.atime_ns, file.mtime_ns) == before
    assert file.ctime_ns == 77
    store.service.setattr(file.ino, Changes(ctime_ns=5), 88)
    assert file.ctime_ns == 5


@pytest.mark.parametrize(
    ("mode", "left"),
    [(0o4755, 0o755), (0o2755, 0o755), (0o2745, 0o2745), (0o6777, 0o777), (0o1777, 0o1777), (0o644, 0o644)],
)
def test_a_write_takes_setuid_away_and_setgid_where_the_group_may_execute(
    store: CoreStore, mode: int, left: int
) -> None:
    file = store.make("file", mode)
    assert store.service.clear_setid(file.ino) is (mode != left)
    assert stat.S_IMODE(file.mode) == left


def test_a_directory_keeps_its_setgid(store: CoreStore) -> None:
    inner = store.mkdir("inner", 0o2775)
    assert store.service.clear_setid(inner) is False
    assert store.service.inodes.get(inner).mode & stat.S_ISGID


def test_only_regular_files_are_opened_read_and_resized(store: CoreStore) -> None:
    for call in (
        lambda: store.service.open(ROOT_INO, RDWR, 0, 1),
        lambda: store.service.resize(ROOT_INO, 0, 1),
        lambda: store.service.fallocate(ROOT_INO, 0, 0, 1, 1),
        lambda: store.service.seek(ROOT_INO, 0, os.SEEK_DATA),
    ):
        with refused("EISDIR"):
            call()


# -- nothing leaks


class Chaos:
    """Random operations on names, files and VMs, drawn from a seed. What is refused must change nothing."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.store = CoreStore(pages=96, resize_any=bool(seed % 2))
        self.handles: list[int] = []
        self.directory_handles: list[int] = []
        self.refusals = 0
        self.gfn = 0

    def directory(self) -> Directory:
        live = [i for i in self.store.service.inodes if isinstance(i, Directory) and i.nlink]
        return self.rng.choice(live)

    def file(self) -> Regular:
        files = [i for i in self.store.service.inodes if isinstance(i, Regular)]
        return self.rng.choice(files) if files else self.store.make("first")

    def name(self) -> bytes:
        return self.rng.choice([b"a", b"b", b"c", b"d"])

    def range(self) -> tuple[int, int]:
        scale = self.rng.choice([1, P])
        return self.rng.randrange(24) * scale, self.rng.randrange(1, 24) * scale

    def step(self) -> None:
        group = self.rng.choices([self.in_names, self.in_data, self.in_guests], [3, 3, 5])[0]
        try:
            group()()
        except (Refused, IndexError):
            self.refusals += 1

    def in_names(self) -> Callable[[], object]:
        rng, store, service = self.rng, self.store, self.store.service
        new = rng.choice([stat.S_IFREG, stat.S_IFREG, stat.S_IFIFO]) | 0o644
        return rng.choice(
            [
                lambda: service.mknod(self.directory().ino, self.name(), new, 0, ME, store.tick()),
                lambda: service.mkdir(self.directory().ino, self.name(), 0o755, ME, store.tick()),
                lambda: service.symlink(self.directory().ino, self.name(), b"x", ME, store.tick()),
                lambda: service.link(self.file().ino, self.directory().ino, self.name(), store.tick()),
                lambda: store.perform(service.unlink(self.directory().ino, self.name(), store.tick())),
                lambda: store.perform(service.rmdir(self.directory().ino, self.name(), store.tick())),
                self.rename,
                lambda: service.lookup(self.directory().ino, self.name()),
                lambda: store.perform(service.forget(self.file().ino, rng.randrange(3))),
                lambda: self.directory_handles.append(service.opendir(self.directory().ino, 0)),
                lambda: store.perform(service.releasedir(self.directory_handles.pop())),
            ]
        )

    def in_data(self) -> Callable[[], object]:
        rng, store = self.rng, self.store
        flags = rng.choice([RDONLY, WRONLY, RDWR, RDWR | os.O_TRUNC])
        return rng.choice(
            [
                lambda: self.handles.append(store.open(self.file(), flags)),
                lambda: store.close(self.handles.pop(rng.randrange(len(self.handles) or 1))),
                lambda: store.write(rng.choice(self.handles), self.range()[0], bytes(self.range()[1])),
                lambda: store.read(rng.choice(self.handles), *self.range()),
                lambda: store.resize(self.file(), self.range()[0]),
                lambda: store.fallocate(self.file(), rng.choice([0, KEEP_SIZE, PUNCH]), *self.range()),
                lambda: store.seal(self.file(), rng.choice([Seal.GUEST, Seal.GROW]), truncate=rng.random() < 0.5),
            ]
        )

    def in_guests(self) -> Callable[[], object]:
        steps = [self.new_guest, self.bind, self.unbind, self.fault, self.punch, self.shrink, self.reclaim, self.end]
        return self.rng.choices(steps, [4, 4, 2, 20, 4, 1, 1, 1])[0]

    def rename(self) -> None:
        source, target, flags = self.directory(), self.directory(), self.rng.choice([0, 0, 1, 2])
        service = self.store.service
        effects = service.rename(source.ino, self.name(), target.ino, self.name(), flags, self.store.tick(), ME)
        self.store.perform(effects)

    def guest_file(self) -> Regular:
        return self.rng.choice([f for f in self.store.service.inodes.sealed_files() if f.guest and f.guest.active])

    def new_guest(self) -> None:
        """A file that may have been anything becomes a VM's memory, as far as the rules let it."""
        file = self.file()
        self.store.seal(file, truncate=True)
        self.store.resize(file, 24 * P)
        self.store.pair(file)

    def bind(self) -> None:
        file, start = self.guest_file(), self.rng.randrange(20)
        self.store.gmem.bind(file, 1, 0x1000 * file.ino + start, start, self.rng.randrange(1, 12))

    def unbind(self) -> None:
        file = self.guest_file()
        binding = self.rng.choice(list(guest_of(file).bindings))
        low = self.rng.randrange(binding.start, binding.end)
        self.store.gmem.unbind(file, low, self.rng.randrange(low, binding.end) - low + 1)

    def fault(self) -> None:
        file = self.guest_file()
        binding = self.rng.choice(list(guest_of(file).bindings))
        at = binding.start
        for _ in range(self.rng.randrange(1, 5)):
            if at < binding.end:
                at = Pgoff(at + self.store.fault(file, at, 512).page_count)

    def punch(self) -> None:
        start = self.rng.randrange(24)
        self.store.fallocate(self.guest_file(), PUNCH, start * P, self.rng.randrange(1, 24) * P)

    def shrink(self) -> None:
        self.store.resize(self.guest_file(), self.rng.randrange(25) * P)

    def reclaim(self) -> None:
        files = self.store.service.inodes.sealed_files()
        for ino, start, end in self.store.gmem.reclaimable(files):
            file = self.store.service.inodes.regular(ino)
            kept = [(self.rng.randrange(24), self.rng.randrange(24))]
            self.store.invalidate(file, start, end, strategies.RECLAIM, kept=kept)  # type: ignore[arg-type]

    def end(self) -> None:
        file = self.guest_file()
        if self.rng.random() < 0.5:
            self.store.gmem.disconnect(file)
        else:
            self.store.release_guest(file)

    def delete_everything(self) -> None:
        store, service = self.store, self.store.service
        for handle in self.handles:
            store.close(handle)
        for handle in self.directory_handles:
            store.perform(service.releasedir(handle))
        for file in service.inodes.sealed_files():
            if guest_of(file).holds_memory:
                store.release_guest(file)
        self._empty(service.inodes.directory(ROOT_INO))
        store.forget_all()

    def _empty(self, directory: Directory) -> None:
        for name, inode in list(directory.entries.items()):
            if isinstance(inode, Directory):
                self._empty(inode)
                self.store.perform(self.store.service.rmdir(directory.ino, name, self.store.tick()))
            else:
                self.store.perform(self.store.service.unlink(directory.ino, name, self.store.tick()))


@pytest.mark.parametrize("seed", range(24))
def test_nothing_leaks_whatever_happened(seed: int) -> None:
    """600 random steps, R1 to R8 after each tenth; then every frame, inode, handle and byte comes back."""
    chaos = Chaos(seed)
    for number in range(600):
        chaos.step()
        if number % 10 == 0:
            assert chaos.store.audit() == [], f"seed {seed}, step {number}"
    assert 0 < chaos.refusals < 600
    chaos.delete_everything()
    assert chaos.store.leaks() == NO_LEAKS
    assert chaos.store.pool.counts()["free"] == 96
