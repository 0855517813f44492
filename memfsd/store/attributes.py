"""What stat(2) shows of an inode, as a value: it is looked at without Service.lock."""

from typing import NamedTuple

from memfsd.core.files.inodes import Inode, Regular
from memfsd.uapi.units import Ino


class Attributes(NamedTuple):
    """Blocks of 512 bytes; times in nanoseconds since the epoch."""

    ino: Ino
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    block_count: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    is_sealed: bool
    """A guest's fault changes block_count."""
    is_memfd: bool
    """A guest_memfd, which is sealed, too."""
    seems_empty: bool
    """A size and no blocks, but the kernel may hold what a mapping stored. tar takes such a file for one hole."""


def attributes_of(inode: Inode) -> Attributes:
    """Call with Service.lock held."""
    is_sealed = isinstance(inode, Regular) and inode.guest is not None
    is_memfd = isinstance(inode, Regular) and inode.guest is not None and inode.guest.memfd is not None
    return Attributes(
        inode.ino,
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.rdev,
        inode.size,
        inode.block_count,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        is_sealed,
        is_memfd,
        not is_sealed and seems_empty(inode),
    )


def seems_empty(inode: Inode) -> bool:
    return isinstance(inode, Regular) and inode.size > 0 and inode.mappable_writers > 0 and not inode.pages.page_count
