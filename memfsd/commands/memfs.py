"""The command memfs: what has no standard command."""

import argparse
import errno
import json
import os
import stat
import sys
from collections.abc import Callable
from typing import Any

from memfsd.common.arguments import Parser, count, seconds
from memfsd.common.fields import fields
from memfsd.common.linux import fallocate
from memfsd.common.observer import Observer, Store, store_of
from memfsd.common.quote import printable, quoted
from memfsd.common.stdio import fill_standard_fds, with_stdout
from memfsd.common.version import VERSION
from memfsd.files import create_file
from memfsd.files import stat as file_stat
from memfsd.guest_memfd import create_guest_memfd_at
from memfsd.uapi import names
from memfsd.uapi.abi import ABIS, THREAD, GmemFlag
from memfsd.uapi.errors import PeerLost, Refused, errno_name
from memfsd.uapi.frame_state import state_name
from memfsd.uapi.gmem_ioctls import format_flags, parse_flags
from memfsd.uapi.messages import CheckReply, Empty, Kind, ListReply, Map, MapReply
from memfsd.uapi.names import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from memfsd.uapi.seals import parse_seals
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Pgoff, format_size, order_of_page_size, parse_size

from . import device, kcore, memfs_help, moving, nodes, numa, poison, swap, top, usage, vms

_NOT_CHECKED = 3
"""Of `check`, where 1 means that a rule is broken."""
_NAMES = ("file", "mount", "socket")
"""Facts that are names of files."""


_Run = Callable[[Any], int]


def main() -> None:
    fill_standard_fds()
    arguments = sys.argv[1:]
    sys.exit(with_stdout("memfs", lambda: run(arguments)))


def run(arguments: list[str]) -> int:
    """The exit status. OSErrors of standard output come out."""
    asked = _parser().parse_args(arguments)
    refused_status = _NOT_CHECKED if asked.command == "check" else 1
    try:
        return int(asked.run(asked))
    except Refused as refused:
        _complain(f"{refused.reason} ({errno_name(refused.errno)})")
    except PeerLost as lost:
        _complain(f"{quoted(asked.target)}: {lost}")
    except OSError as error:
        if error.filename is None:
            raise
        number = error.errno or 0
        why = memfs_help.WHY.get((asked.command, number))
        said = f"{quoted(error.filename)}: {error.strerror}" + (f": {why}" if why else "")
        _complain(f"{said} ({errno_name(number)})")
    except KeyboardInterrupt:
        return 130
    return refused_status


