"""Which memfsd serves a path."""

import errno
import os
from typing import NamedTuple

from memfsd.common.mounts import Mount, mount_of
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.names import XATTR_SOCKET


class Store(NamedTuple):
    """The memfsd that serves a mount, and where it listens."""

    mount: Mount
    socket: str


def store_of(path: str) -> Store:
    """The memfsd that serves this path. Refused when none does."""
    try:
        mount = mount_of(path)
        try:
            socket = os.getxattr(path, XATTR_SOCKET)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            socket = os.getxattr(mount.path, XATTR_SOCKET)  # special files have no attributes of users
        return Store(mount, os.fsdecode(socket))
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"{quoted(path)}: {error.strerror}") from None
    except Refused:
        raise Refused(
            errno.EOPNOTSUPP, f"{quoted(path)} is not on a memfsd mount: name a file or directory on one"
        ) from None
