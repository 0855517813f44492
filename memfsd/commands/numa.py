"""memfs bind and memfs numastat."""

import argparse
import errno
import json
import os
from typing import Any

from memfsd.common.quote import quoted
from memfsd.common.stores import store_of
from memfsd.numa import set_policies
from memfsd.uapi import names
from memfsd.uapi.errors import Refused
from memfsd.uapi.policy import parse_policy
from memfsd.uapi.units import PAGE_SHIFT, PGOFF_END

from . import arguments

_COUNTS = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
_SIZES = ("total", "used", "free")


def _add_bind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--offset", type=arguments.size, default=None, help="where the range begins (default 0)")
    parser.add_argument(
        "-l", "--length", type=arguments.size, default=None, help="how long it is (default: to the end)"
    )
    parser.add_argument("target", type=arguments.path, metavar="FILE")
    parser.add_argument("policy", type=_policy, metavar="POLICY[:NODES]")
    parser.set_defaults(run=_bind)


def _add_numastat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="MOUNTPOINT")
    parser.set_defaults(run=_numastat)


def _policy(text: str) -> str:
    try:
        parse_policy(text)
    except Refused as refused:
        raise argparse.ArgumentTypeError(refused.reason) from None
    return text


def _bind(asked: argparse.Namespace) -> int:
    store_of(asked.target)
    where = ""
    if asked.offset is not None or asked.length is not None:
        offset = asked.offset or 0
        length = (PGOFF_END << PAGE_SHIFT) - offset if asked.length is None else asked.length
        where = f"@{offset}+{length}"
    try:
        set_policies(asked.target, f"{asked.policy}{where}")
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"{quoted(asked.target)}: {error.strerror}") from None
    policies = os.getxattr(asked.target, names.XATTR_NUMA).decode()
    if asked.json:
        print(json.dumps({"file": asked.target, "numa": policies.split()}))
    else:
        print(f"{quoted(asked.target)}: {policies}")
    return 0


def _numastat(asked: argparse.Namespace) -> int:
    store_of(asked.target)
    *lines, last = os.getxattr(asked.target, names.XATTR_NUMASTAT).decode().splitlines()
    nodes: list[dict[str, Any]] = []
    for line in lines:
        facts = {key: int(value) for key, _, value in (word.partition("=") for word in line.split())}
        nodes.append({**facts, "used": facts["total"] - facts["free"]})
    distances = [[int(word) for word in row.split(":")] for row in last.partition("=")[2].split("/")]
    if asked.json:
        print(json.dumps({"mount": asked.target, "nodes": nodes, "distances": distances}))
        return 0
    _print("", [f"node{facts['node']}" for facts in nodes])
    for name in (*_COUNTS, *_SIZES):
        _print(name, [facts[name] for facts in nodes])
    for node, row in enumerate(distances):
        _print(f"distances of node{node}", row)
    return 0


def _print(name: str, cells: list[Any]) -> None:
    print(f"{name:<20}", *(f"{cell:>15}" for cell in cells))


COMMANDS: arguments.Adders = {"bind": _add_bind, "numastat": _add_numastat}
