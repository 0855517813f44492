"""memfs create, seal and fallocate."""

import argparse
import errno
import json
import os

from memfsd.common.arguments import checked
from memfsd.common.linux import fallocate
from memfsd.common.quote import quoted
from memfsd.common.stores import store_of
from memfsd.files import create_file
from memfsd.guest_memfd import create_guest_memfd_at
from memfsd.uapi.abi import ABIS, THREAD, GmemFlag
from memfsd.uapi.errors import Refused
from memfsd.uapi.gmem_ioctls import format_flags, parse_flags
from memfsd.uapi.names import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, XATTR_SEALS
from memfsd.uapi.seals import parse_seals
from memfsd.uapi.units import format_size

from . import arguments
from .facts import show


def _add_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="FILE")
    parser.add_argument("--size", type=arguments.size, default=0, help="bytes, or with K, M, G, T")
    parser.add_argument("--guest", action="store_true", help="seal it: guest private memory")
    parser.add_argument("--page-size", type=arguments.page_size, metavar="4K|2M|1G", help="frames to allocate")
    parser.add_argument("--abi", choices=sorted(ABIS), help="a guest_memfd of this ABI, which must be the mount's")
    parser.add_argument("--flags", type=_flags, metavar="FLAG[,FLAG]", help="of a guest_memfd: mmap, init-shared")
    parser.set_defaults(run=_create)


def _add_seal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="FILE")
    parser.add_argument("seals", metavar="SEAL[,SEAL]", type=_seals)
    parser.set_defaults(run=_seal)


def _add_fallocate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-p", "--punch-hole", action="store_true", help="take the range back")
    parser.add_argument("-n", "--keep-size", action="store_true", help="do not grow the file")
    parser.add_argument("-o", "--offset", type=arguments.size, default=0, help="where to start (default 0)")
    parser.add_argument("-l", "--length", type=arguments.size, required=True, help="how much")
    parser.add_argument("target", type=arguments.path, metavar="FILE")
    parser.set_defaults(run=_fallocate)


_flags = checked(parse_flags)


@checked
def _seals(text: str) -> str:
    parse_seals(text)
    return text


def _create(asked: argparse.Namespace) -> int:
    path = asked.target
    store_of(os.path.dirname(os.path.abspath(path)))
    if asked.flags is not None or asked.abi not in (None, THREAD.name):
        if asked.guest or asked.page_size is not None:
            raise Refused(
                errno.EINVAL, "a guest_memfd is private from birth, of pages of 4K: leave --guest and --page-size out"
            )
        flags = asked.flags or GmemFlag(0)
        abi = create_guest_memfd_at(path, size=asked.size, flags=flags, abi=asked.abi)
        facts = {"file": path, "size": asked.size, "abi": abi, "flags": format_flags(flags).split(",")}
        show(
            asked,
            facts,
            f"{quoted(path)}: guest_memfd of {abi}, {format_size(asked.size)}, flags {format_flags(flags)}",
        )
        return 0
    create_file(path, size=asked.size, guest=asked.guest, page_size=asked.page_size)
    kind = "sealed" if asked.guest else "ordinary"
    facts = {"file": path, "size": asked.size, "guest": asked.guest}
    show(asked, facts, f"{quoted(path)}: {kind}, {format_size(asked.size)}")
    return 0


def _seal(asked: argparse.Namespace) -> int:
    store_of(asked.target)
    os.setxattr(asked.target, XATTR_SEALS, asked.seals.encode())
    seals = os.getxattr(asked.target, XATTR_SEALS).decode()
    show(asked, {"file": asked.target, "seals": seals.split(",")}, f"{quoted(asked.target)}: {seals}")
    return 0


def _fallocate(asked: argparse.Namespace) -> int:
    mode = 0
    if asked.punch_hole:
        mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    elif asked.keep_size:
        mode = FALLOC_FL_KEEP_SIZE
    _check_on_a_mount(asked.target)
    fd = os.open(asked.target, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo has no reader to wait for
    try:
        fallocate(fd, mode, asked.offset, asked.length)
    except OSError as error:
        error.filename = asked.target
        raise
    finally:
        os.close(fd)
    if asked.json:
        print(json.dumps({"file": asked.target, "mode": mode, "offset": asked.offset, "length": asked.length}))
    return 0


def _check_on_a_mount(path: str) -> None:
    """EOPNOTSUPP elsewhere. Who may write but not read the file, may not read its attributes either."""
    try:
        store_of(path)
    except Refused as refused:
        if refused.errno != errno.EACCES:
            raise


COMMANDS: arguments.Adders = {"create": _add_create, "seal": _add_seal, "fallocate": _add_fallocate}
