"""A command that sees one memfsd mount and not those of other tests: `python -m tests.support.own_mount_only MOUNTPOINT
COMMAND...`. Some programs look at each mount that there is, and one whose daemon another test stopped holds them up.

Without root it is run as it is.
"""

import ctypes
import os
import sys

from memfsd.common.mounts import memfsd_mounts

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 1 << 18
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


def main(mountpoint: str, command: list[str]) -> None:
    libc = ctypes.CDLL(None)
    if libc.unshare(_CLONE_NEWNS) == 0 and libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) == 0:
        for mount in memfsd_mounts():
            if mount.path != mountpoint:
                libc.umount2(os.fsencode(mount.path), _MNT_DETACH | _UMOUNT_NOFOLLOW)  # asks no daemon
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
