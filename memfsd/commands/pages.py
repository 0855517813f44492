"""memfs map: the pages of a file."""

import argparse
import errno
import json
import os
import stat
from typing import Any

from memfsd.common.observer import Observer
from memfsd.common.quote import quoted
from memfsd.common.stores import store_of
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import state_name
from memfsd.uapi.messages import Kind, Map, MapReply
from memfsd.uapi.names import XATTR_PAGE_SIZE
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Pgoff, format_size

from . import arguments


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="FILE")
    parser.set_defaults(run=_map)


def _map(asked: argparse.Namespace) -> int:
    runs: list[dict[str, Any]] = []
    pgoff = 0
    store = store_of(asked.target)
    status = os.stat(asked.target)
    ino = status.st_ino
    if not stat.S_ISREG(status.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise Refused(number, f"{quoted(asked.target)}: only regular files have pages: name one")
    page_size = int(os.getxattr(asked.target, XATTR_PAGE_SIZE))
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


COMMANDS: arguments.Adders = {"map": _add}
