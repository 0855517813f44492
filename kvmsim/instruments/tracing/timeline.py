"""Happenings as what a viewer draws: tracks, slices on them, instants, flows between them, and counters.

    process kvmsim     vm0 vCPU 0     a slice from each kvm_exit to its kvm_entry, in it one for user space
                       vm0            a slice from INVALIDATE_BEGIN to its acknowledgement
                       shared, doubled
    process memfsd     store          grants, bindings, frames freed
                       inode 2        a slice for each invalidation, in it one for the wait for its acknowledgement
                       pool, private, pending

A flow leads from the store's BEGIN to the VM's slice, and from there to the acknowledgement.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from memfsd.common.traceevents import POOL_STATES

from .reader import Happening, Value

_PAGE_BYTES = 4096


class Kind(Enum):
    """What a track holds."""

    PROCESS = "process"
    SLICES = "slices"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Track:
    """uuid: of this place in any timeline. parent: of its process. pid: of a process."""

    uuid: int
    kind: Kind
    name: str
    parent: int = 0
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Begin:
    """Of a slice, which its track's next End ends."""

    t: int
    track: int
    name: str
    values: dict[str, Value] = field(default_factory=dict)
    flow: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """Of the slice that began last on this track."""

    t: int
    track: int


@dataclass(frozen=True, slots=True)
class Instant:
    """ends_flow: the flow comes to its end here."""

    t: int
    track: int
    name: str
    values: dict[str, Value] = field(default_factory=dict)
    ends_flow: int = 0


@dataclass(frozen=True, slots=True)
class Count:
    """From t on."""

    t: int
    track: int
    value: int


Item = Track | Begin | End | Instant | Count


def timeline(happenings: Iterable[Happening]) -> Iterator[Item]:
    """A track comes before what is on it; every slice ends."""
    drawer = _Drawer()
    for happening in happenings:
        drawer.draw(happening)
        yield from drawer.taken()
    drawer.finish()
    yield from drawer.taken()


class _Drawer:
    def __init__(self) -> None:
        self._items: list[Item] = []
        self._tracks: set[int] = set()
        self._open: dict[int, int] = {}
        """Open slices by track."""
        self._t = 0

    def taken(self) -> list[Item]:
        items, self._items = self._items, []
        return items

    def finish(self) -> None:
        for track in list(self._open):
            self._end_all(self._t, track)

    def draw(self, it: Happening) -> None:
        self._t = max(self._t, it.t)
        if it.name.endswith(("_send", "_receive")) and "channel" in it.values:
            self._message(it)
        elif it.name == "memfsd_pool":
            self._pool(it)
        elif it.name == "kvmsim_memory":
            for name in ("shared", "doubled"):
                self._count(it, f"{it.vm} {name}", int(it.values[name]) * _PAGE_BYTES)
        elif it.vcpu >= 0:
            self._vcpu(it)
        elif it.name == "memfsd_invalidate_begin":
            self._begin(it, self._file(it), "invalidate")
        elif it.name == "memfsd_invalidate_end":
            self._end_all(it.t, self._file(it))
        elif it.side == "memfsd":
            self._instant(it, self._track(it, "store"))
        else:
            self._instant(it, self._track(it, it.vm))

    def _vcpu(self, it: Happening) -> None:
        track = self._track(it, f"{it.vm} vCPU {it.vcpu}")
        if it.name == "kvm_entry":
            self._end_all(it.t, track)
        elif it.name == "kvm_exit":
            self._end_all(it.t, track)
            self._begin(it, track, str(it.values.get("exit_reason", it.name)))
        elif it.name == "kvm_userspace_exit":
            self._begin(it, track, str(it.values.get("reason", it.name)))
        else:
            self._instant(it, track)

    def _message(self, it: Happening) -> None:
        kind, channel, is_reply = str(it.values["kind"]), it.values["channel"], bool(it.values["reply"])
        is_store = it.side == "memfsd"
        if channel != "up":
            if not is_store and not is_reply:
                self._begin(it, self._track(it, f"{it.vm} asks"), kind)
            elif not is_store:
                self._end(it.t, self._track(it, f"{it.vm} asks"))
            return
        track = self._file(it) if is_store else self._track(it, it.vm)
        flow = _flow(it, is_store) if kind == "INVALIDATE_BEGIN" else 0
        if not is_reply:
            self._begin(it, track, kind, flow)
            return
        self._end(it.t, track)
        if is_store and flow:
            self._items.append(Instant(it.t, track, "acknowledged", it.values, flow))

    def _pool(self, it: Happening) -> None:
        frames = {state: int(it.values[state]) for state in POOL_STATES if state in it.values}
        self._count(it, "pool", (sum(frames.values()) - frames.get("free", 0)) * _PAGE_BYTES)
        for state in ("private", "pending"):
            self._count(it, state, frames.get(state, 0) * _PAGE_BYTES)

    def _file(self, it: Happening) -> int:
        return self._track(it, f"inode {it.values.get('ino', -1)}")

    def _process(self, it: Happening) -> int:
        uuid = _uuid(it.side, it.pid)
        if uuid not in self._tracks:
            self._tracks.add(uuid)
            self._items.append(Track(uuid, Kind.PROCESS, it.side, pid=it.pid))
        return uuid

    def _track(self, it: Happening, name: str, kind: Kind = Kind.SLICES) -> int:
        parent = self._process(it)
        uuid = _uuid(parent, name, kind.value)
        if uuid not in self._tracks:
            self._tracks.add(uuid)
            self._items.append(Track(uuid, kind, name, parent))
        return uuid

    def _begin(self, it: Happening, track: int, name: str, flow: int = 0) -> None:
        self._open[track] = self._open.get(track, 0) + 1
        self._items.append(Begin(it.t, track, name, it.values, flow))

    def _instant(self, it: Happening, track: int) -> None:
        self._items.append(Instant(it.t, track, it.name, it.values))

    def _count(self, it: Happening, name: str, value: int) -> None:
        self._items.append(Count(it.t, self._track(it, name, Kind.COUNTER), value))

    def _end(self, t: int, track: int) -> None:
        """A reply whose request was before the trace began ends nothing."""
        if self._open.get(track):
            self._open[track] -= 1
            self._items.append(End(t, track))

    def _end_all(self, t: int, track: int) -> None:
        while self._open.get(track):
            self._end(t, track)


def _flow(it: Happening, is_store: bool) -> int:
    """The same at both ends."""
    peer = int(it.values.get("peer", -1))
    store, vm = (it.pid, peer) if is_store else (peer, it.pid)
    return _uuid("flow", store, vm, it.values.get("ino", -1), it.values["id"])


def _uuid(*parts: object) -> int:
    """63 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1 | 1
