"""The operations of the reference test: each is one system call (or two) on a World.

    path operations      name, to: paths below the world's root
    handle operations    handle: an index into the open files, taken modulo their number
    mapping operations   mapping: likewise

An operation prints as Python that makes it again, so a sequence of them is a script (see replay.py).
Its outcome is what the caller got; an OSError it raises is compared by its errno.
"""

import ctypes
import os
import select
import stat
from dataclasses import dataclass

from tests.reference.world import AT_FDCWD, MAPPINGS_MAX, Mapping, Outcome, World, as_user, checked, elsewhere, libc
from tests.support.file_handles import drop_inodes, handle_of, opened_by_handle

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
KEEP_SIZE, PUNCH_HOLE = 1, 2
AT_SYMLINK_FOLLOW = 0x400
PAGE = 4096


def pattern(seed: int, length: int) -> bytes:
    """Bytes that differ from their neighbours, so that a shift shows."""
    return bytes((seed + at) % 251 for at in range(min(length, 251))) * (length // 251 + 1)


def data(seed: int, length: int) -> bytes:
    return pattern(seed, length)[:length]


@dataclass(frozen=True)
class Operation:
    def run(self, world: World) -> Outcome:
        raise NotImplementedError


# -- names


@dataclass(frozen=True)
class Open(Operation):
    name: bytes
    flags: int
    mode: int = 0o644

    def run(self, world: World) -> Outcome:
        return world.keep(os.open(world.path(self.name), self.flags | os.O_NONBLOCK, self.mode))


@dataclass(frozen=True)
class OpenByHandle(Operation):
    """name_to_handle_at(2) and open_by_handle_at(2). forgotten: the kernel drops what it knows of inodes between."""

    name: bytes
    flags: int
    forgotten: bool = False

    def run(self, world: World) -> Outcome:
        handle = handle_of(world.path(self.name))
        if self.forgotten:
            drop_inodes(world.root)
        with opened_by_handle(world.root, handle, self.flags | os.O_NONBLOCK) as fd:
            return world.keep(os.dup(fd))


@dataclass(frozen=True)
class OpenTmpfile(Operation):
    name: bytes
    flags: int = os.O_RDWR
    mode: int = 0o600

    def run(self, world: World) -> Outcome:
        return world.keep(os.open(world.path(self.name), os.O_TMPFILE | self.flags, self.mode))


@dataclass(frozen=True)
class Mkdir(Operation):
    name: bytes
    mode: int = 0o755

    def run(self, world: World) -> Outcome:
        return os.mkdir(world.path(self.name), self.mode)


@dataclass(frozen=True)
class Rmdir(Operation):
    name: bytes

    def run(self, world: World) -> Outcome:
        return os.rmdir(world.path(self.name))


@dataclass(frozen=True)
class Unlink(Operation):
    name: bytes

    def run(self, world: World) -> Outcome:
        return os.unlink(world.path(self.name))


@dataclass(frozen=True)
class Rename(Operation):
    name: bytes
    to: bytes
    flags: int = 0

    def run(self, world: World) -> Outcome:
        old, new = world.path(self.name), world.path(self.to)
        return checked(libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, self.flags))


@dataclass(frozen=True)
class Link(Operation):
    name: bytes
    to: bytes

    def run(self, world: World) -> Outcome:
        return os.link(world.path(self.name), world.path(self.to), follow_symlinks=False)


@dataclass(frozen=True)
class LinkHandle(Operation):
    """linkat(2) of an open file, also one that has lost its last name."""

    handle: int
    to: bytes

    def run(self, world: World) -> Outcome:
        here = b"/proc/self/fd/%d" % world.handle(self.handle)
        return checked(libc.linkat(AT_FDCWD, here, AT_FDCWD, world.path(self.to), AT_SYMLINK_FOLLOW))


@dataclass(frozen=True)
class Symlink(Operation):
    target: bytes
    name: bytes

    def run(self, world: World) -> Outcome:
        return os.symlink(self.target, world.path(self.name))


@dataclass(frozen=True)
class Readlink(Operation):
    name: bytes

    def run(self, world: World) -> Outcome:
        return os.readlink(world.path(self.name))


@dataclass(frozen=True)
class Mknod(Operation):
    name: bytes
    kind: int
    mode: int = 0o644

    def run(self, world: World) -> Outcome:
        return os.mknod(world.path(self.name), self.kind | self.mode)


@dataclass(frozen=True)
class Listdir(Operation):
    name: bytes

    def run(self, world: World) -> Outcome:
        return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in os.scandir(world.path(self.name)))


@dataclass(frozen=True)
class Stat(Operation):
    """What the name leads to, through symbolic links."""

    name: bytes

    def run(self, world: World) -> Outcome:
        found = os.stat(world.path(self.name))
        return oct(found.st_mode), found.st_nlink, found.st_size


