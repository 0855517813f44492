"""kvmsim journal: check what was recorded, and show it."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from memfsd.common.quote import printable

from .check import Verdict, check
from .reader import NotAJournal, follow
from .show import Event, Wanted, diagram, events, events_of, growing_diagram

_LOOK_AGAIN_S = 0.2
_HELP = """\
exit status of check: 0 no rule is broken, 1 one is broken (FILE:LINE and why), 2 a file is no journal,
or standard output cannot be written
"""


def add_arguments(journal: argparse.ArgumentParser) -> None:
    journal.epilog = _HELP
    actions = journal.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("check", "verify the protocol's rules; several journals are merged by time"),
        ("show", "a diagram of the exchange"),
    ):
        action = actions.add_parser(name, help=text, epilog=_HELP if name == "check" else None)
        action.add_argument(
            "files", nargs="+", metavar="FILE", help="journals of memfsd and kvmsim, of one run; - is standard input"
        )
        if name == "show":
            action.add_argument("-f", "--follow", action="store_true", help="go on as the journal (one) grows")
            action.add_argument("--vm", default="", metavar="NAME", help="only what is about this VM")
            action.add_argument("--file", type=_inode, default=-1, metavar="INODE", help="only what is about this file")
            action.add_argument(
                "--kind",
                type=_kinds,
                default=frozenset(),
                metavar="K[,K]",
                help="only these, as in get_pfn,zapped",
            )
        action.add_argument("--json", action="store_true", help="one JSON object (check) or one per event (show)")


def command(asked: argparse.Namespace) -> int:
    try:
        return _check(asked) if asked.action == "check" else _show(asked)
    except NotAJournal as error:
        print(f"kvmsim: {printable(str(error))}", file=sys.stderr)
        return 2


def _check(asked: argparse.Namespace) -> int:
    verdict = check(asked.files)
    if asked.json:
        print(json.dumps(_as_json(asked.files, verdict)))
        return 1 if verdict.rule else 0
    for end in verdict.incomplete:
        print(f"{printable(end)} (what follows is not known)")
    if verdict.rule:
        print(f"{printable(verdict.where)}: rule '{verdict.rule}' is broken: {verdict.why}")
        return 1
    held = "no rule is broken in what was recorded" if verdict.incomplete else "all rules hold"
    print(f"{held}: {verdict.message_count} messages and {verdict.note_count} notes of {_count(asked.files)}")
    return 0


def _count(files: list[str]) -> str:
    return "1 journal" if len(files) == 1 else f"{len(files)} journals"


def _as_json(files: list[str], verdict: Verdict) -> dict[str, Any]:
    broken = {"rule": verdict.rule, "where": verdict.where, "why": verdict.why} if verdict.rule else None
    return {
        "ok": broken is None,
        "messages": verdict.message_count,
        "notes": verdict.note_count,
        "files": files,
        "incomplete": verdict.incomplete,
        "broken": broken,
    }


def _wait() -> None:
    time.sleep(_LOOK_AGAIN_S)


def _inode(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise argparse.ArgumentTypeError(f"'{text[:30]}' is not an inode number: ls -i and memfs stat show it")
    return int(text)


def _kinds(text: str) -> frozenset[str]:
    return frozenset(text.upper().split(","))


def _show(asked: argparse.Namespace) -> int:
    wanted = Wanted(asked.vm, asked.file, asked.kind)
    if asked.follow:
        if len(asked.files) != 1:
            raise NotAJournal("--follow shows one journal as it grows: name one")
        shown: Iterator[Event] = filter(wanted.__call__, events_of(follow(asked.files[0], _wait)))
    else:
        shown = events(asked.files, wanted)
    if not asked.json:
        for line in growing_diagram(shown) if asked.follow else diagram(asked.files, wanted):
            print(line, flush=asked.follow)
        return 0
    for event in shown:
        record = msgspec.to_builtins(event.record.entry)
        target = None if event.target is None else str(event.target)
        report = {"where": event.record.where, "from": str(event.source), "to": target, **record}
        print(json.dumps(report), flush=asked.follow)
    return 0
