"""The host attacks a VM: somebody who has a window writes into a private page's frame."""

import errno

from kvmsim.memory.memory import WindowMemory
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .alias import PRIVATE
from .vm import Vm


def tamper(vm: Vm, gpa: int, data: bytes) -> None:
    """Bytes as they are over what the window holds of private memory at gpa. ENOENT: a page of it has no frame, and
    nothing was written. EFAULT: the hardware stops the writer."""
    first, last = gpa >> PAGE_SHIFT, gpa + len(data) - 1 >> PAGE_SHIFT
    with vm.mmu.lock:
        frames = [_frame(vm, Gfn(gfn)) for gfn in range(first, last + 1)]
        for memory, frame in frames:
            skip = gpa % PAGE_SIZE
            memory.tamper((frame << PAGE_SHIFT) + skip, data[: PAGE_SIZE - skip])
            data, gpa = data[PAGE_SIZE - skip :], gpa + PAGE_SIZE - skip


def _frame(vm: Vm, gfn: Gfn) -> tuple[WindowMemory, int]:
    """Also where the page is blocked."""
    for _, pfn, _ in [*vm.mmu.epts[PRIVATE].runs(gfn, Gfn(gfn + 1)), *vm.mmu.blocked.runs(gfn, Gfn(gfn + 1))]:
        memory, frame = vm.physmap.find(pfn)
        assert isinstance(memory, WindowMemory)
        return memory, frame
    raise Refused(errno.ENOENT, f"gpa {gfn << PAGE_SHIFT:#x} has no frame: let the guest touch it first")