@dataclass(frozen=True)
class Access(Operation):
    name: bytes
    mode: int

    def run(self, world: World) -> Outcome:
        return os.access(world.path(self.name), self.mode, effective_ids=True)


# -- attributes


@dataclass(frozen=True)
class Chmod(Operation):
    name: bytes
    mode: int

    def run(self, world: World) -> Outcome:
        return os.chmod(world.path(self.name), self.mode)


@dataclass(frozen=True)
class Chown(Operation):
    name: bytes
    uid: int
    gid: int

    def run(self, world: World) -> Outcome:
        return os.lchown(world.path(self.name), self.uid, self.gid)


@dataclass(frozen=True)
class Utimens(Operation):
    """Each time is (seconds, nanoseconds), the latter also UTIME_NOW or UTIME_OMIT."""

    name: bytes
    atime: tuple[int, int]
    mtime: tuple[int, int]
    at_flags: int = 0

    def run(self, world: World) -> Outcome:
        times = (ctypes.c_int64 * 4)(*self.atime, *self.mtime)
        return checked(libc.utimensat(AT_FDCWD, world.path(self.name), times, self.at_flags))


@dataclass(frozen=True)
class Futimens(Operation):
    handle: int
    atime: tuple[int, int]
    mtime: tuple[int, int]

    def run(self, world: World) -> Outcome:
        times = (ctypes.c_int64 * 4)(*self.atime, *self.mtime)
        return checked(libc.futimens(world.handle(self.handle), times))


@dataclass(frozen=True)
class Truncate(Operation):
    name: bytes
    size: int

    def run(self, world: World) -> Outcome:
        return os.truncate(world.path(self.name), self.size)


@dataclass(frozen=True)
class Setxattr(Operation):
    name: bytes
    attribute: bytes
    seed: int
    length: int
    flags: int = 0

    def run(self, world: World) -> Outcome:
        value = data(self.seed, self.length)
        return os.setxattr(world.path(self.name), self.attribute, value, self.flags, follow_symlinks=False)


@dataclass(frozen=True)
class Getxattr(Operation):
    name: bytes
    attribute: bytes

    def run(self, world: World) -> Outcome:
        return os.getxattr(world.path(self.name), self.attribute, follow_symlinks=False)


@dataclass(frozen=True)
class Listxattr(Operation):
    name: bytes

    def run(self, world: World) -> Outcome:
        return sorted(os.listxattr(world.path(self.name), follow_symlinks=False))


@dataclass(frozen=True)
class Removexattr(Operation):
    name: bytes
    attribute: bytes

    def run(self, world: World) -> Outcome:
        return os.removexattr(world.path(self.name), self.attribute, follow_symlinks=False)


@dataclass(frozen=True)
class Umask(Operation):
    mask: int

    def run(self, world: World) -> Outcome:
        world.umask = self.mask


