"""What numastat(8) counts of each node, in frames.

A hit on a node is what it gave less what it gave in the place of others, so that the usual grant, of the node that was
meant, counts nothing at all.
"""

from typing import NamedTuple

from .nodes import LOCAL_NODE


class NodeReport(NamedTuple):
    """As /sys/devices/system/node/node*/numastat, and how much of the node is in use now."""

    total: int
    free: int
    numa_hit: int
    numa_miss: int
    numa_foreign: int
    interleave_hit: int
    local_node: int
    other_node: int


class NumaStat:
    """Counted since the mount."""

    def __init__(self, node_count: int) -> None:
        self._missed = [0] * node_count
        self._foreign = [0] * node_count
        self._interleaved = [0] * node_count
        self._freed = [0] * node_count

    def gave(self, node: int, count: int, meant: int, *, is_interleaved: bool) -> None:
        """Frames of a node, for who meant that one or another."""
        if node != meant:
            self._missed[node] += count
            self._foreign[meant] += count
        elif is_interleaved:
            self._interleaved[node] += count

    def took_back(self, node: int, count: int) -> None:
        self._freed[node] += count

    def report(self, node: int, total: int, free: int) -> NodeReport:
        given = total - free + self._freed[node]
        local = given if node == LOCAL_NODE else 0
        return NodeReport(
            total=total,
            free=free,
            numa_hit=given - self._missed[node],
            numa_miss=self._missed[node],
            numa_foreign=self._foreign[node],
            interleave_hit=self._interleaved[node],
            local_node=local,
            other_node=given - local,
        )