def _complain(said: str) -> None:
    print(f"memfs: {printable(said)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="memfs", description="Work with files on a memfsd mount.", epilog=memfs_help.OVERVIEW)
    parser.add_argument("--version", action="version", version=f"memfs {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: _Run, help_: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=help_, description=help_[0].upper() + help_[1:] + ".", epilog=memfs_help.COMMANDS[name]
        )
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.set_defaults(run=run, command=name)
        return sub

    create = command(
        "create", _create, "create a file; with --guest, a sealed one; with --abi or --flags, a guest_memfd"
    )
    create.add_argument("target", type=_path, metavar="FILE")
    create.add_argument("--size", type=_size, default=0, help="bytes, or with K, M, G, T")
    create.add_argument("--guest", action="store_true", help="seal it: guest private memory")
    create.add_argument("--page-size", type=_page_size, metavar="4K|2M|1G", help="frames to allocate")
    create.add_argument("--abi", choices=sorted(ABIS), help="a guest_memfd of this ABI, which must be the mount's")
    create.add_argument("--flags", type=_flags, metavar="FLAG[,FLAG]", help="of a guest_memfd: mmap, init-shared")
    seal = command("seal", _seal, "add seals: guest, shrink, grow, write, future-write, seal")
    seal.add_argument("target", type=_path, metavar="FILE")
    seal.add_argument("seals", metavar="SEAL[,SEAL]", type=_seals)
    about = command("stat", _stat, "show a file's seals, owner and frames, or a mount's pool")
    about.add_argument("target", type=_path, metavar="FILE|MOUNTPOINT")
    show = command("map", _map, "show which frames hold which pages, and at which GFNs")
    show.add_argument("target", type=_path, metavar="FILE")
    fallocate = command("fallocate", _fallocate, "allocate or punch; works on sealed files (opens write-only)")
    fallocate.add_argument("-p", "--punch-hole", action="store_true", help="take the range back")
    fallocate.add_argument("-n", "--keep-size", action="store_true", help="do not grow the file")
    fallocate.add_argument("-o", "--offset", type=_size, default=0, help="where to start (default 0)")
    fallocate.add_argument("-l", "--length", type=_size, required=True, help="how much")
    fallocate.add_argument("target", type=_path, metavar="FILE")
    _add_numa_commands(command)
    _add_those_of_a_mount(command)
    _swap_commands(command)
    return parser


def _add_those_of_a_mount(command: Callable[[str, Callable[[Any], int], str], argparse.ArgumentParser]) -> None:
    check = command("check", _check, "verify R1 to R8 now, on both sides")
    check.add_argument("target", type=_path, metavar="MOUNTPOINT")
    view = command("top", _top, "a live view of pool, sealed files, owners, faults and invalidations per second")
    view.add_argument("target", type=_path, metavar="MOUNTPOINT")
    delay = seconds("is not a delay")
    view.add_argument("-d", "--delay", type=delay, default=1.0, metavar="SECONDS", help="between views (default 1)")
    view.add_argument("-n", "--count", type=count, default=0, metavar="N", help="stop after N views (default: never)")
    view.add_argument("--once", dest="count", action="store_const", const=1, help="one view")
    vms_ = command("vms", _vms, "list the VMs of a mount, with their processes and monitors")
    vms_.add_argument("target", type=_path, metavar="MOUNTPOINT")
    fail = command("poison", _poison, "let the memory of a page fail")
    fail.add_argument("target", type=_path, metavar="FILE|MOUNTPOINT")
    where = fail.add_mutually_exclusive_group(required=True)
    where.add_argument("offset", type=_size, nargs="?", metavar="OFFSET", help="in the file")
    where.add_argument("--random", action="store_true", help="a page by lot, of FILE or of all sealed files")
    fail.add_argument("--seed", type=_seed, metavar="N", help="of the lot: the same page of the same pages again")
    devices = command("device", _device, "add memory of a device as a sealed file, or remove it from under its VM")
    _add_device_actions(devices)
    core = command("kcore", _kcore, "write an ELF core of the pool as the host may see it")
    core.add_argument("target", type=_path, metavar="MOUNTPOINT")
    core.add_argument("-o", "--output", type=_path, required=True, metavar="FILE", help="a new file; - is stdout")


def _swap_commands(command: Callable[[str, _Run, str], argparse.ArgumentParser]) -> None:
    out = command("swapout", swap.swap_out, "move pages of a sealed file to the swap file")
    out.add_argument("-o", "--offset", type=_size, default=0, help="where to start (default 0)")
    out.add_argument("-l", "--length", type=_size, default=None, help="how much (default: to the end)")
    out.add_argument("target", type=_path, metavar="FILE")
    off = command("swapoff", swap.swap_off, "bring every page back from the swap file; none leaves any more")
    off.add_argument("target", type=_path, metavar="MOUNTPOINT")


def _add_device_actions(devices: argparse.ArgumentParser) -> None:
    actions = devices.add_subparsers(dest="action", metavar="add|remove", required=True)
    for name, help_ in (("add", "add memory of a device"), ("remove", "remove a device from under its VM")):
        sub = actions.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
        sub.add_argument("target", type=_path, metavar="MOUNTPOINT")
        sub.add_argument("name", metavar="NAME", help="of the file, in the root directory")
        if name == "add":
            sub.add_argument("--size", type=_size, required=True, help="bytes, or with K, M, G, T")
            sub.add_argument("--page-size", type=_page_size, metavar="4K|2M|1G", help="the largest leaf to map it by")


def _add_numa_commands(command: Callable[[str, Callable[[Any], int], str], argparse.ArgumentParser]) -> None:
    bind = command("bind", numa.bind, "set the NUMA policy of a file, or of a range of it")
    bind.add_argument("-o", "--offset", type=_size, default=None, help="where the range begins (default 0)")
    bind.add_argument("-l", "--length", type=_size, default=None, help="how long it is (default: to the end)")
    bind.add_argument("target", type=_path, metavar="FILE")
    bind.add_argument("policy", type=numa.policy, metavar="POLICY[:NODES]")
    move = command("move", moving.move, "move pages of a file to another NUMA node")
    move.add_argument("-o", "--offset", type=_size, default=0, help="where to start (default 0)")
    move.add_argument("-l", "--length", type=_size, default=None, help="how much (default: to the end)")
    move.add_argument("target", type=_path, metavar="FILE")
    move.add_argument("node", type=moving.node, metavar="NODE")
    off = command("offline", nodes.offline, "take a NUMA node offline: its pages move to others")
    off.add_argument("target", type=_path, metavar="MOUNTPOINT")
    off.add_argument("node", type=moving.node, metavar="NODE")
    on = command("online", nodes.online, "let a NUMA node give frames again")
    on.add_argument("target", type=_path, metavar="MOUNTPOINT")
    on.add_argument("node", type=moving.node, metavar="NODE")
    compact = command("compact", nodes.compact, "move private pages together, so that large pages find room")
    compact.add_argument("target", type=_path, metavar="MOUNTPOINT")
    stat_ = command("numastat", numa.numastat, "show what each NUMA node gave, and to whom, as numastat(8)")
    stat_.add_argument("target", type=_path, metavar="MOUNTPOINT")


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the name is empty: give a path")
    return text


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _page_size(text: str) -> int:
    size = _size(text)
    try:
        order_of_page_size(size)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return size


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"'{text}' is not a seed: choose 0 to 2^64 - 1")
    return int(text)


