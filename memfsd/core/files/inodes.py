"""What the names stand for, and the table of them.

An inode stays in the table while it has a name, an open handle, a kernel lookup or a pairing; its data goes
with the last name, handle and pairing, whatever the kernel still remembers.
"""

import errno
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from memfsd.core.memory.nodes import Zones
from memfsd.core.memory.page_table import FilePages
from memfsd.core.memory.placement import Policies
from memfsd.core.private.gmem_file import GmemFile
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import INODE_BYTES, INODE_SHARES_PER_UID, INODE_SHARES_RESERVED, SHORT_SYMLINK_MAX
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import ORDER_4K, PAGE_SIZE, Ino

from .shares import Shares

ROOT_INO = Ino(1)
_GROUP = 1024


@dataclass(frozen=True, slots=True)
class Changes:
    """What setattr(2)'s family changes; None leaves it. Size is changed by `Service.resize`."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


@dataclass(slots=True, eq=False)
class Inode:
    """Times are nanoseconds since the epoch; `lookups` is the kernel's count, `opens` ours.

    charge: its own byteser's share in the table.
    """

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
    charge: int = INODE_BYTES
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    last_parent: Ino = ROOT_INO
    last_name: bytes = b""
    """The name that it got last, and in which directory; it may have lost it since."""

    size = 0
    block_count = 0
    """512-byte blocks."""

    @property
    def pinned(self) -> bool:
        """Someone besides the kernel's cache still holds it."""
        return self.nlink > 0 or self.opens > 0


@dataclass(slots=True, eq=False)
class Regular(Inode):
    """readers: open handles that can read, and so be mapped; mappable_writers: those through which a
    shared mapping may store.

    nameless: made by open(O_TMPFILE), and link(2) may still give it its first name.
    is_cached_only: the kernel wrote back what a mapping stored, found no room, and has it in its cache at best.
    failed: pages of an ordinary file whose frames failed. They have none now, and are no holes before a punch.
    """

    size: int = 0
    seals: Seal = Seal(0)
    order: int = ORDER_4K
    policies: Policies | None = None
    """None while there are none: a fault asks for no more than that."""
    readers: int = 0
    mappable_writers: int = 0
    nameless: bool = False
    is_cached_only: bool = False
    pages: FilePages = field(default_factory=FilePages)
    failed: frozenset[int] = frozenset()
    guest: GmemFile | None = None

    def zones_at(self, pgoff: int, limit: int) -> tuple[Zones | None, int]:
        """Where a page goes (None: as the default says), and for how many pages, at most limit, that is so."""
        return (None, limit) if self.policies is None else self.policies.at(pgoff, self.order, limit)

    @property
    def block_count(self) -> int:  # type: ignore[override]
        return (self.pages.page_count + len(self.failed)) * (PAGE_SIZE // 512)

    @property
    def pinned(self) -> bool:
        paired = self.guest is not None and self.guest.holds_memory
        return self.nlink > 0 or self.opens > 0 or paired


@dataclass(slots=True, eq=False)
class Directory(Inode):
    """Its names and what they stand for."""

    parent: Ino = ROOT_INO
    entries: dict[bytes, Inode] = field(default_factory=dict)

    @property
    def size(self) -> int:  # type: ignore[override]
        """As tmpfs has it: 20 bytes an entry, "." and ".." too (BOGO_DIRENT_SIZE in mm/shmem.c)."""
        return 20 * (2 + len(self.entries))


@dataclass(slots=True, eq=False)
class Symlink(Inode):
    """A symbolic link."""

    target: bytes = b""

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.target)


@dataclass(slots=True, eq=False)
class Special(Inode):
    """Fifos, sockets, devices: the kernel does all the work."""


class Dropped:
    """Inodes that have left the table, as long as somebody watches."""

    def __init__(self) -> None:
        self.inodes: list[Inode] = []


