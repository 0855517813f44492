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
XATTR_TOKEN = b"user.memfsd.token"
"""Pairing token, another one each time it is read: an id of 16 bytes and a key of 16. Not listed."""

_IOC_WRITE, _IOC_READ, _IOC_TYPE, _U32 = 1, 2, 0xB7, 4


def _ioc(direction: int, number: int) -> int:
    return direction << 30 | _U32 << 16 | _IOC_TYPE << 8 | number


IOC_ADD_SEALS = _ioc(_IOC_WRITE, 1)
"""_IOW(0xB7, 1, __u32): bits of `Seal` to add; same rules and errnos as the xattr."""
IOC_GET_SEALS = _ioc(_IOC_READ, 2)
"""_IOR(0xB7, 2, __u32): the bits that are set."""

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
"""Of <linux/falloc.h>; a hole is punched with both."""

FSTYPE = "memfsd"
"""Mounts show as type fuse.memfsd in /proc/self/mountinfo."""