def _seals(text: str) -> str:
    try:
        parse_seals(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _flags(text: str) -> GmemFlag:
    try:
        return parse_flags(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _print(asked: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    print(json.dumps(facts) if asked.json else text)


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
        _print(
            asked,
            facts,
            f"{quoted(path)}: guest_memfd of {abi}, {format_size(asked.size)}, flags {format_flags(flags)}",
        )
        return 0
    create_file(path, size=asked.size, guest=asked.guest, page_size=asked.page_size)
    kind = "sealed" if asked.guest else "ordinary"
    facts = {"file": path, "size": asked.size, "guest": asked.guest}
    _print(asked, facts, f"{quoted(path)}: {kind}, {format_size(asked.size)}")
    return 0


def _seal(asked: argparse.Namespace) -> int:
    store_of(asked.target)
    os.setxattr(asked.target, names.XATTR_SEALS, asked.seals.encode())
    seals = os.getxattr(asked.target, names.XATTR_SEALS).decode()
    _print(asked, {"file": asked.target, "seals": seals.split(",")}, f"{quoted(asked.target)}: {seals}")
    return 0


def _stat(asked: argparse.Namespace) -> int:
    store = store_of(asked.target)
    status = os.stat(asked.target)
    try:
        pool = os.getxattr(asked.target, names.XATTR_POOL).decode()
    except OSError:
        facts = _file_facts(asked.target, status)
    else:
        counts = os.getxattr(asked.target, names.XATTR_COUNTS).decode()
        facts = {"mount": asked.target, "socket": store.socket, **fields(pool), **fields(counts), **_held(store)}
    width = max(len(key) for key in facts)
    shown = {key: quoted(value) if key in _NAMES else value for key, value in facts.items()}
    shown = {key: "-" if value is None else value for key, value in shown.items()}
    _print(asked, facts, "\n".join(printable(f"{key:>{width}}  {value}") for key, value in shown.items()))
    return 0


def _held(store: Store) -> dict[str, int | None]:
    """What the VMs of a mount hold that its store does not know of."""
    try:
        with Observer(store) as observer:
            found = vms.vms_of(observer.ask(Kind.LIST, Empty(), ListReply))
    except (PeerLost, Refused):  # the rest was said by the kernel
        return {"vm_shared": None, "held_twice": None}
    return {name: sum(vm[name] or 0 for vm in found) for name in ("vm_shared", "held_twice")}


def _file_facts(path: str, status: os.stat_result) -> dict[str, Any]:
    facts: dict[str, Any] = {"file": path, "inode": status.st_ino, "size": status.st_size, "blocks": status.st_blocks}
    if not stat.S_ISREG(status.st_mode):
        return facts
    about = file_stat(path)
    shown = {"seals": about.seals, "page_size": about.page_size, "numa": about.numa, "owner": about.owner}
    facts = {**facts, **shown, **about.frames}
    owner = usage.owner_of(about.owner)
    if owner is not None:
        use = usage.use_of(owner)
        facts["vm_shared"] = use and use.shared
        facts["held_twice"] = use and use.doubled.get(status.st_ino, 0)
    return facts


def _map(asked: argparse.Namespace) -> int:
    runs: list[dict[str, Any]] = []
    pgoff = 0
    store = store_of(asked.target)
    status = os.stat(asked.target)
    ino = status.st_ino
    if not stat.S_ISREG(status.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise Refused(number, f"{quoted(asked.target)}: only regular files have pages: name one")
    page_size = int(os.getxattr(asked.target, names.XATTR_PAGE_SIZE))
    with Observer(store) as observer:
        while pgoff >= 0:
            reply = observer.ask(Kind.MAP, Map(ino, Pgoff(pgoff)), MapReply)
            for first, pfn, count, gfn, state, node, order in reply.runs:
                runs.append(
                    {
                        "offset": first << PAGE_SHIFT,
                        "length": count << PAGE_SHIFT,
                        "pfn": pfn if pfn >= 0 else None,
                        "node": node if node >= 0 else None,
                        "page_size": PAGE_SIZE << order,
                        "split": PAGE_SIZE << order < page_size,
                        "gpa": gfn << PAGE_SHIFT if gfn >= 0 else None,
                        "state": state_name(state),
                    }
                )
            pgoff = reply.next_pgoff
    if asked.json:
        print(json.dumps({"file": asked.target, "inode": ino, "runs": runs}))
        return 0
    columns = ("offset", "length", "gpa", "pfn", "node")
    rows = [[_cell(run[name], in_hex=name != "node") for name in columns] for run in runs]
    widths = [max([least, *map(len, cells)]) for least, *cells in zip((14, 10, 14, 10, 4), *rows, strict=True)]
    for row, page, state in [
        ([name.upper() for name in columns], "PAGE", "STATE"),
        *((row, _page(run, page_size), run["state"]) for row, run in zip(rows, runs, strict=True)),
    ]:
        print(*(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)), f"{page:>5}", state)
    return 0


def _page(run: dict[str, Any], file_page_size: int) -> str:
    whole = format_size(run["page_size"])
    return f"{whole}/{format_size(file_page_size)}" if run["split"] else whole


def _cell(value: int | None, *, in_hex: bool) -> str:
    return "-" if value is None else f"{value:#x}" if in_hex else str(value)


def _fallocate(asked: argparse.Namespace) -> int:
    mode = 0
    if asked.punch_hole:
        mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    elif asked.keep_size:
        mode = FALLOC_FL_KEEP_SIZE
    _check_on_a_mount(asked.target)
    fd = os.open(asked.target, os.O_WRONLY | os.O_CLOEXEC)
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


def _top(asked: argparse.Namespace) -> int:
    store = store_of(asked.target)
    try:
        return top.run(asked.target, store, interval_s=asked.delay, count=asked.count, as_json=asked.json)
    except KeyboardInterrupt:
        return 0  # how it is meant to end


def _vms(asked: argparse.Namespace) -> int:
    return vms.run(asked.target, store_of(asked.target), as_json=asked.json)


def _check(asked: argparse.Namespace) -> int:
    with Observer(store_of(asked.target)) as observer:
        reply = observer.ask(Kind.CHECK, Empty(), CheckReply)
    if asked.json:
        print(
            json.dumps(
                {
                    "ok": not reply.findings,
                    "findings": [{"rule": rule, "text": text} for rule, text in reply.findings],
                    "files": reply.file_count,
                    "pairings": reply.pairing_count,
                    "frames": reply.frame_count,
                }
            )
        )
    else:
        for rule, text in reply.findings:
            print(f"{rule} broken: {text}")
        if not reply.findings:
            size = format_size(reply.frame_count * PAGE_SIZE)
            print(f"R1-R8 hold: {reply.file_count} inodes, {reply.pairing_count} paired, pool of {size}")
    return 1 if reply.findings else 0


def _kcore(asked: argparse.Namespace) -> int:
    if asked.json and asked.output == kcore.STDOUT:
        raise Refused(errno.EINVAL, "--json prints on standard output, where the core goes: choose -o FILE")
    counts = kcore.dump(asked.target, store_of(asked.target), asked.output)
    if asked.output != kcore.STDOUT:
        facts = {"mount": asked.target, "file": asked.output, "frames": counts}
        sizes = {state: format_size(count * PAGE_SIZE) for state, count in counts.items()}
        text = f"{quoted(asked.output)}: {sizes.pop('shared', '0')} of ordinary files; left out: "
        _print(asked, facts, text + (", ".join(f"{state} {size}" for state, size in sizes.items()) or "nothing"))
    return 0


def _poison(asked: argparse.Namespace) -> int:
    store = store_of(asked.target)
    if asked.random:
        gone = poison.poison_any(asked.target, store, asked.seed)
    else:
        gone = poison.poison(asked.target, store, asked.offset)
    facts = {"target": asked.target, "inode": gone.ino, "offset": gone.offset, "pfn": gone.pfn}
    size = format_size(gone.frame_count * PAGE_SIZE)
    text = f"frame {gone.pfn:#x} ({size}) of inode {gone.ino} at {gone.offset:#x} is out of service"
    _print(asked, {**facts, "frames": gone.frame_count}, f"{quoted(asked.target)}: {text}")
    return 0


def _device(asked: argparse.Namespace) -> int:
    store = store_of(asked.target)
    if asked.action == "remove":
        path = device.remove(asked.target, store, asked.name)
        _print(asked, {"file": path}, f"{quoted(path)}: removed")
        return 0
    path = device.add(asked.target, store, asked.name, asked.size, asked.page_size)
    facts = {"file": path, "size": asked.size, "page_size": asked.page_size or PAGE_SIZE}
    _print(asked, facts, f"{quoted(path)}: device, {format_size(asked.size)}")
    return 0
