"""memfs device: sealed files whose memory is a device's."""

import errno
import os

from memfsd.common.observer import Observer, Store
from memfsd.common.quote import quoted
from memfsd.files import create_file
from memfsd.uapi.errors import Refused
from memfsd.uapi.messages import DeviceFile, Empty, Kind
from memfsd.uapi.units import PAGE_SIZE


def add(mountpoint: str, store: Store, name: str, size: int, page_size: int | None) -> str:
    """Its path. Nothing of it is left when it is refused."""
    path = _path(mountpoint, name)
    unit = page_size or PAGE_SIZE
    if not size or size % unit:
        raise Refused(errno.EINVAL, f"a device of {size} bytes: choose a --size of whole pages of {unit}, one at least")
    create_file(path, size=size, guest=True, page_size=page_size)
    try:
        _ask(path, store, Kind.DEVICE_ADD)
    except BaseException:
        os.unlink(path)
        raise
    return path


def remove(mountpoint: str, store: Store, name: str) -> str:
    """Its path, where nothing is left. Revoked first; a VM that does not let go of it is cut off: ETIMEDOUT.

    Goes on where one that was interrupted ended.
    """
    path = _path(mountpoint, name)
    try:
        _ask(path, store, Kind.DEVICE_REMOVE)
    except Refused as refused:
        if refused.errno == errno.ETIMEDOUT:  # the device is dead all the same
            os.unlink(path)
        if refused.errno != errno.ENODEV:  # by a removal that was interrupted, with its name left to go
            raise
    os.unlink(path)
    return path


def _ask(path: str, store: Store, kind: Kind) -> None:
    with Observer(store) as observer:
        observer.ask(kind, DeviceFile(os.stat(path).st_ino), Empty)


def _path(mountpoint: str, name: str) -> str:
    if not os.path.ismount(mountpoint):
        raise Refused(errno.EINVAL, f"{quoted(mountpoint)} is not the root of a mount: name the mount point")
    if "/" in name or name in ("", ".", ".."):
        raise Refused(errno.EINVAL, f"{quoted(name)} is not a name: a device is a file in the root directory")
    return os.path.join(mountpoint, name)
