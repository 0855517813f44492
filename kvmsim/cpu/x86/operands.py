"""An instruction whose operand lies where the CPU does not reach it: a device, or a file that is read by system calls.

The operand is read as any access of a guest reads it (an exit, a fault, a system call), put into a scratch page that
the instruction finds in its place, and the instruction is stepped; what it has written there is then written the same
way. So every instruction works, and each byte is read and written once, whatever exits lie between.
"""

from collections.abc import Iterator

from kvmsim.cpu.accesses import Guest
from kvmsim.kvm.vcpu import Program, Vcpu
from memfsd.uapi.units import PAGE_SIZE

from .decode import Operand
from .engine import Engine
from .layout import MAX_SCRATCH

Piece = tuple[int, int, int]
"""(virtual address, guest physical address, bytes), within a page."""


class Bounced:
    """One instruction's operands: those that touch a page which cannot be reached are read and written by hand."""

    def __init__(self, engine: Engine, operands: list[Operand]) -> None:
        self._engine = engine
        self._operands = operands
        self._pages: dict[int, int] = {}
        """Virtual pages that have a scratch page, with the guest physical address of each."""
        self._read: set[tuple[int, int]] = set()

    def add(self, va: int, gpa: int) -> bool:
        """This page cannot be reached. False: no operand explains the access."""
        page = va & -PAGE_SIZE
        if page in self._pages or len(self._pages) == MAX_SCRATCH:
            return False
        if not any(page in operand.pages() for operand in self._operands):
            return False
        self._pages[page] = gpa & -PAGE_SIZE
        return True

    def next_page(self) -> int | None:
        """A page beside those: an operand that is bounced is bounced whole. None: all have a place."""
        for operand in self._bounced():
            for page in operand.pages():
                if page not in self._pages:
                    return page
        return None

    def fill(self, guest: Guest, vcpu: Vcpu) -> Program[None]:
        """Each operand that is read, once."""
        for operand in self._bounced():
            for va, gpa, length in self._pieces(operand):
                if operand.reads and (va, length) not in self._read:
                    data = yield from guest.reading(vcpu, gpa, length)
                    self._read.add((va, length))
                    self._view(va, length)[:] = data

    def drain(self, guest: Guest, vcpu: Vcpu) -> Program[None]:
        """After the step: each operand that was written."""
        taken = [
            (gpa, bytes(self._view(va, length)))
            for operand in self._bounced()
            if operand.writes
            for va, gpa, length in self._pieces(operand)
        ]
        for gpa, data in taken:
            yield from guest.writing(vcpu, gpa, data)

    def show(self) -> None:
        """The instruction finds the scratch pages in place of its operand."""
        state, copies = self._engine.state, self._engine.copies
        for at, page in enumerate(self._pages):
            state.scratch[at].va, state.scratch[at].paddr = page, copies.scratch_paddr(at)
        state.scratch_count = len(self._pages)
        self._engine.flush_tlb()

    def hide(self) -> None:
        self._engine.state.scratch_count = 0
        self._engine.flush_tlb()

    def _bounced(self) -> list[Operand]:
        return [operand for operand in self._operands if any(page in self._pages for page in operand.pages())]

    def _pieces(self, operand: Operand) -> Iterator[Piece]:
        end = operand.va + operand.length
        for page in operand.pages():
            low, high = max(operand.va, page), min(end, page + PAGE_SIZE)
            yield low, self._pages[page] + low - page, high - low

    def _view(self, va: int, length: int) -> memoryview:
        at = list(self._pages).index(va & -PAGE_SIZE)
        return self._engine.copies.scratch(at)[va % PAGE_SIZE : va % PAGE_SIZE + length]
