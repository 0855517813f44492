"""The command line of `kvmsim abi`."""

import argparse
import errno
import json
import logging
import sys
from collections.abc import Callable

from memfsd.uapi.errors import NO_RESOURCES, Refused, errno_name

from . import table
from .catalogue import SITUATIONS, run

Rows = list[tuple[str, str, str]]


def abi(asked: argparse.Namespace, finish: Callable[[Rows], None] = lambda rows: None) -> int:
    """Exit status. finish: gets the answers as rows."""
    situations = asked.situations or SITUATIONS
    if asked.list:
        for each in situations:
            row = {"situation": each.name, "about": each.about}
            print(json.dumps(row) if asked.json else f"{each.name:32} {each.about}")
        return 0
    logging.getLogger("memfsd").addHandler(logging.NullHandler())  # a store that dies is a situation
    try:
        results = [run(situation) for situation in situations]
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
