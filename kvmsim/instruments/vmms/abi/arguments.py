"""The arguments of `kvmsim abi`: what --help loads. The catalogue is a VM's, and loaded when situations are named."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .catalogue import Situation

_EPILOG = """\
It needs no mount and no root: store and VMs are in this process, and each situation has its own.
docs/abi.md is what --markdown prints, and says what the answers mean.
exit status: 0 all was asked, 1 not, 2 usage
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run a catalogue of situations on every ABI; print what each answered, the differences first."
    parser.epilog = _EPILOG
    parser.add_argument("--situations", type=_named, metavar="S[,S]", help="default: all; --list names them")
    parser.add_argument("--list", action="store_true", help="situations, and what is asked")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON object a situation, with the reasons of refusals")
    how.add_argument("--markdown", action="store_true", help="as docs/abi.md")


def _named(words: str) -> "list[Situation]":
    from .catalogue import SITUATIONS

    by_name = {situation.name: situation for situation in SITUATIONS}
    for word in words.split(","):
        if word not in by_name:
            raise argparse.ArgumentTypeError(f"'{word}' does not exist: --list names those that do")
    return [by_name[word] for word in words.split(",")]