@dataclass(frozen=True)
class As(Operation):
    """Another operation, by a user who is not root."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    operation: Operation

    def run(self, world: World) -> Outcome:
        with as_user(self.uid, self.gid, list(self.groups)):
            return self.operation.run(world)


# -- open files


@dataclass(frozen=True)
class Close(Operation):
    handle: int

    def run(self, world: World) -> Outcome:
        fd = world.handle(self.handle)
        world.handles.remove(fd)
        os.close(fd)


@dataclass(frozen=True)
class Reopen(Operation):
    """Open what a handle holds once more, also when it has no name left."""

    handle: int
    flags: int

    def run(self, world: World) -> Outcome:
        return world.keep(os.open(b"/proc/self/fd/%d" % world.handle(self.handle), self.flags | os.O_NONBLOCK))


@dataclass(frozen=True)
class Read(Operation):
    handle: int
    length: int

    def run(self, world: World) -> Outcome:
        return os.read(world.handle(self.handle), self.length)


@dataclass(frozen=True)
class Write(Operation):
    handle: int
    seed: int
    length: int

    def run(self, world: World) -> Outcome:
        return os.write(world.handle(self.handle), data(self.seed, self.length))


@dataclass(frozen=True)
class Pread(Operation):
    handle: int
    length: int
    offset: int

    def run(self, world: World) -> Outcome:
        return os.pread(world.handle(self.handle), self.length, self.offset)


@dataclass(frozen=True)
class Pwrite(Operation):
    handle: int
    seed: int
    length: int
    offset: int

    def run(self, world: World) -> Outcome:
        return os.pwrite(world.handle(self.handle), data(self.seed, self.length), self.offset)


@dataclass(frozen=True)
class Pwritev(Operation):
    handle: int
    seed: int
    lengths: tuple[int, ...]
    offset: int

    def run(self, world: World) -> Outcome:
        parts = [data(self.seed + number, length) for number, length in enumerate(self.lengths)]
        return os.pwritev(world.handle(self.handle), parts, self.offset)


@dataclass(frozen=True)
class Lseek(Operation):
    handle: int
    offset: int
    whence: int

    def run(self, world: World) -> Outcome:
        fd = world.handle(self.handle)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return "positions in a directory are the filesystem's own"
        before = os.lseek(fd, 0, os.SEEK_CUR)
        found = os.lseek(fd, self.offset, self.whence)
        if self.whence in (os.SEEK_DATA, os.SEEK_HOLE):
            os.lseek(fd, before, os.SEEK_SET)  # where they may differ (deviations.py), what follows shall not
        return found


@dataclass(frozen=True)
class Ftruncate(Operation):
    handle: int
    size: int

    def run(self, world: World) -> Outcome:
        return os.ftruncate(world.handle(self.handle), self.size)


@dataclass(frozen=True)
class Fallocate(Operation):
    handle: int
    mode: int
    offset: int
    length: int

    def run(self, world: World) -> Outcome:
        fd = world.handle(self.handle)
        checked(libc.fallocate(fd, self.mode, self.offset, self.length))
        if not self.mode & PUNCH_HOLE:
            world.allocated.append(os.fstat(fd).st_ino)


@dataclass(frozen=True)
class Fchmod(Operation):
    handle: int
    mode: int

    def run(self, world: World) -> Outcome:
        return os.fchmod(world.handle(self.handle), self.mode)


@dataclass(frozen=True)
class Fsync(Operation):
    handle: int

    def run(self, world: World) -> Outcome:
        return os.fsync(world.handle(self.handle))


@dataclass(frozen=True)
class Sendfile(Operation):
    """Between two files, not a pipe, which would keep the rest."""

    handle: int
    source: int
    offset: int
    length: int

    def run(self, world: World) -> Outcome:
        source = world.handle(self.source)
        if not stat.S_ISREG(os.fstat(source).st_mode):
            return "not a file"
        target = world.handle(self.handle)
        if os.path.sameopenfile(source, target):
            return "within one file the pages that wait in the pipe may change or not"
        return os.sendfile(target, source, self.offset, self.length)


@dataclass(frozen=True)
class CopyFileRange(Operation):
    handle: int
    source: int
    length: int
    source_offset: int
    offset: int

    def run(self, world: World) -> Outcome:
        target, source = world.handle(self.handle), world.handle(self.source)
        return os.copy_file_range(source, target, self.length, self.source_offset, self.offset)


@dataclass(frozen=True)
class Poll(Operation):
    handle: int

    def run(self, world: World) -> Outcome:
        poll = select.poll()
        poll.register(world.handle(self.handle), select.POLLIN | select.POLLOUT)
        return [event for _, event in poll.poll(0)]


# -- mappings


@dataclass(frozen=True)
class Map(Operation):
    handle: int
    offset: int
    length: int
    shared: bool
    writable: bool

    def run(self, world: World) -> Outcome:
        fd = world.handle(self.handle)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "not a file"
        try:
            mapped = Mapping(world, fd, self.offset, self.length, shared=self.shared, writable=self.writable)
        except ValueError:
            return "Python maps no further than the end of the file"
        if len(world.mappings) == MAPPINGS_MAX:
            world.mappings.pop(0).close()
        world.mappings.append(mapped)
        return None


@dataclass(frozen=True)
class Load(Operation):
    mapping: int
    at: int
    length: int
    beside: bool = False
    """In another process, forked with the mapping."""

    def run(self, world: World) -> Outcome:
        mapping = world.mapping(self.mapping)
        at = min(self.at, mapping.length - 1)
        length = min(self.length, mapping.length - at)

        def load() -> bytes:
            return mapping.memory[at : at + length]

        return load() if mapping.reaches(at, length) and not self.beside else elsewhere(load)


@dataclass(frozen=True)
class Store(Operation):
    mapping: int
    at: int
    seed: int
    length: int
    beside: bool = False

    def run(self, world: World) -> Outcome:
        mapping = world.mapping(self.mapping)
        if not mapping.writable:
            return "not writable"
        at = min(self.at, mapping.length - 1)
        length = min(self.length, mapping.length - at)
        size = os.fstat(mapping.fd).st_size - mapping.offset
        if at < size:
            length = min(length, size - at)
        elif mapping.reaches(at, 1):
            return "bytes behind the end of the file in its last page are nobody's"

        def store() -> bytes:
            mapping.memory[at : at + length] = data(self.seed, length)
            return b"stored"

        return store() if mapping.reaches(at, length) and not self.beside else elsewhere(store)


@dataclass(frozen=True)
class Msync(Operation):
    mapping: int

    def run(self, world: World) -> Outcome:
        return world.mapping(self.mapping).memory.flush()


@dataclass(frozen=True)
class Unmap(Operation):
    mapping: int

    def run(self, world: World) -> Outcome:
        mapping = world.mapping(self.mapping)
        world.mappings.remove(mapping)
        mapping.close()
