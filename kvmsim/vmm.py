"""The VMM side: user space that handles exits under a policy, and keeps the shared copy of memory.

Policy `none` handles nothing. Policy `punch` converts: to shared by a hole in the private slot (the thread's
proposed ioctl), whose frames go back to the store at once, and an ordinary slot over the VMM's shared memory; to
private by the inverse. So a page is never held twice.
"""

import errno
from collections.abc import Callable
from typing import TypeVar

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE

from .core.exits import Exit, MemoryErrorExit, MmioExit
from .core.memslots import Memslot
from .core.vm import GPA_END
from .machine import Machine, backing_of
from .memory import SparseMemory, punch_file

R = TypeVar("R")

POLICIES = ("none", "punch")


class Vmm:
    """One VM's user space. Called from one thread at a time."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.policy = "none"
        self.converted_count = 0
        self._shared: SparseMemory | None = None

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
            result = action()
            if not isinstance(result, MmioExit | MemoryErrorExit) or result == last or not self._handle(result):
                return result
            last = result

    def _handle(self, exit_: Exit) -> bool:
        if self.policy == "none" or not isinstance(exit_, MemoryErrorExit) or exit_.illegal or exit_.errno:
            return False
        start, end = exit_.gpa >> PAGE_SHIFT, -(-(exit_.gpa + exit_.size) // PAGE_SIZE)
        changed = self._to_private(start, end) if exit_.private else self._to_shared(start, end)
        self.converted_count += changed
        return changed > 0

    def _to_shared(self, start: int, end: int) -> int:
        """Pages of [start, end) that private slots showed and now an ordinary slot shows."""
        vm, changed = self._machine.vm, 0
        for slot, low, high in self._visible(start, end, private=True):
            gpa, size = low << PAGE_SHIFT, high - low << PAGE_SHIFT
            self._machine.punch_slot(slot.id, gpa, size)
            link = backing_of(slot).link
            assert link is not None
            try:
                punch_file(link.fd, slot.pgoff_of(low) << PAGE_SHIFT, size)
                self._machine.set_shared_slot(
                    self._free_id(), gpa, size, 0, self._shared_memory(), gpa, owned=False, path="(vmm)"
                )
            except Refused:
                if vm.slots[False].overlaps(low, high) == []:
                    self._machine.fill_slot(slot.id, low, high)
                raise
            changed += high - low
        return changed

    def _to_private(self, start: int, end: int) -> int:
        """Pages of [start, end) that lie in holes of private slots and are private again."""
        changed = 0
        for slot in list(self._machine.vm.slots[True]):
            for low, high in _holes(slot, start, end):
                self._remove_shared(low, high)
                self._machine.fill_slot(slot.id, low, high)
                self._shared_memory().discard(low << PAGE_SHIFT, high - low << PAGE_SHIFT)
                changed += high - low
        return changed

    def _remove_shared(self, start: int, end: int) -> None:
        """Take [start, end) out of the VMM's ordinary slots; what is around it stays, with its data."""
        for slot, _, _ in self._visible(start, end, private=False):
            if backing_of(slot).memory is not self._shared:
                continue
            self._machine.delete_slot(slot.id, private=False)
            for low, high in ((slot.gfn, min(start, slot.end)), (max(end, slot.gfn), slot.end)):
                if low < high:
                    self._machine.set_shared_slot(
                        self._free_id(),
                        low << PAGE_SHIFT,
                        high - low << PAGE_SHIFT,
                        0,
                        self._shared_memory(),
                        low << PAGE_SHIFT,
                        owned=False,
                        path="(vmm)",
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
