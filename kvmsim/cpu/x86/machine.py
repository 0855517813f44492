"""What the vCPUs of a VM that run machine code have in common: page tables, memory by frame, whose turn it is."""

import ctypes
from collections import deque
from dataclasses import dataclass

from kvmsim.kvm.kvm import Kvm
from kvmsim.memory.memory import Memory
from memfsd.common import sync

from . import _fill
from .layout import MAX_REGIONS, RegionKind, VcpuState, VmState


@dataclass(frozen=True, slots=True)
class Ram:
    """Frames [first, end) of the host, which are `memory`'s from its frame `offset`, and this process has at `host`."""

    first: int
    end: int
    host: int
    memory: Memory
    offset: int
    kind: RegionKind


class Machine:
    """The regions change in somebody's turn; so no vCPU walks them meanwhile."""

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self.state = VmState()
        self._address = ctypes.addressof(self.state)
        self.turns = Turns(self.state)
        self._ram: list[Ram] = []
        self._seen_changes = -1
        self.version = 0
        """Of the regions."""
        shared, private = kvm.walking.begin(self)
        self.state.tables[0], self.state.tables[1] = shared, private
        self._states: list[VcpuState] = []

    def add(self, vcpu: VcpuState) -> None:
        """In somebody's turn."""
        vcpu.vm = self._address
        self._states.append(vcpu)
        self.state.vcpus[len(self._states) - 1] = ctypes.addressof(vcpu)
        self.state.vcpu_count = len(self._states)

    # -- the gate of the page tables

    def close(self) -> None:
        _fill.close_gate(self._address)

    def open(self) -> None:
        _fill.open_gate(self._address)

    # -- memory

    def ram(self) -> list[Ram]:
        """What is known of it; in somebody's turn. What has gone has been dropped."""
        changes = self._kvm.walking.memory_changes
        if changes != self._seen_changes:
            self._seen_changes = changes
            self._set([ram for ram in self._ram if self._is_there(ram)])
        return self._ram

    def find(self, pfn: int) -> Ram | None:
        """The part of a memory around a frame, which is known from now on. None: its memory has gone."""
        known = next((ram for ram in self._ram if ram.first <= pfn < ram.end), None)
        return known or self._add(pfn)

    def _add(self, pfn: int) -> Ram | None:
        found = self._kvm.walking.range_of(pfn)
        if found is None:
            return None
        first, end, base, memory = found
        mapping = memory.mapping(pfn - base)
        if mapping is None:
            kind, host = RegionKind.WAITS if memory.waits else RegionKind.COPIED, 0
        else:
            low, high, address = mapping
            kind, host = RegionKind.DIRECT, address + (max(first - base, low) - low << 12)
            first, end = max(first, base + low), min(end, base + high)
        ram = Ram(first, end, host, memory, first - base, kind)
        self._set([*self._ram[-(MAX_REGIONS - 1) :], ram])
        return ram

    def _is_there(self, ram: Ram) -> bool:
        found = self._kvm.walking.range_of(ram.first)
        return found is not None and found[3] is ram.memory and found[2] + ram.offset == ram.first

    def _set(self, ram: list[Ram]) -> None:
        if ram != self._ram:
            self._ram = ram
            self.version += 1
            for region, one in zip(self.state.regions, ram, strict=False):
                region.pfn, region.end, region.host, region.kind = one.first, one.end, one.host, one.kind
            self.state.region_count = len(ram)


class Turns:
    """One vCPU at a time runs machine code, so that LOCK is atomic; in the order in which they came.

    `with turns` is a turn; whose turn it is may take it again inside.
    """

    def __init__(self, state: VmState) -> None:
        self._state = state
        self._changed = sync.condition("Turns.changed", sync.lock("Turns.lock"))
        self._queue: deque[int] = deque()
        """Threads; the first one has the turn."""
        self._depth = 0

    def __enter__(self) -> None:
        me, queue = sync.current(), self._queue
        with self._changed:
            if not self._depth or queue[0] != me:
                queue.append(me)
                if len(queue) > 1:
                    self._state.waiting = len(queue) - 1
                    while queue[0] != me:
                        self._changed.wait()
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        queue = self._queue
        with self._changed:
            self._depth -= 1
            if not self._depth:
                queue.popleft()
                if queue:
                    self._state.waiting = len(queue) - 1
                    self._changed.notify_all()
