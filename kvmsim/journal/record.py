"""A kvm that records: in the place of the plain one, so that a kvm without a journal has nothing to ask."""

import time
from collections.abc import Callable

from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.mmu.mmu import Mmu, Ticket
from kvmsim.kvm.unmapper import Unmapper
from kvmsim.kvm.vm import Vm
from kvmsim.store.link import Callbacks, StoreLink
from kvmsim.store.link import pair as pair_with_store
from memfsd.common.journal import Journal
from memfsd.uapi.limits import MAX_SLOTS

JournaledPair = Callable[[int, str, Callbacks, Journal], StoreLink]


class JournaledMmu(Mmu):
    """Notes `zapped`, `kept` and `installed`, of private memory, with Mmu.lock held: the order is the true one."""

    def __init__(self, journal: Journal, vm: str) -> None:
        super().__init__()
        self._journal = journal
        self._vm = vm

    def install(self, ticket: Ticket, pfn: int, count: int) -> bool:
        if not super().install(ticket, pfn, count):
            return False
        self._installed(ticket, 0, pfn, min(count, ticket.limit))
        return True

    def install_large(self, ticket: Ticket, pfn: int, count: int, order: int) -> bool:
        if not super().install_large(ticket, pfn, count, order):
            return False
        ahead = ticket.gfn & (1 << order) - 1
        self._installed(ticket, ahead, pfn, min(count, ticket.limit + ahead) >> order << order)
        return True

    def _installed(self, ticket: Ticket, ahead: int, pfn: int, pages: int) -> None:
        gmem, base = ticket.slot.backing.gmem, ticket.slot.backing.base
        if gmem is not None:
            self._journal.note(
                "installed",
                vm=self._vm,
                ino=gmem.ino,
                conn=gmem.conn,
                gfn=ticket.gfn - ahead,
                pgoff=ticket.pgoff - ahead,
                pfn=pfn - base,
                pages=pages,
            )

    def _unmap(self, start: int, end: int, private: bool) -> list[tuple[int, int, int]]:
        runs = super()._unmap(start, end, private)
        if private:
            self._journal.note("zapped", vm=self._vm, start=start, end=end, kept=[])
        return runs

    def zap_untouched(self, start: int, end: int) -> list[tuple[int, int]]:
        kept = super().zap_untouched(start, end)
        self._journal.note("zapped", vm=self._vm, start=start, end=end, kept=kept)
        return kept


class JournaledUnmapper(Unmapper):
    """Notes `out`: every vCPU has left the guest, and has an empty TLB, at some time after `since`."""

    def __init__(self, vm: Vm, journal: Journal) -> None:
        super().__init__(vm)
        self._journal = journal

    def kick_all(self) -> None:
        since = time.monotonic_ns()
        super().kick_all()
        self._journal.note("out", vm=self.vm.name, since=since)


def journaled(name: str, journal: Journal, max_slots: int = MAX_SLOTS, pair: JournaledPair = pair_with_store) -> Kvm:
    """A VM that records."""
    vm = Vm(name, max_slots, JournaledMmu(journal, name))
    return Kvm(vm, lambda fd, vm_name, callbacks: pair(fd, vm_name, callbacks, journal), JournaledUnmapper(vm, journal))
