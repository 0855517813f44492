"""One VM's slots, EPTs and vCPUs: which request is a fault, which an exit."""

import errno

from kvmsim.memory.memory import Memory
from memfsd.common.quote import quoted
from memfsd.uapi.abi import THREAD, Abi, Attributes
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_SLOTS, MAX_VCPUS
from memfsd.uapi.units import ORDER_1G, ORDER_2M, PAGE_SHIFT, PAGE_SIZE, Gfn

from .abi.attributes import MemoryAttributes
from .abi.guest_memfd import GuestMemfdRules
from .abi.rules import Rules
from .abi.thread import ThreadRules
from .alias import PRIVATE, SHARED
from .exits import Exit, MemoryErrorExit, MmioExit
from .export import ExportedPages
from .mmu.mmu import Mmu, PageFault
from .mmu.physmap import PhysMap
from .slots.memslots import Memslot, Memslots
from .vcpu import Vcpu


class Vm:
    """Memslots change under Kvm.slots_lock and Mmu.lock; lookups want Mmu.lock."""

    def __init__(self, name: str, max_slots: int = MAX_SLOTS, abi: Abi = THREAD) -> None:
        self.name = name
        self.abi = abi
        self.max_slots = max_slots
        self.mmu = Mmu(name)
        self.physmap: PhysMap[Memory] = PhysMap()
        self.slots = (Memslots(SHARED), Memslots(PRIVATE))
        """By address space: shared is 0, private is 1, as SMM has its own."""
        self.attributes = MemoryAttributes()
        asks_file = abi.attributes is Attributes.FILE
        self.rules: Rules = (
            GuestMemfdRules(self.slots, self.attributes, asks_file=asks_file)
            if abi.has_one_space
            else ThreadRules(self.slots)
        )
        self.exports = ExportedPages()
        """Private pages that the store has swapped out. Guarded by Mmu.lock."""
        self.vcpus: dict[int, Vcpu] = {}
        self.create_vcpu(0)
        self._has_private_memory: bool | None = None
        self.exit_hypercalls = 0
        """KVM_CAP_EXIT_HYPERCALL: a bit for each hypercall that user space answers."""

    def be_of_type(self, *, private_memory: bool) -> None:
        """kvm_arch_has_private_mem(): where the VM keeps the attributes, one with private memory has no file that is
        born shared. Linux knows which it is from KVM_CREATE_VM on; here the first use decides. EINVAL; call with
        Kvm.slots_lock held."""
        if self.abi.attributes is not Attributes.VM:
            return
        if self._has_private_memory not in (None, private_memory):
            has = "private memory" if self._has_private_memory else "a guest_memfd that is born shared (INIT_SHARED)"
            way_out = "use another VM, or abi gmem-inplace"
            raise Refused(errno.EINVAL, f"VM {quoted(self.name)} has {has}, and never gets both: {way_out}")
        self._has_private_memory = private_memory

    def create_vcpu(self, id_: int) -> Vcpu:
        """EINVAL beyond the cap, EEXIST twice: KVM_CREATE_VCPU."""
        if not 0 <= id_ < MAX_VCPUS:
            raise Refused(errno.EINVAL, f"vCPU {id_}: choose 0 to {MAX_VCPUS - 1}")
        if id_ in self.vcpus:
            raise Refused(errno.EEXIST, f"vCPU {id_} of VM {quoted(self.name)} exists: choose another id")
        vcpu = Vcpu(id_, self.name, self.rules.reported)
        with self.mmu.lock:
            self.mmu.tlbs.append(vcpu.tlb)
        self.vcpus[id_] = vcpu
        return vcpu

    def vcpu(self, id_: int) -> Vcpu:
        found = self.vcpus.get(id_)
        if found is None:
            raise Refused(errno.EINVAL, f"VM {quoted(self.name)} has no vCPU {id_}: create it with 'vcpu {id_}'")
        return found

    def fault(self, gfn: Gfn, *, private: bool, write: bool, offset: int, length: int) -> PageFault | Exit:
        """An EPT violation (implicit request): the fault to handle it, or the exit. The sequence is read first.

        offset and length: the bytes of the access in its page, for the exits.
        """
        mmu = self.mmu
        seq = mmu.invalidate_seq
        source = self.rules.source_of(gfn, private=private)
        if isinstance(source, MemoryErrorExit):
            return source
        if source is not None:
            slot, start, end = source
            if slot.writable or not write:
                if mmu.in_progress:
                    start, end = mmu.clear_of_brackets(gfn, start, end)
                order = slot.max_order
                if order:
                    order, end = _largest_leaf(order, gfn, start, end)
                if slot.dirty is not None:
                    return _logged(slot, gfn, end, seq, write=write)
                return PageFault(gfn, private, slot, slot.pgoff + gfn - slot.gfn, end - gfn, slot.writable, seq, order)
        return MmioExit((gfn << PAGE_SHIFT) + offset, min(length, 8, PAGE_SIZE - offset), write)


def _logged(slot: Memslot, gfn: Gfn, end: Gfn, seq: int, *, write: bool) -> PageFault:
    """A page of a slot with a dirty log: read-only until it is written, and then it alone is writable, and dirty."""
    assert slot.dirty is not None
    if write:
        slot.dirty.mark(gfn - slot.gfn, gfn - slot.gfn + 1)
        end = gfn + 1
    return PageFault(gfn, False, slot, slot.pgoff_of(gfn), end - gfn, slot.writable and write, seq, 0)


def _largest_leaf(max_order: int, gfn: Gfn, start: Gfn, end: Gfn) -> tuple[int, Gfn]:
    """Order of the largest leaf around gfn inside [start, end), and where a run of such leaves has to end.

    It ends where a larger leaf may begin, or else it would be in its way.
    """
    limit = ORDER_1G
    for order in (ORDER_1G, ORDER_2M):
        size = 1 << order
        block = gfn & -size
        if order <= max_order and start <= block and block + size <= end:
            return order, min(end, (gfn | (1 << limit) - 1) + 1)
        limit = order
    return 0, min(end, (gfn | (1 << ORDER_2M) - 1) + 1)
