"""Extended attributes, ioctls and fallocate modes of files on a memfsd mount."""

XATTR_PREFIX = b"user.memfsd."
XATTR_SEALS = b"user.memfsd.seals"
XATTR_PAGE_SIZE = b"user.memfsd.page_size"
XATTR_NUMA = b"user.memfsd.numa"
XATTR_OWNER = b"user.memfsd.owner"
XATTR_FRAMES = b"user.memfsd.frames"
XATTR_SOCKET = b"user.memfsd.socket"
XATTR_POOL = b"user.memfsd.pool"
XATTR_COUNTS = b"user.memfsd.counts"
"""On the root: inodes, handles, lookups, windows, fds and threads that memfsd holds now."""
XATTR_NUMASTAT = b"user.memfsd.numastat"
"""On the root: what numastat(8) counts, a line for each node, and the table of distances."""
XATTR_TOKEN = b"user.memfsd.token"
"""Pairing token, another one each time it is read: an id of 16 bytes and a key of 16. Not listed."""

_IOC_WRITE, _IOC_READ, _IOC_TYPE, _U32 = 1, 2, 0xB7, 4


def _ioc(direction: int, number: int, size: int = _U32) -> int:
    return direction << 30 | size << 16 | _IOC_TYPE << 8 | number


IOC_ADD_SEALS = _ioc(_IOC_WRITE, 1)
"""_IOW(0xB7, 1, __u32): bits of `Seal` to add; same rules and errnos as the xattr."""
IOC_GET_SEALS = _ioc(_IOC_READ, 2)
"""_IOR(0xB7, 2, __u32): the bits that are set."""

MOVE_PAGES_ENTRY = "=Qii"
"""__u64 pgoff, __s32 node (ANY_NODE: only say where it is), __s32 status: the node, or a negative errno."""
MOVE_PAGES_AT_ONCE = 256
"""Entries of one IOC_MOVE_PAGES."""
IOC_MOVE_PAGES = _ioc(_IOC_READ | _IOC_WRITE, 3, 16 * MOVE_PAGES_AT_ONCE)
"""_IOWR(0xB7, 3, struct { entry[256] }): as move_pages(2); entries with pgoff NO_PAGE are not used."""
NO_PAGE = (1 << 64) - 1
ANY_NODE = -1

IOC_CREATE_GUEST_MEMFD = _ioc(_IOC_WRITE, 4, 64)
"""_IOW(0xB7, 4, struct kvm_create_guest_memfd): an empty file that nobody else has open becomes a guest_memfd."""
IOC_SET_MEMORY_ATTRIBUTES2 = _ioc(_IOC_READ | _IOC_WRITE, 5, 128)
"""_IOWR(0xB7, 5, struct kvm_memory_attributes2): pages of a guest_memfd become private or shared.

With EAGAIN error_offset says for which page.
"""

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
"""Of <linux/falloc.h>; a hole is punched with both."""

FSTYPE = "memfsd"
"""Mounts show as type fuse.memfsd in /proc/self/mountinfo."""
