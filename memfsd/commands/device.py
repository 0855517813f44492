"""memfs device: sealed files whose memory is a device's."""

import argparse
import errno
import os

from memfsd.common.observer import Observer
from memfsd.common.quote import quoted
from memfsd.common.stores import Store, store_of
from memfsd.files import create_file
from memfsd.uapi.errors import Refused
from memfsd.uapi.messages import DeviceFile, Empty, Kind
from memfsd.uapi.units import PAGE_SIZE, format_size

from . import arguments
from .facts import show


def _add_actions(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="add|remove", required=True)
    for name, help_ in (("add", "add memory of a device"), ("remove", "remove a device from under its VM")):
        action = actions.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
        action.add_argument("target", type=arguments.path, metavar="MOUNTPOINT")
        action.add_argument("name", metavar="NAME", help="of the file, in the root directory")
        if name == "add":
            action.add_argument("--size", type=arguments.size, required=True, help="bytes, or with K, M, G, T")
            action.add_argument(
                "--page-size", type=arguments.page_size, metavar="4K|2M|1G", help="the largest leaf to map it by"
            )
    parser.set_defaults(run=_device)


def _device(asked: argparse.Namespace) -> int:
    store = store_of(asked.target)
    if asked.action == "remove":
        path = _remove(asked.target, store, asked.name)
        show(asked, {"file": path}, f"{quoted(path)}: removed")
        return 0
    path = _add(asked.target, store, asked.name, asked.size, asked.page_size)
    facts = {"file": path, "size": asked.size, "page_size": asked.page_size or PAGE_SIZE}
    show(asked, facts, f"{quoted(path)}: device, {format_size(asked.size)}")
    return 0


def _add(mountpoint: str, store: Store, name: str, size: int, page_size: int | None) -> str:
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


def _remove(mountpoint: str, store: Store, name: str) -> str:
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


COMMANDS: arguments.Adders = {"device": _add_actions}
