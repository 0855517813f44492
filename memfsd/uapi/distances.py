"""Distances of NUMA nodes as the mount option says them: those of ACPI's SLIT, a row for each node.

The kernel's rules (slit_valid() in arch/x86/mm/srat.c): 10 to itself, more to others; 255 is unreachable, and so not a
distance here. The table need not be symmetric.
"""

import errno

from .errors import Refused

LOCAL_DISTANCE = 10
REMOTE_DISTANCE = 20
"""The kernel's own, where firmware gives no table."""
_MAX_DISTANCE = 254

Rows = tuple[tuple[int, ...], ...]
"""Row i: the distances of node i to all nodes. (): the kernel's defaults."""


def check_distances(rows: Rows, node_count: int) -> None:
    """EINVAL for a table of another number of nodes."""
    if rows and len(rows) != node_count:
        raise Refused(
            errno.EINVAL,
            f"distances= is a table of {len(rows)} nodes and nodes= is {node_count}: give {node_count} rows of "
            f"{node_count}",
        )


def parse_distances(text: str) -> Rows:
    """ "10:20/20:10": a row for each node. EINVAL names what makes it no table of distances."""
    rows = tuple(_row(row) for row in text.split("/"))
    for node, row in enumerate(rows):
        if len(row) != len(rows):
            raise Refused(
                errno.EINVAL,
                f"distances: row {node} has {len(row)} of {len(rows)} distances, by the number of rows: "
                "give each node a row, with a distance to each node",
            )
        if row[node] != LOCAL_DISTANCE:
            raise Refused(
                errno.EINVAL, f"distances: node {node} is {row[node]} from itself: that is always {LOCAL_DISTANCE}"
            )
        for other, distance in enumerate(row):
            if other != node and not LOCAL_DISTANCE < distance <= _MAX_DISTANCE:
                raise Refused(
                    errno.EINVAL,
                    f"distances: node {node} is {distance} from node {other}: choose {LOCAL_DISTANCE + 1} to "
                    f"{_MAX_DISTANCE}",
                )
    return rows


def format_distances(rows: Rows) -> str:
    return "/".join(":".join(map(str, row)) for row in rows)


def _row(text: str) -> tuple[int, ...]:
    words = text.split(":")
    if not all(map(_is_number, words)):
        raise Refused(errno.EINVAL, f"distances: '{text}' is no row of numbers: write 10:20/20:10 for two nodes")
    return tuple(int(word) for word in words)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3
