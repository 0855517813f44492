"""memfs offline, online and compact: asked in steps, each of which ends in time."""

import argparse
import json
from collections.abc import Iterator

from memfsd.common.observer import Observer
from memfsd.common.quote import quoted
from memfsd.common.stores import store_of
from memfsd.uapi.messages import CompactReply, Empty, Kind, SetNode, SetNodeReply

from . import arguments


def _add_node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="MOUNTPOINT")
    parser.add_argument("node", type=arguments.node, metavar="NODE")


def _add_offline(parser: argparse.ArgumentParser) -> None:
    _add_node(parser)
    parser.set_defaults(run=_offline)


def _add_online(parser: argparse.ArgumentParser) -> None:
    _add_node(parser)
    parser.set_defaults(run=_online)


def _add_compact(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="MOUNTPOINT")
    parser.set_defaults(run=_compact)


def _offline(asked: argparse.Namespace) -> int:
    """1 when something could not leave the node."""
    moved = 0
    with Observer(store_of(asked.target)) as observer:
        for step in _steps(observer, asked.node):
            moved, left = moved + step.page_count, step.states
    if asked.json:
        print(json.dumps({"mount": asked.target, "node": asked.node, "moved": moved, "left": left}))
    else:
        print(f"node {asked.node} is offline: {moved} pages moved to others")
        if left:
            shown = ", ".join(f"{count} {state}" for state, count in left.items())
            print(f"frames that cannot leave it: {shown}; they do not come back to it when they are free")
    return 1 if left else 0


def _steps(observer: Observer, node: int) -> Iterator[SetNodeReply]:
    while True:
        step = observer.ask(Kind.SET_NODE, SetNode(node, online=0), SetNodeReply)
        yield step
        if not step.goes_on or not step.page_count:
            return


def _online(asked: argparse.Namespace) -> int:
    with Observer(store_of(asked.target)) as observer:
        observer.ask(Kind.SET_NODE, SetNode(asked.node, online=1), SetNodeReply)
    if asked.json:
        print(json.dumps({"mount": asked.target, "node": asked.node}))
    else:
        print(f"node {asked.node} is online")
    return 0


def _compact(asked: argparse.Namespace) -> int:
    moved = 0
    with Observer(store_of(asked.target)) as observer:
        first = step = observer.ask(Kind.COMPACT, Empty(), CompactReply)
        moved += step.page_count
        while step.goes_on and step.page_count:
            step = observer.ask(Kind.COMPACT, Empty(), CompactReply)
            moved += step.page_count
    if asked.json:
        before = {"2M": first.blocks_2m_before, "1G": first.blocks_1g_before}
        after = {"2M": step.blocks_2m_after, "1G": step.blocks_1g_after}
        print(json.dumps({"mount": asked.target, "moved": moved, "free_before": before, "free_after": after}))
    else:
        print(f"{quoted(asked.target)}: {moved} pages moved")
        print(f"free blocks of 2M: {first.blocks_2m_before} before, {step.blocks_2m_after} now")
        print(f"free blocks of 1G: {first.blocks_1g_before} before, {step.blocks_1g_after} now")
    return 0


COMMANDS: arguments.Adders = {"offline": _add_offline, "online": _add_online, "compact": _add_compact}
