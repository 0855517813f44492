"""The command memfs: what has no standard command. What a command needs is loaded for it alone."""

import argparse
import sys

from memfsd.common.arguments import Parser, command_of
from memfsd.common.quote import printable, quoted
from memfsd.common.starting import take_interrupts
from memfsd.common.stdio import fill_standard_fds, with_stdout
from memfsd.common.version import VERSION
from memfsd.uapi.errors import PeerLost, Refused, errno_name

from . import memfs_help
from .arguments import Adders

_NOT_CHECKED = 3
"""Of `check`, where 1 means that a rule is broken."""
_COMMANDS = {
    "create": "create a file; with --guest, a sealed one; with --abi or --flags, a guest_memfd",
    "seal": "add seals: guest, shrink, grow, write, future-write, seal",
    "stat": "show a file's seals, owner and frames, or a mount's pool",
    "map": "show which frames hold which pages, and at which GFNs",
    "fallocate": "allocate or punch; works on sealed files (opens write-only)",
    "bind": "set the NUMA policy of a file, or of a range of it",
    "move": "move pages of a file to another NUMA node",
    "offline": "take a NUMA node offline: its pages move to others",
    "online": "let a NUMA node give frames again",
    "compact": "move private pages together, so that large pages find room",
    "numastat": "show what each NUMA node gave, and to whom, as numastat(8)",
    "check": "verify R1 to R8 now, on both sides",
    "top": "a live view of pool, sealed files, owners, faults and invalidations per second",
    "vms": "list the VMs of a mount, with their processes and monitors",
    "poison": "let the memory of a page fail",
    "device": "add memory of a device as a sealed file, or remove it from under its VM",
    "kcore": "write an ELF core of the pool as the host may see it",
    "swapout": "move pages of a sealed file to the swap file",
    "swapoff": "bring every page back from the swap file; none leaves any more",
}


def main() -> None:
    fill_standard_fds()
    arguments = sys.argv[1:]
    sys.exit(with_stdout("memfs", lambda: run(arguments)))


def run(arguments: list[str]) -> int:
    """The exit status. KeyboardInterrupt and OSErrors of standard output come out."""
    asked, unknown = _parser(command_of(arguments)).parse_known_args(arguments)
    if unknown:
        asked.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    take_interrupts()
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
    return refused_status


def _complain(said: str) -> None:
    print(f"memfs: {printable(said)}", file=sys.stderr)


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Knows the arguments of this command, and only the names of the others."""
    parser = Parser(prog="memfs", description="Work with files on a memfsd mount.", epilog=memfs_help.OVERVIEW)
    parser.add_argument("--version", action="version", version=f"memfs {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, help_ in _COMMANDS.items():
        description = f"{help_[0].upper()}{help_[1:]}."
        command = commands.add_parser(name, help=help_, description=description, epilog=memfs_help.COMMANDS[name])
        if name == chosen:
            command.add_argument("--json", action="store_true", help="print one JSON object")
            command.set_defaults(parser=command)
            _adders(name)[name](command)
    return parser


def _adders(command: str) -> Adders:
    match command:
        case "create" | "seal" | "fallocate":
            from .files import COMMANDS
        case "stat":
            from .status import COMMANDS
        case "map":
            from .pages import COMMANDS
        case "bind" | "numastat":
            from .numa import COMMANDS
        case "move":
            from .moving import COMMANDS
        case "offline" | "online" | "compact":
            from .nodes import COMMANDS
        case "check":
            from .check import COMMANDS
        case "top":
            from .top import COMMANDS
        case "vms":
            from .vms import COMMANDS
        case "poison":
            from .poison import COMMANDS
        case "device":
            from .device import COMMANDS
        case "kcore":
            from .kcore import COMMANDS
        case "swapout" | "swapoff":
            from .swap import COMMANDS
        case _:
            raise AssertionError(f"{command} is one of them")
    return COMMANDS
