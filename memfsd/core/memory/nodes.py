"""NUMA nodes: how far they are from each other, and so where an allocation goes when a node is full."""

from collections.abc import Iterable
from typing import NamedTuple

from memfsd.uapi.distances import LOCAL_DISTANCE, REMOTE_DISTANCE, Rows, check_distances

LOCAL_NODE = 0
"""Where the store's CPUs are: a VM's vCPUs have no node."""

Zonelist = tuple[int, ...]
"""Nodes in the order in which they are tried; the first is the one that was meant."""


class Zones(NamedTuple):
    """Where one page may go: nodes in order, the first of them meant."""

    nodes: Zonelist
    is_interleaved: bool = False
    policy: str = ""
    """Of nodes that are all there are for this page, so that others do not help when they are full."""


class Distances:
    """The table of `node_count` nodes; rows () are the kernel's defaults. EINVAL when it is of another number."""

    def __init__(self, node_count: int, rows: Rows = ()) -> None:
        check_distances(rows, node_count)
        nodes = range(node_count)
        self.rows = rows or tuple(
            tuple(LOCAL_DISTANCE if here == there else REMOTE_DISTANCE for there in nodes) for here in nodes
        )
        self._zonelists = [self.nearest(node, nodes) for node in nodes]

    def zonelist(self, node: int) -> Zonelist:
        """All nodes, this one first."""
        return self._zonelists[node]

    def nearest(self, node: int, among: Iterable[int]) -> Zonelist:
        """These nodes by their distance from a node, the lower number first among equals."""
        return tuple(sorted(among, key=lambda other: (self.rows[node][other], other != node, other)))
