"""memfs check."""

import argparse
import json

from memfsd.common.observer import Observer
from memfsd.common.stores import store_of
from memfsd.uapi.messages import CheckReply, Empty, Kind
from memfsd.uapi.units import PAGE_SIZE, format_size

from . import arguments


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="MOUNTPOINT")
    parser.set_defaults(run=_check)


def _check(asked: argparse.Namespace) -> int:
    """1 when a rule is broken."""
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


COMMANDS: arguments.Adders = {"check": _add}
