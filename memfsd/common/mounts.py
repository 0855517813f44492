"""Which memfsd mount a file is on, by the kernel's word and not by that of the file's attributes.

Anybody can put `user.memfsd.*` attributes on a file of another file system. What cannot be forged is the device number
of an open file, and the kernel's line for it in /proc/self/mountinfo: the type, and who mounted.
"""

import errno
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from memfsd.uapi.abi import THREAD
from memfsd.uapi.errors import Refused
from memfsd.uapi.names import FSTYPE, XATTR_POOL

from .fields import fields
from .quote import quoted

_MOUNTINFO = "/proc/self/mountinfo"
_ESCAPED = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """device: st_dev of its files. owner: uid of the user who mounted it, and so of the memfsd that serves it."""

    device: int
    path: str
    owner: int

    def serves(self, uid: int) -> bool:
        """Whether a process of this user may be the memfsd of this mount."""
        return uid in (0, self.owner)


def pool_of(directory: str) -> dict[str, int | str]:
    """What the root of the mount that a directory is on says of its pool. OSError: that is no memfsd mount."""
    root = os.path.realpath(directory)
    while not os.path.ismount(root):
        root = os.path.dirname(root)
    return fields(os.getxattr(root, XATTR_POOL).decode())


def abi_of_mount(directory: str) -> str:
    """The name of the ABI that the mount of this directory speaks. OSError as pool_of."""
    return str(pool_of(directory).get("abi", THREAD.name))


def memfsd_mounts() -> list[Mount]:
    """Every memfsd mount that this process can see, dead ones among them; in the order in which they were mounted."""
    with open(_MOUNTINFO, "rb") as lines:
        return list(_parse(lines))


def mount_of(file: int | str) -> Mount:
    """The memfsd mount that a file is on. EINVAL when it is on none; OSError as stat(2)."""
    device = os.stat(file).st_dev
    for mount in memfsd_mounts():
        if mount.device == device:
            return mount
    raise Refused(errno.EINVAL, "not a file on a memfsd mount: use one of a directory that memfsd serves")


def check_serves(mount: Mount, uid: int, path: str) -> None:
    """EPERM when the process of this user that listens at path cannot be the memfsd of the mount."""
    if not mount.serves(uid):
        raise Refused(
            errno.EPERM,
            f"what listens at {quoted(path)} is of uid {uid}, not the memfsd of {quoted(mount.path)} "
            f"(uid {mount.owner}): an impostor: remove that socket and mount again",
        )


def _parse(lines: Iterator[bytes]) -> Iterator[Mount]:
    for line in lines:
        before, _, after = line.rstrip(b"\n").partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if rest[0] != b"fuse." + FSTYPE.encode():
            continue
        owner = next((int(o[8:]) for o in rest[-1].split(b",") if o.startswith(b"user_id=")), None)
        if owner is None:
            continue
        major, _, minor = fields[2].partition(b":")
        path = _ESCAPED.sub(lambda code: bytes([int(code[1], 8)]), fields[4])
        yield Mount(os.makedev(int(major), int(minor)), os.fsdecode(path), owner)
