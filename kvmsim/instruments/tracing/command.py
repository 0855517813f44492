"""kvmsim trace: which events there are, and traces and journals as a Perfetto file."""

import argparse
import errno
import json
import sys

from kvmsim.instruments.outputfile import OutputFile
from memfsd.common.quote import printable, quoted
from memfsd.common.traceevents import describe
from memfsd.uapi.errors import Refused

from . import perfetto
from .reader import Unreadable, happenings
from .timeline import timeline

_HELP = """\
exit status: 0 done, 2 a file cannot be read or written, or the package perfetto is missing
"""


def add_arguments(trace: argparse.ArgumentParser) -> None:
    trace.epilog = _HELP
    actions = trace.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the events of --trace, and their fields for filters")
    convert = actions.add_parser(
        "convert", help="make a file for ui.perfetto.dev of traces and journals of both sides", epilog=_HELP
    )
    convert.add_argument("files", nargs="+", metavar="IN", help="what --trace or --journal of memfsd and kvmsim wrote")
    convert.add_argument("-o", dest="out", metavar="OUT", required=True, help="the file to write; - is stdout")
    for action in (listing, convert):
        action.add_argument("--json", action="store_true", help="one JSON object an event (list), or of counts")


def command(asked: argparse.Namespace) -> int:
    if asked.action == "list":
        return _list(as_json=asked.json)
    try:
        return _convert(asked.files, asked.out, as_json=asked.json)
    except Unreadable as error:
        return _fail(str(error))
    except Refused as refused:
        return _fail(refused.reason)


def _list(*, as_json: bool) -> int:
    for event in describe():
        if as_json:
            print(json.dumps(event))
        else:
            print(f"{event['system']}:{event['event']}\n    {event['text']}\n    fields: {', '.join(event['fields'])}")
    return 0


def _convert(paths: list[str], out: str, *, as_json: bool) -> int:
    to = OutputFile(out, "a converted trace", perfetto.is_ours(), paths, stdout="data")
    to.refuse_unusable()
    if as_json and to.is_stdout:
        raise Refused(errno.EINVAL, "--json prints on standard output, where the trace goes: choose -o FILE")
    try:
        with to.opened() as file:
            counted = perfetto.write(timeline(happenings(paths)), file)
    except OSError as error:
        if error.filename is None:
            raise  # of standard output: the command line knows what to do
        return _fail(f"{quoted(out)}: {error.strerror}")
    if to.is_stdout:
        return 0
    if as_json:
        print(json.dumps({"out": out, **counted}))
    else:
        print(f"{printable(out)}: " + ", ".join(f"{count} {what}" for what, count in counted.items()))
    return 0


def _fail(why: str) -> int:
    print(f"kvmsim: {printable(why)}", file=sys.stderr)
    return 2
