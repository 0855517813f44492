"""KVM_SET_USER_MEMORY_REGION and what belongs to it: slots made, moved, punched and deleted, and their dirty logs."""

import errno
import os
import threading
from dataclasses import replace

from kvmsim.memory.memory import Memory
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn, GfnRange

from .alias import PRIVATE, SHARED, Alias
from .pairings import PairedFile, Pairings
from .region import MemoryRegion, SlotFlag
from .slots.backing import SlotBacking
from .slots.memslots import Memslot, RegionChange, check_addressable, check_region
from .unmapper import Unmapper
from .vm import Vm


class SlotIoctls:
    """`lock` is held from the checks to the end of what follows from them."""

    def __init__(self, vm: Vm, lock: threading.Lock, unmapper: Unmapper, pairings: Pairings) -> None:
        self._vm = vm
        self._lock = lock
        self._unmapper = unmapper
        self._pairings = pairings

    def set_private_slot(self, region: MemoryRegion, path: str, *, mapped_fd: int | None = None) -> PairedFile | None:
        """Create a private slot (or with size 0 delete it): this is where pairing happens. The file that it shows.

        KVM's checks in KVM's order, then the file's: ENOENT and other errors of open(2), EINVAL not sealed or
        past the end, EPERM another VM's, EEXIST bound already, EINVAL bound at another GFN before.
        The end of GPAs, KVM's last check, comes before pairing and binding: they cannot be undone.
        mapped_fd: of the file behind an encrypted mapping, which the slot shows instead of the file at path.
        """
        assert region.space == PRIVATE
        self._check_abi()
        with self._lock:
            slots = self._vm.slots[PRIVATE]
            existing = slots.get(region.id)
            if check_region(region, self._vm.max_slots, existing) is RegionChange.DELETE:
                assert existing is not None
                check_not_pinned(existing)
                self.delete(region.id, private=True)
                return None
            slots.check_free(region.gfn, region.end)
            backing = self._pair(region, path, mapped_fd)
            self._create_private(region, backing)
            return self._pairings.name(backing)

    def _pair(self, region: MemoryRegion, path: str, mapped_fd: int | None) -> SlotBacking:
        fd = _open(path) if mapped_fd is None else os.dup(mapped_fd)
        return replace(self._pairings.backing(fd, path, region), pinned=mapped_fd is not None)

    def _create_private(self, region: MemoryRegion, backing: SlotBacking) -> None:
        """Bind the pages and show them; a pairing that was made for a slot that is refused ends."""
        slot = slot_over(region, SlotFlag(region.flags) | SlotFlag.GUEST_MEMFD, backing)
        try:
            with self._pairings.announce_change(slot):
                self._pairings.bind(slot, slot.segments)
                with self._vm.mmu.lock:
                    self._vm.slots[PRIVATE].add(slot)
        except Refused:
            self._pairings.end_unused(slot.gmem)
            raise

    def set_shared_slot(self, region: MemoryRegion, memory: Memory | None, *, owned: bool, path: str = "") -> None:
        """Create, move, re-flag or (size 0) delete a shared slot over host memory. Takes an owned memory.

        KVM's checks in KVM's order. A slot that exists keeps its memory: name it again (or None), or EINVAL.
        """
        assert region.space == SHARED
        try:
            self._check_abi()
            with self._lock:
                self._set_shared(region, memory, owned, path)
        except Refused:
            if owned and memory is not None:
                memory.close()
            raise

    def check_shared_slot(self, region: MemoryRegion) -> None:
        """The refusals of `set_shared_slot` that need no memory: KVM makes them before it looks at any."""
        self._check_abi()
        with self._lock:
            slots = self._vm.slots[SHARED]
            if check_region(region, self._vm.max_slots, slots.get(region.id)) is RegionChange.CREATE:
                slots.check_free(region.gfn, region.end)
                check_addressable(region)

    def _set_shared(self, region: MemoryRegion, memory: Memory | None, owned: bool, path: str) -> None:
        existing = self._vm.slots[SHARED].get(region.id)
        change = check_region(region, self._vm.max_slots, existing)
        if existing is None:
            assert memory is not None
            self.create_shared(region, memory, owned, path)
        elif change is RegionChange.DELETE:
            self.delete(region.id, private=False)
        else:
            shown = existing.backing
            if (memory is not None and memory is not shown.memory) or (path and path != shown.path):
                raise Refused(
                    errno.EINVAL, f"{existing} is backed by other memory: delete the slot, then create it again"
                )
            if change is not RegionChange.NONE:
                self.change_shared(existing, region)

    def create_shared(
        self,
        region: MemoryRegion,
        memory: Memory,
        owned: bool,
        path: str,
        *,
        emulated: tuple[Memory, int] | None = None,
    ) -> None:
        """With `lock` held, after the wall. emulated: as a SlotBacking has it."""
        slots, physmap = self._vm.slots[SHARED], self._vm.physmap
        slots.check_free(region.gfn, region.end)
        check_addressable(region)
        with self._vm.mmu.lock:
            whole, end = memory.frame_count, region.pgoff + region.page_count
            if whole is not None and end <= whole:
                base, is_whole = physmap.share(memory, whole), True
            else:
                base, is_whole = physmap.add(memory, region.pgoff, end), False
            backing = SlotBacking(memory, base, owned=owned, path=path, whole=is_whole, emulated=emulated)
            slots.add(slot_over(region, SlotFlag(region.flags), backing))
        self._block_under_overlay(region.gfn, region.end)

    def replace_shared(self, existing: Memslot, memory: Memory) -> None:
        """With `lock` held: the same slot shows another memory."""
        region = MemoryRegion.shared(
            existing.id,
            existing.gfn << PAGE_SHIFT,
            existing.page_count << PAGE_SHIFT,
            flags=existing.flags,
            offset=existing.pgoff << PAGE_SHIFT,
        )
        self.delete(existing.id, private=False)
        self.create_shared(region, memory, False, existing.backing.path, emulated=existing.backing.emulated)

    def change_shared(self, existing: Memslot, region: MemoryRegion) -> None:
        """With `lock` held. It moves, or gets other flags: what it shows stays, and so does what its log has if it
        keeps one. As kvm_set_memslot(): until the new slot is there the old one is KVM_MEMSLOT_INVALID, and a fault
        that finds it is retried."""
        slots = self._vm.slots[SHARED]
        slots.check_free(region.gfn, region.end, but=existing)
        check_addressable(region)
        moved = slot_over(region, SlotFlag(region.flags), existing.backing)
        if moved.dirty is not None:
            moved.dirty = existing.dirty or moved.dirty
        with self._unmapper.hold_off_faults(existing.gfn, existing.end):
            self._unmapper.zap(existing.segments, private=False)
            with self._vm.mmu.lock:
                slots.delete(existing.id)
                slots.add(moved)
        self._block_under_overlay(region.gfn, region.end)

    def delete_slot(self, id_: int, *, private: bool) -> None:
        """EINVAL when there is none. A private slot's contents are destroyed, as TDX and SNP unmap."""
        self._check_abi()
        with self._lock:
            check_not_pinned(slot_of(self._vm, PRIVATE if private else SHARED, id_))
            self.delete(id_, private=private)

    def get_dirty_log(self, id_: int) -> list[GfnRange]:
        """KVM_GET_DIRTY_LOG: GFN ranges of a shared slot that were written since the last time, and are logged again.

        EINVAL: a slot may not have this id. ENOENT where no slot logs. Writes that are reported have landed: every vCPU
        has left the guest since.
        """
        if not 0 <= id_ < self._vm.max_slots:
            raise Refused(errno.EINVAL, f"slot {id_} cannot be: ids end at {self._vm.max_slots - 1}")
        with self._lock:
            slot = self._vm.slots[SHARED].get(id_)
            if slot is None or slot.dirty is None:
                raise Refused(errno.ENOENT, f"no shared slot {id_} logs dirty pages: set it with flags=log_dirty")
            with self._unmapper.bracket(slot.segments):
                dirty = [(slot.gfn + start, slot.gfn + end) for start, end in slot.dirty.take()]
                for start, end in dirty:
                    self._vm.mmu.protect(start, end)
            return dirty

    def punch_slot(self, id_: int, gpa: int, size: int) -> list[GfnRange]:
        """The proposed ioctl: a hole in a private slot. Data around it survives; ranges (gfn, end) removed.

        EINVAL: no such slot, unaligned, empty, not inside the slot, or in part a hole already. EPERM: a slot that shows
        an encrypted mapping. ENOTTY where a slot has both memories.
        """
        self._check_abi()
        if (gpa | size) % PAGE_SIZE:
            raise Refused(errno.EINVAL, f"gpa {gpa:#x} and size {size:#x} must be multiples of 4096")
        start, end = Gfn(gpa >> PAGE_SHIFT), Gfn(gpa + size >> PAGE_SHIFT)
        with self._lock:
            slot = slot_of(self._vm, PRIVATE, id_)
            check_not_pinned(slot)
            with self._pairings.announce_change(slot):
                with self._unmapper.deleting([(start, end)]):
                    with self._vm.mmu.lock:
                        removed = self._vm.slots[PRIVATE].punch(id_, start, end)
                    self._retire(removed)
                self._pairings.forget(slot, removed)
            return removed

    def fill_slot(self, id_: int, start: Gfn, end: Gfn) -> None:
        """The inverse of a punch: GFNs [start, end) of a hole belong to the slot again. What `punch_slot` took is
        empty; what `hide` took has its contents.

        EINVAL: no such slot, or not all a hole of it. EEXIST: another slot is there by now. EHOSTDOWN, or the store's
        errno: the store does not bind the pages again, and the hole is as before.
        """
        with self._lock:
            slots = self._vm.slots[PRIVATE]
            slot = slot_of(self._vm, PRIVATE, id_)
            with self._pairings.announce_change(slot), self._unmapper.hold_off_faults(start, end):
                with self._vm.mmu.lock:
                    slots.fill(id_, start, end)
                try:
                    self._pairings.bind(slot, [(start, end)])
                except Refused:
                    with self._vm.mmu.lock:
                        slots.punch(id_, start, end)
                    raise

    def _check_abi(self) -> None:
        if self._vm.rules.has_one_space:
            raise Refused(
                errno.ENOTTY, f"a VM of abi {self._vm.abi.name} has one address space: use slot set2 and slot delete2"
            )

    def _block_under_overlay(self, start: Gfn, end: Gfn) -> None:
        """An ordinary slot lies over [start, end) now: under it, private pages are blocked where it is an overlay."""
        if self._vm.rules.overlay:
            self._unmapper.block([(start, end)])

    def delete(self, id_: int, *, private: bool) -> None:
        """With `lock` held; the slot exists."""
        if private:
            deleted = self._vm.slots[PRIVATE].get(id_)
            assert deleted is not None
            with self._pairings.announce_change(deleted):
                with self._unmapper.deleting(deleted.segments):
                    with self._vm.mmu.lock:
                        self._vm.slots[PRIVATE].delete(id_)
                    self._retire(deleted.segments)
                self._pairings.forget(deleted, deleted.segments)
            self._pairings.end_unused(deleted.gmem)
            return
        with self._vm.mmu.lock:
            slot = self._vm.slots[SHARED].delete(id_)
            self._unmapper.going[SHARED] = slot.segments
        self._unmapper.zap(slot.segments, private=False)
        backing = slot.backing
        with self._vm.mmu.lock:
            self._unmapper.going[SHARED] = []
            if backing.gmem is not None:
                pass  # the pairing's frame numbers
            elif backing.whole:
                self._vm.physmap.unshare(backing.memory)
            else:
                self._vm.physmap.remove(backing.base + slot.pgoff)
        if backing.owned:
            backing.memory.close()

    def _retire(self, segments: list[GfnRange]) -> None:
        """Private GFNs that no slot shows any more: zap, flush, destroy contents."""
        with self._vm.mmu.lock:  # before the zap, which finds what comes in from here on
            self._vm.exports.destroy(segments)
        self._unmapper.retire(segments)


def slot_over(region: MemoryRegion, flags: SlotFlag, backing: SlotBacking) -> Memslot:
    space, order = Alias(region.space), backing.leaf_order
    return Memslot(region.id, space, region.gfn, region.page_count, flags, backing, region.pgoff, max_order=order)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # else a FIFO waits for a reader
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"{quoted(path)}: {error.strerror}") from None


def slot_of(vm: Vm, alias: Alias, id_: int) -> Memslot:
    """EINVAL when there is none. With Kvm.slots_lock held."""
    slot = vm.slots[alias].get(id_)
    if slot is None:
        raise Refused(errno.EINVAL, f"there is no {alias.name.lower()} slot {id_}: see 'info slots'")
    return slot


def check_not_pinned(slot: Memslot) -> None:
    if slot.backing.pinned:
        raise Refused(
            errno.EPERM, f"{slot} maps encrypted memory and stays until the VM ends: overlay it with another slot"
        )
