"""KVM_CREATE_GUEST_MEMFD's files of a VM, and KVM_SET_USER_MEMORY_REGION2 with both memories in one slot.

A file belongs to its VM from its creation on, and its pairing ends when the file is closed, not with its last slot.
Slots that remain then have nothing to show: EFAULT.
"""

import errno
import os
import threading
from dataclasses import replace

from kvmsim.memory.mapped import MapFile
from kvmsim.memory.memory import AnonymousMemory, Memory, UnmappedMemory
from kvmsim.store.link import FileId, StoreLink
from memfsd.common.quote import quoted
from memfsd.uapi.abi import Attributes, GmemFlag
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT

from .abi.region2 import check_region2
from .alias import PRIVATE, SHARED
from .ioctls import SlotIoctls, slot_over
from .pairings import PairedFile, Pairings
from .region import GmemFd, MemoryRegion, Region2, SlotFlag, Userspace
from .slots.backing import SlotBacking
from .slots.memslots import RegionChange, check_addressable
from .unmapper import Unmapper
from .vm import Vm

_NOWHERE = MemoryRegion.private(0, 0, 0)
_S64_END = 1 << 63


class GuestMemfds:
    """`lock` is Kvm.slots_lock."""

    def __init__(
        self,
        vm: Vm,
        lock: threading.Lock,
        unmapper: Unmapper,
        pairings: Pairings,
        slots: SlotIoctls,
        map_file: MapFile,
    ) -> None:
        self._vm = vm
        self._lock = lock
        self._unmapper = unmapper
        self._pairings = pairings
        self._slots = slots
        self._regions: dict[int, Region2] = {}
        self._map_file = map_file
        self._mapped: dict[FileId, Memory] = {}
        """Of the files whose shared pages slots show."""
        self._emulated: dict[int, Memory] = {}
        """By slot: owned memory at userspace_addr, where the guest does not reach it."""

    # -- files

    def own(self, file: GmemFd) -> None:
        """It belongs to this VM from now on. EINVAL: no guest_memfd, another VM's, or of another ABI."""
        with self._lock:
            self._check_abi()
            self._backing(file, _NOWHERE)

    def _backing(self, file: GmemFd, region: MemoryRegion) -> SlotBacking:
        """Pairings.backing; EINVAL for what is born shared, in a VM with private memory."""
        backing = self._pairings.backing(os.dup(file.fd), file.name, region)
        link = backing.gmem
        assert isinstance(link, StoreLink)
        if GmemFlag.INIT_SHARED in link.gmem_flags:
            try:
                self._vm.be_of_type(private_memory=False)
            except Refused as refused:
                self._pairings.end_unused(link)
                raise Refused(refused.errno, f"{quoted(file.name)}: {refused.reason}") from None
        return backing

    def release(self, file: FileId) -> None:
        """User space has closed its last descriptor: all is zapped, the slots lose the file, and it goes. As
        kvm_gmem_release()."""
        with self._lock:
            link = self._pairings.links.get(file)
            if link is None:
                return
            for id_ in {slot.id for slot, _, _ in self._vm.slots[PRIVATE].of_file(link)}:
                self._take_private(id_, is_closed=True)
            self._pairings.end_unused(link)
            mapped = self._mapped.pop(file, None)
            if mapped is not None:
                mapped.close()

    # -- slots

    def set_region2(self, region: Region2, userspace: Userspace, file: GmemFd | None = None) -> PairedFile | None:
        """Create, move, re-flag or (size 0) delete. Takes an owned memory. file: None is a bad descriptor.

        KVM's checks in KVM's order, then EEXIST where another slot is, then the file's: EBADF, EINVAL no guest_memfd,
        another VM's, past its end, EINVAL or EEXIST (Abi.bound_twice) bound already; EINVAL past the last GPA.
        """
        taken = False
        try:
            with self._lock:
                self._check_abi()
                existing = self._regions.get(region.slot)
                change = check_region2(region, self._vm.max_slots, existing)
                if change is RegionChange.DELETE:
                    self._delete(region.slot)
                    return None
                paired = None
                if change is RegionChange.CREATE:
                    paired = self._create(region, userspace, file)
                    taken = True
                elif change is not RegionChange.NONE:
                    shown = self._vm.slots[SHARED].get(region.slot)
                    assert shown is not None
                    self._slots.change_shared(shown, region.shared_half(shown.pgoff << PAGE_SHIFT))
                self._regions[region.slot] = region
                return paired
        finally:
            if userspace.owned and not taken:
                userspace.memory.close()

    def forget(self) -> None:
        """The VM ends: its slots and pairings have gone."""
        self._regions.clear()
        for mapped in self._mapped.values():
            mapped.close()
        self._mapped.clear()
        for memory in self._emulated.values():
            memory.close()
        self._emulated.clear()

    def _check_abi(self) -> None:
        if not self._vm.rules.has_one_space:
            raise Refused(
                errno.ENOTTY,
                f"a VM of abi {self._vm.abi.name} has no guest_memfd: use slot set, or kvmsim --abi gmem-6.18",
            )

    def _create(self, region: Region2, userspace: Userspace, file: GmemFd | None) -> PairedFile | None:
        self._vm.slots[SHARED].check_free(region.gfn, region.end)
        if not region.has_gmem:
            memory, offset, path, owned = userspace.memory, userspace.offset, userspace.name, userspace.owned
            self._slots.create_shared(region.shared_half(offset), memory, owned, path)
            return None
        if file is None:
            raise Refused(errno.EBADF, "that is no open guest_memfd: gmem create or gmem open one")
        if self._vm.abi.has_signed_offsets and region.offset < _S64_END <= region.offset + region.size:
            self._backing(file, _NOWHERE)
            self._create_past_the_end(region, file.name)
            if userspace.owned:
                self._emulated[region.slot] = userspace.memory
            return None
        backing = self._backing(file, region.private_half())
        half = region.private_half()
        check_addressable(half)
        slot = slot_over(half, SlotFlag.GUEST_MEMFD, backing)
        with self._pairings.announce_change(slot):
            self._pairings.bind(slot, slot.segments)
            # Nothing is mapped before both halves are there: BEGIN finds what it has to zap by the private one.
            with self._unmapper.hold_off_faults(slot.gfn, slot.end):
                try:
                    self._show_shared(region, userspace, backing)
                except (OSError, Refused) as error:
                    self._pairings.forget(slot, slot.segments)
                    if isinstance(error, Refused):
                        raise
                    raise Refused(errno.EINVAL, f"{quoted(file.name)} cannot be mapped: {error.strerror}") from None
                with self._vm.mmu.lock:
                    self._vm.slots[PRIVATE].add(slot)
            shown = self._vm.slots[SHARED].get(region.slot)
            if userspace.owned and shown is not None and shown.backing.emulated is not None:
                self._emulated[region.slot] = userspace.memory
        return self._pairings.name(backing)

    def _create_past_the_end(self, region: Region2, name: str) -> None:
        """A loff_t that wraps is below every size, so the kernel binds what no file has, and makes folios there. Only
        the slot can name them."""
        half = region.shared_half(0)
        check_addressable(half)
        self._slots.create_shared(half, AnonymousMemory(region.size), True, f"{name} (past 2^63)")

    def _show_shared(self, region: Region2, userspace: Userspace, backing: SlotBacking) -> None:
        """KVM_MEMSLOT_GMEM_ONLY: a file that can be mapped is the guest's shared memory, too, and userspace_addr is
        only for KVM's own accesses. Where the host may never map a page (born private, and no attributes in the file),
        only the window has it."""
        link = backing.gmem
        assert isinstance(link, StoreLink)
        if GmemFlag.MMAP not in link.gmem_flags:
            half = region.shared_half(userspace.offset)
            self._slots.create_shared(half, userspace.memory, userspace.owned, userspace.name)
            return
        half, emulated = region.shared_half(region.offset), (userspace.memory, userspace.offset)
        if GmemFlag.INIT_SHARED not in link.gmem_flags and self._vm.abi.attributes is not Attributes.FILE:
            slot = slot_over(half, SlotFlag.GUEST_MEMFD, replace(backing, emulated=emulated))
            with self._vm.mmu.lock:
                self._vm.slots[SHARED].add(slot)
            return
        mapped = self._mapped.get(link.file)
        if mapped is None:
            mapped = self._mapped[link.file] = self._map_file(os.dup(link.fd), link.size)
        self._slots.create_shared(half, mapped, False, backing.path, emulated=emulated)

    def _delete(self, id_: int) -> None:
        if self._vm.slots[PRIVATE].get(id_) is not None:
            self._take_private(id_, is_closed=False)
        else:
            self._slots.delete(id_, private=False)
        emulated = self._emulated.pop(id_, None)
        if emulated is not None:
            emulated.close()
        del self._regions[id_]

    def _take_private(self, id_: int, *, is_closed: bool) -> None:
        """The private half goes, and its contents are the file's. Before the store may take them back the shared half
        goes, too; is_closed: it stays, and where it showed the file it has nothing to show."""
        slot, shown = (self._vm.slots[alias].get(id_) for alias in (PRIVATE, SHARED))
        assert slot is not None
        with self._pairings.announce_change(slot):
            with self._unmapper.deleting(slot.segments):
                with self._vm.mmu.lock:
                    self._vm.slots[PRIVATE].delete(id_)
                self._unmapper.zap(slot.segments, private=True)
                if not is_closed:
                    self._slots.delete(id_, private=False)
                elif shown is not None and shown.backing.emulated is not None:
                    self._slots.replace_shared(shown, UnmappedMemory())
            self._pairings.forget(slot, slot.segments)