class InodeTable:
    """Inodes by number. Numbers are never used twice.

    What inodes, names and attributes take is charged as tmpfs does it, to the owner of the file.
    """

    def __init__(self, inode_count: int, owner_uid: int) -> None:
        total = inode_count * INODE_BYTES
        self._shares = Shares(total, total // INODE_SHARES_PER_UID, total // INODE_SHARES_RESERVED, owner_uid)
        self._inodes: dict[int, Inode] = {}
        self.find: Callable[[int], Inode | None] = self._inodes.get
        self._sealed: dict[int, Regular] = {}
        self._groups: dict[int, int] = {}
        """How many inodes there are of each _GROUP numbers in a row, if any."""
        self._watchers: list[Dropped] = []
        self.lookup_count = 0
        """Of all inodes."""
        self._next = int(ROOT_INO)

    def __len__(self) -> int:
        return len(self._inodes)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._inodes.values())

    @property
    def free_count(self) -> int:
        """Inodes that there is room for, whoever makes them."""
        return (self._shares.total - self._shares.used) // INODE_BYTES

    def next_ino(self, uid: int, charge: int = INODE_BYTES) -> Ino:
        """A number for a new inode of uid, which is charged from here on; ENOSPC when there is no room."""
        self._take(uid, charge)
        ino = Ino(self._next)
        self._next += 1
        return ino

    def add(self, inode: Inode) -> None:
        assert inode.ino not in self._inodes
        self._inodes[inode.ino] = inode
        group = inode.ino // _GROUP
        self._groups[group] = self._groups.get(group, 0) + 1

    def numbers(self) -> Iterator[int]:
        """Of all inodes that there are now, in order and with others among them: for who looks at some, and at more
        later, while inodes come and go."""
        last, groups = self._next, list(self._groups)
        return (ino for group in groups for ino in range(group * _GROUP, min(group * _GROUP + _GROUP, last)))

    def watch(self) -> Dropped:
        """What is dropped from now on, until `unwatch`."""
        dropped = Dropped()
        self._watchers.append(dropped)
        return dropped

    def unwatch(self, dropped: Dropped) -> None:
        self._watchers.remove(dropped)

    def charge(self, inode: Inode, amount: int) -> None:
        """For one more name or attribute; ENOSPC when its owner has no more room. A negative amount gives back."""
        if amount > 0:
            self._take(inode.uid, amount)
        else:
            self._shares.give(inode.uid, -amount)
        inode.charge += amount

    def chown(self, inode: Inode, uid: int) -> None:
        """The new owner is charged, even above the bound: it is root who gives files away."""
        self._shares.move(inode.uid, uid, inode.charge)
        inode.uid = uid

    def _take(self, uid: int, amount: int) -> None:
        if not self._shares.take(uid, amount):
            in_bytes = self._shares.held(uid), self._shares.used, self._shares.total
            mine, used, total = (amount // INODE_BYTES for amount in in_bytes)
            raise Refused(
                errno.ENOSPC,
                f"uid {uid} has {mine} of {used} inodes in use, of {total} (names and attributes count), and gets"
                " no more: delete files, or mount with a larger nr_inodes",
            )

    def get(self, ino: int) -> Inode:
        inode = self._inodes.get(ino)
        if inode is None:
            raise Refused(errno.ESTALE, f"inode {ino} is gone")
        return inode

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
        return list(self._sealed.values())

    def add_sealed(self, file: Regular) -> None:
        """It has become guest private memory."""
        self._sealed[file.ino] = file

    def looked_up(self, inode: Inode) -> None:
        """The kernel knows it once more."""
        inode.lookups += 1
        self.lookup_count += 1

    def forgotten(self, inode: Inode, count: int) -> None:
        count = min(count, inode.lookups)
        inode.lookups -= count
        self.lookup_count -= count

    def drop_if_unused(self, inode: Inode) -> bool:
        """Take it out of the table when nobody and no kernel lookup holds it."""
        if inode.pinned or inode.lookups > 0:
            return False
        if self._inodes.pop(inode.ino, None) is None:
            return False
        self._sealed.pop(inode.ino, None)
        group = inode.ino // _GROUP
        self._groups[group] -= 1
        if not self._groups[group]:
            del self._groups[group]
        for watcher in self._watchers:
            watcher.inodes.append(inode)
        self._shares.give(inode.uid, inode.charge)
        return True


def symlink_charge(target: bytes) -> int:
    return INODE_BYTES + (len(target) if len(target) > SHORT_SYMLINK_MAX else 0)
