"""mbind(2) and move_pages(2) for file descriptors: where the pages of a file on a memfsd mount are, and shall be."""

import errno
import os
from collections.abc import Sequence

from memfsd.common.fileioctls import ioctl, move_pages
from memfsd.uapi.errors import Refused
from memfsd.uapi.names import ANY_NODE, IOC_GET_SEALS, XATTR_NUMA, XATTR_PAGE_SIZE
from memfsd.uapi.policy import parse_ranges
from memfsd.uapi.units import PGOFF_END, order_of_page_size

Range = tuple[int, int]
"""(offset, length) in bytes."""


def fbind(fd: int, range: Range | None, policy: str) -> None:  # noqa: A002 - as the proposal names it
    """Set the memory policy of a range of the file, None being all of it; it is the file's, whoever uses it.

    policy: default, local, bind:NODES, preferred[:NODE], preferred-many:NODES, interleave:NODES, or
    weighted-interleave:NODE=WEIGHT,...; NODES as 0-2,5. What is allocated already stays where it is.
    OSError as mbind(2): EINVAL for an offset that is not a page's, an unknown policy, no nodes where it needs some or
    some where it takes none, a node that does not exist; ENOMEM for too many ranges; ENOTTY not a file on a memfsd
    mount; EBADF. Its pages are then ENOSPC, to a guest and to fallocate(2), when the nodes of bind are full.
    """
    if type(policy) is not str:
        raise TypeError(f"fbind: policy is a str, not {type(policy).__name__}")
    ioctl(fd, IOC_GET_SEALS, bytearray(4))  # elsewhere the attribute would be kept, and mean nothing
    where = ""
    if range is not None:
        offset, length = range
        if offset < 0 or length < 0:
            raise OSError(errno.EINVAL, f"fbind: offset {offset} and length {length} must not be negative")
        where = f"@{offset:#x}+{length:#x}"
    if len(policy.split()) != 1 or "@" in policy:
        raise OSError(errno.EINVAL, f"fbind: '{policy}' is not one policy")
    set_policies(fd, f"{policy}{where}")


def set_policies(file: int | str, text: str) -> None:
    """The attribute user.memfsd.numa of this file. OSError with the reason."""
    try:
        os.setxattr(file, XATTR_NUMA, text.encode())
    except OSError as error:
        raise OSError(error.errno, _why(file, text, error)) from None


def _why(file: int | str, text: str, error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "only files have a policy"
    if error.errno == errno.ENOMEM:
        return "a file has a limited number of ranges with policies: join some of them"
    if error.errno != errno.EINVAL:
        return os.strerror(error.errno or errno.EIO)
    try:
        parse_ranges(text, order_of_page_size(int(os.getxattr(file, XATTR_PAGE_SIZE))))
    except Refused as refused:
        return refused.reason
    return f"'{text}' names a node that does not exist: memfs numastat MOUNTPOINT shows those that do"


def fmove_pages(fd: int, pages: Sequence[int], nodes: Sequence[int] | None = None) -> list[int]:
    """For each page of the file (its offset / 4096): the node it is on, or a negative errno, as move_pages(2).

    -ENOENT for a hole, -EFAULT past the end of the file. nodes: where to move each; then also -ENODEV for a node that
    does not exist or is offline, -ENOMEM for one that is full, -EBUSY for a page that cannot be moved: of an ordinary
    file, not bound, or of a VM whose KVM does not move pages. The descriptor may be write-only, and to move it must be
    writable (EPERM).
    OSError: EINVAL for a page that no file has or as many nodes as there are not pages, ENOTTY not a file on a memfsd
    mount, EBADF, EBUSY while too many calls of this user wait for VMs.
    """
    wanted = [ANY_NODE] * len(pages) if nodes is None else list(nodes)
    if len(wanted) != len(pages):
        raise OSError(errno.EINVAL, f"fmove_pages: {len(pages)} pages and {len(wanted)} nodes: give one for each")
    if not all(0 <= page < PGOFF_END for page in pages) or not all(0 <= node < 1 << 31 for node in nodes or ()):
        raise OSError(errno.EINVAL, f"fmove_pages: pages are 0 to {PGOFF_END - 1}, nodes 0 or more")
    return move_pages(fd, list(zip(pages, wanted, strict=True)))
