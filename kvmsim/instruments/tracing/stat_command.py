"""kvmsim stat: events of traces counted, once or as they come, as kvm_stat(1) shows them."""

import argparse
import contextlib
import json
import re
import sys
import time
from collections.abc import Callable

from memfsd.common.arguments import seconds
from memfsd.common.quote import printable
from memfsd.common.traceevents import EVENTS
from memfsd.uapi.errors import PeerLost

from .counting import Counting, count
from .reader import Unreadable, follow, happenings

_HELP = """\
Counted are what --trace of memfsd and kvmsim wrote, and with --once what --journal wrote, too. Names without a prefix
are the kernel's statistics (exits, pf_taken, ...), the others are events, with what they are about in parentheses.
With -m: the statistics of a running VM, from its monitor; no trace is needed.

exit status: 0 counted (-l and live: ended by Ctrl-C), 2 a file cannot be read, or no such VM runs
"""
_CLEAR = "\x1b[H\x1b[J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _HELP
    parser.add_argument("files", nargs="*", metavar="FILE", help="a trace")
    parser.add_argument("-m", "--monitor", metavar="VM", help="ask this VM instead: a pid, a name, or a socket's path")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-1", "--once", action="store_true", help="what is in the files now (default without a terminal)")
    how.add_argument("-l", "--log", action="store_true", help="a line each interval, with what came in it")
    interval = seconds("is no interval")
    parser.add_argument("-s", dest="delay", type=interval, default=1.0, metavar="SECONDS", help="interval (default 1)")
    parser.add_argument("-f", "--fields", type=_pattern, metavar="REGEX", help="only names in which it is found")
    parser.add_argument("-g", "--guest", default="", metavar="VM", help="only events of this VM")
    parser.add_argument("-b", "--by-vm", action="store_true", help="count all events of each VM")
    parser.add_argument("--json", action="store_true", help="one JSON object, or one each interval")


Look = Callable[[], dict[str, int]]
"""The totals by now."""


def command(asked: argparse.Namespace) -> int:
    if bool(asked.files) == (asked.monitor is not None) or (asked.monitor is not None and asked.by_vm):
        asked.parser.error("name traces (FILE), or one VM with -m, which -b does not go with")
    watches = asked.log or (sys.stdout.isatty() and not asked.once)
    try:
        with contextlib.ExitStack() as ending:
            look = _monitor(asked, ending) if asked.monitor is not None else _traces(asked, watches=watches)
            if watches:
                _watch(asked, look)
            else:
                _show_once(look(), as_json=asked.json)
    except (Unreadable, PeerLost) as error:
        print(f"kvmsim: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if not watches:
            raise
    return 0


def _traces(asked: argparse.Namespace, *, watches: bool) -> Look:
    counting = Counting(asked.fields, asked.guest, by_vm=asked.by_vm)
    if not watches:
        return lambda: count(happenings(asked.files), counting)
    files = [follow(path, lambda: True) for path in asked.files]

    def look() -> dict[str, int]:
        for file in files:
            while (it := next(file, None)) is not None:
                counting.add(it)
        return dict(counting.totals)

    return look


def _monitor(asked: argparse.Namespace, ending: contextlib.ExitStack) -> Look:
    from kvmsim.instruments.monitor.command import path_of
    from memfsd.common.qmp import Client, QmpError

    client = ending.enter_context(Client(path_of(asked.monitor)))
    name = asked.guest or ("" if "/" in asked.monitor or asked.monitor.isdigit() else asked.monitor)

    def look() -> dict[str, int]:
        try:
            answer = client.ask("query-stats", {"target": "vm", **({"vm": name} if name else {})})
        except QmpError as error:
            raise Unreadable(error.description) from None
        client.take_events()
        return {
            one["name"]: one["value"]
            for provider in answer
            for one in provider["stats"]
            if asked.fields is None or asked.fields.search(one["name"])
        }

    return look


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no regular expression: {error}") from None


def _show_once(totals: dict[str, int], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dict(sorted(totals.items()))))
        return
    for name, total in _by_total(totals):
        print(f"{printable(name):50}{total:12}")


def _watch(asked: argparse.Namespace, look: Look) -> None:
    """The first interval is what is there already."""
    show = _json if asked.json else _log() if asked.log else _table
    before: dict[str, int] = {}
    last = time.monotonic()
    while True:
        totals, now = look(), time.monotonic()
        came = {name: total - before.get(name, 0) for name, total in totals.items()}
        show(totals, came, max(now - last, asked.delay))
        sys.stdout.flush()
        before, last = totals, now
        time.sleep(asked.delay)


def _json(totals: dict[str, int], came: dict[str, int], elapsed_s: float) -> None:
    print(json.dumps({"seconds": round(elapsed_s, 3), "total": totals, "came": came}))


def _table(totals: dict[str, int], came: dict[str, int], elapsed_s: float) -> None:
    everything = sum(total for name, total in totals.items() if name in EVENTS) or sum(totals.values()) or 1
    lines = [f"{'Event':50}{'Total':>12}{'%Total':>8}{'CurAvg/s':>10}"]
    for name, total in _by_total(totals):
        lines.append(
            f"{printable(name):50}{total:12}{100 * total / everything:8.1f}{round(came[name] / elapsed_s) or '':>10}"
        )
    print(_CLEAR + "\n".join(lines))


def _log() -> Callable[[dict[str, int], dict[str, int], float], None]:
    shown: list[str] = []

    def show(totals: dict[str, int], came: dict[str, int], elapsed_s: float) -> None:
        if len(totals) != len(shown):
            shown[:] = sorted(totals)
            print(" ".join(f"{printable(name):>10}" for name in shown))
        print(" ".join(f"{came[name]:>{max(10, len(printable(name)))}}" for name in shown))

    return show


def _by_total(totals: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(totals.items(), key=lambda one: (-one[1], one[0]))
