"""Memory policies of ranges of a file, among the nodes of a pool.

    Placement   what one policy says: where each page may go, in order
    Policies    the placements of one file, by range; elsewhere the default holds

A policy decides where a page goes when it is allocated. What is allocated already stays where it is.
"""

import errno
from dataclasses import dataclass, field

from memfsd.common.intervals import IntervalMap
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_POLICIES_PER_FILE, MAX_POLICIES_TEXT
from memfsd.uapi.policy import Mode, Policy, PolicyRange, format_range

from .nodes import LOCAL_NODE, Distances, Zones

_INTERLEAVED = (Mode.INTERLEAVE, Mode.WEIGHTED_INTERLEAVE)


@dataclass(frozen=True, slots=True)
class Placement:
    """A policy among the nodes of a pool. EINVAL for a node that the pool has not."""

    policy: Policy
    distances: Distances = field(compare=False, repr=False)
    _pattern: tuple[Zones, ...] = field(init=False, compare=False, repr=False)
    """Of consecutive pages, from page 0 of the file on."""

    def __post_init__(self) -> None:
        count, policy = len(self.distances.rows), self.policy
        for node in policy.nodes:
            if node >= count:
                there_are = "only node 0 exists" if count == 1 else f"there are 0 to {count - 1}"
                raise Refused(errno.EINVAL, f"policy {policy}: node {node} does not exist: {there_are}")
        object.__setattr__(self, "_pattern", self._zones())

    def _zones(self) -> tuple[Zones, ...]:
        policy, distances = self.policy, self.distances
        everywhere = distances.zonelist(LOCAL_NODE)
        nearest = distances.nearest(LOCAL_NODE, policy.nodes)
        if policy.mode in _INTERLEAVED:
            weights = policy.weights or (1,) * len(policy.nodes)
            shares = zip(policy.nodes, weights, strict=True)
            return tuple(zones for node, weight in shares for zones in [Zones(distances.zonelist(node), True)] * weight)
        if policy.mode is Mode.BIND:
            return (Zones(nearest, policy=str(policy)),)
        if policy.mode is Mode.PREFERRED:
            return (Zones(distances.zonelist(policy.nodes[0])),)
        if policy.mode is Mode.PREFERRED_MANY:
            return (Zones((*nearest, *(node for node in everywhere if node not in nearest))),)
        return (Zones(everywhere),)

    def at(self, pgoff: int, order: int, limit: int) -> tuple[Zones, int]:
        """Where the page goes, and how many pages from it on, at most limit, go there too. Frames of 1 << order."""
        pattern = self._pattern
        if len(pattern) == 1:
            return pattern[0], limit
        index = pgoff >> order
        zones, same = pattern[index % len(pattern)], 1
        while same < len(pattern) and pattern[(index + same) % len(pattern)] is zones:
            same += 1
        return zones, min(limit, (index + same << order) - pgoff)


class Policies:
    """Of one file. Where none is set the default holds: the local node, then the nearest."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: IntervalMap[Placement] = IntervalMap()

    def __str__(self) -> str:
        """Words that `parse_ranges` takes."""
        words = [format_range(start, end, placement.policy) for start, end, placement in self._ranges]
        return " ".join(words) or Mode.DEFAULT.value

    def __len__(self) -> int:
        return len(self._ranges)

    def set(self, ranges: list[PolicyRange], distances: Distances) -> "Policies":
        """Others, with these policies besides. EINVAL for unknown nodes; ENOMEM for more than one file may have."""
        changed = Policies()
        changed._ranges = self._ranges.copy()
        for start, end, policy in ranges:
            if policy.mode is Mode.DEFAULT:
                changed._ranges.cut(start, end)
            else:
                changed._ranges.put(start, end, Placement(policy, distances))
        if len(changed) > MAX_POLICIES_PER_FILE or len(str(changed)) > MAX_POLICIES_TEXT:
            raise Refused(
                errno.ENOMEM, f"a file has at most {MAX_POLICIES_PER_FILE} ranges with policies: join some of them"
            )
        return changed

    def at(self, pgoff: int, order: int, limit: int) -> tuple[Zones | None, int]:
        """Where the page goes (None: as the default says), and for how many pages, at most limit, that is so."""
        found = self._ranges.find(pgoff)
        if found is None:
            following = self._ranges.next_start(pgoff)
            return None, limit if following is None else min(limit, following - pgoff)
        return found[2].at(pgoff, order, min(limit, found[1] - pgoff))
