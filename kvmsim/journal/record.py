"""A machine that records: in the place of the plain one, so that a machine without a journal has nothing to ask."""

import time
from collections.abc import Callable
from typing import cast

from kvmsim.kvm.backing import Backing, Translation
from kvmsim.kvm.machine import Machine
from kvmsim.kvm.mmu.mmu import Mmu, Ticket
from kvmsim.kvm.slots.memslots import Memslot
from kvmsim.kvm.vm import Vm
from kvmsim.memory.memory import Memory
from kvmsim.store.link import Callbacks, StoreLink, pair
from memfsd.common.journal import Journal


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
        link, base = _store_of(ticket.slot)
        if link is not None:
            self._journal.note(
                "installed",
                vm=self._vm,
                ino=link.ino,
                conn=link.conn,
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


class JournaledMachine(Machine):
    """Notes `out`: every vCPU has left the guest, and has an empty TLB, at some time after `since`."""

    def __init__(
        self,
        vm: Vm[Memory, Translation],
        journal: Journal,
        pair: Callable[[int, str, Callbacks, Journal], StoreLink] = pair,
    ) -> None:
        super().__init__(vm, lambda fd, name, callbacks: pair(fd, name, callbacks, journal))
        self._journal = journal

    def _kick_all(self) -> None:
        since = time.monotonic_ns()
        super()._kick_all()
        self._journal.note("out", vm=self.vm.name, since=since)


def _store_of(slot: Memslot) -> tuple[StoreLink | None, int]:
    backing = cast(Backing, slot.backing)
    return backing.link, backing.base
