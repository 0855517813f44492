"""The command line of `kvmsim abi`."""

import argparse
import errno
import json
import logging
import sys
from collections.abc import Callable

from memfsd.uapi.errors import NO_RESOURCES, Refused, errno_name

from . import table
from .catalogue import SITUATIONS, Situation, run

Rows = list[tuple[str, str, str]]

_EPILOG = """\
It needs no mount and no root: store and VMs are in this process, and each situation has its own.
docs/abi.md is what --markdown prints, and says what the answers mean.
exit status: 0 all was asked, 1 not, 2 usage
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run a catalogue of situations on every ABI; print what each answered, the differences first."
    parser.epilog = _EPILOG
    parser.add_argument(
        "--situations", type=_named, default=SITUATIONS, metavar="S[,S]", help="default: all; --list names them"
    )
    parser.add_argument("--list", action="store_true", help="situations, and what is asked")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON object a situation, with the reasons of refusals")
    how.add_argument("--markdown", action="store_true", help="as docs/abi.md")


def abi(asked: argparse.Namespace, finish: Callable[[Rows], None] = lambda rows: None) -> int:
    """Exit status. finish: gets the answers as rows."""
    if asked.list:
        for each in asked.situations:
            row = {"situation": each.name, "about": each.about}
            print(json.dumps(row) if asked.json else f"{each.name:32} {each.about}")
        return 0
    logging.getLogger("memfsd").addHandler(logging.NullHandler())  # a store that dies is a situation
    try:
        results = [run(situation) for situation in asked.situations]
    except (Refused, OSError) as error:
        number = error.errno or errno.EIO
        if number not in NO_RESOURCES:
            raise
        why = f"no room for a VM and a store ({errno_name(number)}): raise ulimit -n, -u or -v"
        print(f"kvmsim: {why}", file=sys.stderr)
        return 1
    if asked.json:
        for result in table.sorted_results(results):
            print(json.dumps(table.facts(result)))
    else:
        print(table.markdown(results) if asked.markdown else f"{table.text(results)}\n", end="")
    finish(table.rows(results))
    return 0


def _named(words: str) -> list[Situation]:
    by_name = {situation.name: situation for situation in SITUATIONS}
    for word in words.split(","):
        if word not in by_name:
            raise argparse.ArgumentTypeError(f"'{word}' does not exist: --list names those that do")
    return [by_name[word] for word in words.split(",")]
