"""What the names stand for, and the table of them.

An inode stays in the table while it has a name, an open handle, a kernel lookup or a pairing; its data goes
with the last name, handle and pairing, whatever the kernel still remembers.
"""

import errno
import stat
from dataclasses import dataclass, field

from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_INODES
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import ORDER_4K, PAGE_SIZE, Ino

from .filepages import FilePages
from .guest import Guest

ROOT_INO = Ino(1)


@dataclass(slots=True, eq=False)
class Inode:
    """Times are nanoseconds since the epoch; `lookups` is the kernel's count, `opens` ours."""

    ino: Ino
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    nlink: int = 1
    rdev: int = 0
    lookups: int = 0
    opens: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    size = 0
    block_count = 0
    """512-byte blocks."""

    @property
    def pinned(self) -> bool:
        """Someone besides the kernel's cache still holds it."""
        return self.nlink > 0 or self.opens > 0


@dataclass(slots=True, eq=False)
class Regular(Inode):
    """readers: open handles that can read, and so be mapped; mappable_writers: read-write ones.

    nameless: made by open(O_TMPFILE), and link(2) may still give it its first name.
    """

    size: int = 0
    seals: Seal = Seal(0)
    order: int = ORDER_4K
    node: int | None = None
    readers: int = 0
    mappable_writers: int = 0
    nameless: bool = False
    pages: FilePages = field(default_factory=FilePages)
    guest: Guest | None = None

    @property
    def block_count(self) -> int:  # type: ignore[override]
        return self.pages.page_count * (PAGE_SIZE // 512)

    @property
    def pinned(self) -> bool:
        paired = self.guest is not None and self.guest.holds_memory
        return self.nlink > 0 or self.opens > 0 or paired


@dataclass(slots=True, eq=False)
class Directory(Inode):
    parent: Ino = ROOT_INO
    entries: dict[bytes, Inode] = field(default_factory=dict)

    @property
    def size(self) -> int:  # type: ignore[override]
        """As tmpfs has it: 20 bytes an entry, "." and ".." too (BOGO_DIRENT_SIZE in mm/shmem.c)."""
        return 20 * (2 + len(self.entries))


@dataclass(slots=True, eq=False)
class Symlink(Inode):
    target: bytes = b""

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.target)


@dataclass(slots=True, eq=False)
class Special(Inode):
    """Fifos, sockets, devices: the kernel does all the work."""


class InodeTable:
    """Inodes by number. Numbers are never used twice."""

    def __init__(self) -> None:
        self._inodes: dict[int, Inode] = {}
        self._next = int(ROOT_INO)

    def __len__(self) -> int:
        return len(self._inodes)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._inodes.values())

    def next_ino(self) -> Ino:
        """A number for a new inode; ENOSPC when the table is full."""
        if len(self._inodes) >= MAX_INODES:
            raise Refused(errno.ENOSPC, f"{MAX_INODES} inodes are the limit: delete files first")
        ino = Ino(self._next)
        self._next += 1
        return ino

    def add(self, inode: Inode) -> None:
        assert inode.ino not in self._inodes
        self._inodes[inode.ino] = inode

    def get(self, ino: int) -> Inode:
        inode = self._inodes.get(ino)
        if inode is None:
            raise Refused(errno.ESTALE, f"inode {ino} is gone")
        return inode

    def find(self, ino: int) -> Inode | None:
        return self._inodes.get(ino)

    def regular(self, ino: int) -> Regular:
        inode = self.get(ino)
        if not isinstance(inode, Regular):
            wrong = errno.EISDIR if stat.S_ISDIR(inode.mode) else errno.EINVAL
            raise Refused(wrong, f"inode {ino} is not a regular file")
        return inode

    def directory(self, ino: int) -> Directory:
        inode = self.get(ino)
        if not isinstance(inode, Directory):
            raise Refused(errno.ENOTDIR, f"inode {ino} is not a directory")
        return inode

    def sealed_files(self) -> list[Regular]:
        return [i for i in self._inodes.values() if isinstance(i, Regular) and i.guest is not None]

    def drop_if_unused(self, inode: Inode) -> bool:
        """Take it out of the table when nobody and no kernel lookup holds it."""
        if inode.pinned or inode.lookups > 0:
            return False
        return self._inodes.pop(inode.ino, None) is not None
