"""A conversion design of your own: punch, but private frames go back to the store 32 pages at a time."""

import contextlib

import kvmsim
import memfsd
from kvmsim.vmm.conversion.design import all_shared_or, give_back, page_count
from kvmsim.vmm.conversion.punch import Punch
from kvmsim.vmm.ram import PrivatePiece
from memfsd.uapi.units import Gfn

PARKED_PAGES = 32


class Parked:
    """What is converted to shared waits, blocked, until enough of it can go at once."""

    name = "parked"

    def __init__(self, memory: kvmsim.GuestMemory, copy: kvmsim.SharedCopy, tally: kvmsim.Tally) -> None:
        self._memory, self._copy, self._tally = memory, copy, tally
        self._punch = Punch(memory, copy, tally)
        self._parked: list[PrivatePiece] = []

    def to_shared(self, start: Gfn, end: Gfn) -> int | None:
        memory, ram = self._memory, self._memory.ram
        pieces = ram.private.visible(start, end)
        if not all_shared_or(pieces, ram, start, end):
            return None
        with kvmsim.Transaction() as transaction:
            for low, high in ram.shared.missing(start, end):
                self._copy.add(low, high)
                transaction.did(self._copy.remove, low, high)
            for region, low, high in pieces:
                memory.hide(region.id, low, high)  # blocked: its contents stay, and nobody reaches them
                transaction.did(memory.fill_slot, region.id, low, high)
        self._parked += pieces
        if page_count(self._parked) >= PARKED_PAGES:
            with contextlib.suppress(kvmsim.Refused):  # the next conversion tries again
                self._give_back()
        return page_count(pieces)

    def to_private(self, start: Gfn, end: Gfn) -> int | None:
        self._give_back()  # what becomes private again is zero
        return self._punch.to_private(start, end)

    def _give_back(self) -> None:
        give_back(self._memory, self._tally, sorted(self._parked, key=lambda piece: piece.start))
        self._parked.clear()


def swiotlb(cpu: kvmsim.Cpu) -> kvmsim.Program[None]:
    """A guest that shares 48 pages one by one, as a driver allocates them."""
    yield from cpu.touch(0, 1 << 20)
    for page in range(48):
        yield from cpu.map_gpa(page << 12, 0x1000, private=False)
        yield from cpu.write(page << 12, b"bounce", shared=True)


with memfsd.mounted(size="16M") as store:
    for name in ("punch", "parked"):
        with kvmsim.VM(policy="punch") as vm:
            if name == "parked":
                vm.set_design(Parked)
            vm.set_user_memory_region(0, 0, 1 << 20, guest_memfd=store.create(name, "1M"))
            vm.create_vcpu().execute(swiotlb)
            print(f"{vm.policy:6} held twice: {vm.memory()['doubled'] >> 12:2} pages", end=", ")
            print(f"private frames: {store.stat(name).frames['private']}, rules broken: {store.check()}")
