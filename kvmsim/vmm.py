"""The VMM side: user space that handles exits under a policy, and keeps the shared copy of memory.

Policy `none` handles nothing. Policy `punch` converts: to shared by a hole in the private slot (the thread's
proposed ioctl), whose frames go back to the store at once, and an ordinary slot over the VMM's shared memory; to
private by the inverse. So a page is never held twice.
"""

import contextlib
import errno
from collections.abc import Callable
from typing import TypeVar

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE

from .core.exits import Exit, MemoryErrorExit
from .core.memslots import Memslot
from .core.vm import GPA_END
from .inhibit import Inhibitor
from .machine import Machine, backing_of
from .memory import SparseMemory, punch_file

R = TypeVar("R")

POLICIES = ("none", "punch")


class Vmm:
    """One VM's user space: a thread for each vCPU. Exits are handled one at a time, with all vCPUs out of KVM_RUN."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.policy = "none"
        self.converted_count = 0
        self._shared: SparseMemory | None = None
        self.inhibitor = Inhibitor()

    def set_policy(self, name: str) -> None:
        if name not in POLICIES:
            raise Refused(errno.EOPNOTSUPP, f"policy {name} does not exist yet: choose {' or '.join(POLICIES)}")
        self.policy = name

    def run(self, action: Callable[[], R | Exit]) -> R | Exit:
        """KVM_RUN in a loop: run, handle the exit, run again, until done or an exit that the policy leaves.

        Refused: the conversion itself failed, and changed nothing that lasts.
        """
        last: Exit | None = None
        while True:
            before = self.converted_count
            result = action()
            if not isinstance(result, MemoryErrorExit):
                return result
            if self.policy == "none":
                return result
            with self.inhibitor.alone(self._kick_all):
                # Another vCPU's thread may have converted just what this one wants, or have taken it away again.
                alone = self.converted_count == before
                if (alone and result == last) or (not self._handle(result) and alone):
                    return result
            last = result

    def _kick_all(self) -> None:
        for vcpu in list(self._machine.vm.vcpus.values()):
            if vcpu.is_running:
                vcpu.request_exit()

    def _handle(self, exit_: MemoryErrorExit) -> bool:
        if exit_.illegal or exit_.errno:
            return False
        start, end = exit_.gpa >> PAGE_SHIFT, -(-(exit_.gpa + exit_.size) // PAGE_SIZE)
        changed = self._to_private(start, end) if exit_.private else self._to_shared(start, end)
        self.converted_count += changed
        return changed > 0

    def _to_shared(self, start: int, end: int) -> int:
        """Pages of [start, end) that private slots showed and now an ordinary slot shows: all of them, or Refused."""
        done: list[tuple[int, int, int]] = []
        try:
            for slot, low, high in self._visible(start, end, private=True):
                self._machine.punch_slot(slot.id, low << PAGE_SHIFT, high - low << PAGE_SHIFT)
                done.append((slot.id, low, high))
                link = backing_of(slot).link
                assert link is not None
                punch_file(link.fd, slot.pgoff_of(low) << PAGE_SHIFT, high - low << PAGE_SHIFT)
                self._add_shared(low, high)
        except Refused:
            for id_, low, high in done:
                self._remove_shared(low, high)
                with contextlib.suppress(Refused):  # the store is gone, and the slot's memory with it
                    self._machine.fill_slot(id_, low, high)
            raise
        return sum(high - low for _, low, high in done)

    def _to_private(self, start: int, end: int) -> int:
        """Pages of [start, end) that lie in holes of private slots and are private again: all of them, or Refused."""
        holes = [
            (slot.id, low, high) for slot in self._machine.vm.slots[True] for low, high in _holes(slot, start, end)
        ]
        filled: list[tuple[int, int, int]] = []
        removed: list[tuple[int, int]] = []
        try:
            for id_, low, high in holes:
                self._machine.fill_slot(id_, low, high)
                filled.append((id_, low, high))
                removed += self._remove_shared(low, high)
        except Refused:
            for id_, low, high in filled:
                self._machine.punch_slot(id_, low << PAGE_SHIFT, high - low << PAGE_SHIFT)
            for low, high in removed:
                self._add_shared(low, high)
            raise
        for _, low, high in holes:
            self._shared_memory().discard(low << PAGE_SHIFT, high - low << PAGE_SHIFT)
        return sum(high - low for _, low, high in holes)

    def _add_shared(self, start: int, end: int) -> None:
        """An ordinary slot over the VMM's memory, joined with its neighbours: an explicit request is handled only
        where one slot covers all of it, however its pages were converted."""
        slots = self._machine.vm.slots[False]
        slots.check_free(start, end)
        memory = self._shared_memory()
        for slot in slots.overlaps(max(start - 1, 0), end + 1):
            if backing_of(slot).memory is memory:
                self._machine.delete_slot(slot.id, private=False)
                start, end = min(start, slot.gfn), max(end, slot.end)
        self._set_shared(start, end)

    def _remove_shared(self, start: int, end: int) -> list[tuple[int, int]]:
        """Take [start, end) out of the VMM's ordinary slots; what is around it stays, with its data. What was taken.

        ENOSPC, before anything is changed, when a slot would be split and no id is free.
        """
        doomed = [
            slot for slot, _, _ in self._visible(start, end, private=False) if backing_of(slot).memory is self._shared
        ]
        if any(slot.gfn < start and end < slot.end for slot in doomed):
            self._free_id()
        for slot in doomed:
            self._machine.delete_slot(slot.id, private=False)
            for low, high in ((slot.gfn, min(start, slot.end)), (max(end, slot.gfn), slot.end)):
                if low < high:
                    self._set_shared(low, high)
        return [(max(slot.gfn, start), min(slot.end, end)) for slot in doomed]

    def _set_shared(self, start: int, end: int) -> None:
        gpa, size = start << PAGE_SHIFT, end - start << PAGE_SHIFT
        self._machine.set_shared_slot(
            self._free_id(), gpa, size, 0, self._shared_memory(), gpa, owned=False, path="(vmm)"
        )

    def _visible(self, start: int, end: int, *, private: bool) -> list[tuple[Memslot, int, int]]:
        slots = self._machine.vm.slots[private]
        return [
            (slot, max(low, start), min(high, end))
            for slot in slots.overlaps(start, end)
            for low, high in list(slot.segments)
            if low < end and high > start
        ]

    def _free_id(self) -> int:
        """The highest free id, away from those that people choose; ENOSPC at the cap."""
        vm = self._machine.vm
        for id_ in range(vm.max_slots - 1, -1, -1):
            if vm.slots[False].get(id_) is None:
                return id_
        raise Refused(errno.ENOSPC, f"all {vm.max_slots} shared slots are in use: raise --max-slots")

    def _shared_memory(self) -> SparseMemory:
        if self._shared is None:
            self._shared = SparseMemory(GPA_END)
        return self._shared

    def shared_pages(self) -> int:
        """Pages that the VMM's shared memory holds."""
        return 0 if self._shared is None else self._shared.populated_count()

    def doubled_pages(self) -> int:
        """Pages held both in the VMM's shared memory and in private memory that the guest has mapped."""
        if self._shared is None:
            return 0
        vm = self._machine.vm
        with vm.mmu.lock:
            return sum(
                count for start, end in self._shared.populated() for _, _, count in vm.mmu.epts[True].runs(start, end)
            )

    def close(self) -> None:
        if self._shared is not None:
            self._shared.close()


def _holes(slot: Memslot, start: int, end: int) -> list[tuple[int, int]]:
    """What a punched slot does not show of [start, end)."""
    holes, at = [], max(slot.gfn, start)
    stop = min(slot.end, end)
    for low, high in slot.segments:
        if low >= stop:
            break
        if low > at:
            holes.append((at, low))
        at = max(at, high)
    return [*holes, (at, stop)] if at < stop else holes
