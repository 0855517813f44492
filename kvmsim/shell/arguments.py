"""The arguments of `kvmsim run`, `attach` and `shell`: what --help loads. Nothing of it is a VM's."""

import argparse

from kvmsim.vmm.policies import POLICIES, UNDER
from memfsd.common.arguments import checked, whole
from memfsd.common.traceoptions import add_trace_arguments
from memfsd.uapi.abi import ABIS, THREAD
from memfsd.uapi.limits import MAX_SLOTS
from memfsd.uapi.messages import KVM_OPERATIONS, OPTIONAL_KVM_OPERATIONS, Kind, operation_name, operation_named

from .script.grammar import help_text
from .script.values import address
from .script.words import Word

_RUN_EPILOG = """\
exit status: 0 every command did what it should, 1 one did not, 2 the script cannot be parsed, or standard output or
the journal or the trace cannot be written, 130 interrupted

script commands:
"""
_ATTACH_EPILOG = """\
The commands are those of scripts: kvmsim run --help. At a prompt 'help' lists them, and Ctrl-C stops a command.

exit status: 0 after a prompt; when the commands come from a pipe or a file, all of them are run and it is that of run:
1 one did not do what it should and no expect follows it, 2 one could not be parsed. 1 also if FILE cannot be attached
"""
_SHELL_EPILOG = """\
A prompt without a file: vm0 has no memory yet. The commands are those of scripts, as for attach: 'help' lists them.

exit status: as of attach
"""
_slots = whole(1, MAX_SLOTS, f"is not a number of slots: choose 1 to {MAX_SLOTS}")
_OPTIONAL = ", ".join(sorted(map(operation_name, OPTIONAL_KVM_OPERATIONS)))


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _RUN_EPILOG + help_text()
    parser.add_argument(
        "script",
        nargs="?",
        default="-",
        metavar="SCRIPT",
        help="a file, all of which is parsed before line 1 runs; or - for standard input: lines from a pipe are done "
        "as they come",
    )
    parser.add_argument("--keep-going", action="store_true", help="run on after a command that failed")
    _add_common_arguments(parser)


def add_attach_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _ATTACH_EPILOG
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--gpa", type=_address, default=0, metavar="G", help="where its memory begins (default 0)")
    _add_common_arguments(parser)


def add_shell_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _SHELL_EPILOG
    _add_common_arguments(parser)


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", choices=POLICIES, default="none", help="how exits are handled (default none)")
    parser.add_argument(
        "--under",
        choices=UNDER,
        default="kept",
        help="with policy overlay: what becomes of the private page under an ordinary slot (default kept)",
    )
    parser.add_argument(
        "--abi", choices=ABIS, default=THREAD.name, help="of every VM, as of the mount (memfsd -o abi=; default thread)"
    )
    parser.add_argument("--max-slots", type=_slots, default=MAX_SLOTS, metavar="N", help="cap per address space")
    parser.add_argument(
        "--memory-encryption",
        choices=("none", "on"),
        default="none",
        help="on: private memory is ciphertext in the store's windows, under a key of each VM (default none)",
    )
    parser.add_argument(
        "--tamper",
        choices=("mce", "refuse"),
        help="with memory encryption: 'host tamper' ends in a machine check of the guest that reads the page, as on "
        "TDX (mce, the default), or is refused, as on SEV-SNP (refuse)",
    )
    parser.add_argument(
        "--no-op",
        type=_optional_operation,
        action="append",
        default=[],
        metavar="OPERATION",
        help=f"be a KVM that lacks an operation which stores may call: {_OPTIONAL}; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per command, with the time that it took")
    parser.add_argument("-q", "--quiet", action="store_true", help="show only what goes wrong, as the command quiet on")
    parser.add_argument(
        "--gdb",
        metavar="ADDR",
        help="let gdb debug the machine code of the current VM (target remote ADDR): [HOST:]PORT, a loopback address",
    )
    parser.add_argument("--journal", metavar="FILE", help="record every message to and from the store")
    add_trace_arguments(parser, "-f", "--filter")
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="log to stderr which pairings are made and lost, and which calls of the store are refused; given twice: "
        "also each invalidation, and what the store refuses",
    )


@checked
def _address(text: str) -> int:
    return address(Word(text, 1, 1))


def _optional_operation(text: str) -> Kind:
    operation = operation_named(text, KVM_OPERATIONS)
    if operation is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not an operation of KVM: choose {_OPTIONAL}")
    if operation not in OPTIONAL_KVM_OPERATIONS:
        raise argparse.ArgumentTypeError(f"a KVM without {text} cannot pair with any file: choose {_OPTIONAL}")
    return operation
