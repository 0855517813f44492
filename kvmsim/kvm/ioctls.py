"""KVM_SET_USER_MEMORY_REGION and what belongs to it: slots made, moved, punched and deleted, and their dirty logs."""

import errno
import os
from dataclasses import replace

from kvmsim.memory.memory import Memory
from memfsd.common.quote import quoted
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE

from .backing import Backing, Runs, backing_of, link_of
from .pairings import Pairings
from .slots.memslots import AddressSpaceId, Memslot, RegionChange, SlotFlag, check_addressable, check_region


class Slots(Pairings):
    """KVM's ioctls; `slots_lock` is held from the checks to the end of what follows from them."""

    def set_private_slot(
        self, id_: int, gpa: int, size: int, flags: int, path: str, offset: int, *, mapped_fd: int | None = None
    ) -> None:
        """Create a private slot (or with size 0 delete it): this is where pairing happens.

        KVM's checks in KVM's order, then the file's: ENOENT and other errors of open(2), EINVAL not sealed or
        past the end, EPERM another VM's, EEXIST bound already, EINVAL bound at another GFN before.
        The end of GPAs, KVM's last check, comes before pairing and binding: they can not be undone.
        mapped_fd: of the file behind an encrypted mapping, which the slot shows instead of the file at path.
        """
        with self.slots_lock:
            slots = self.vm.slots[True]
            existing = slots.get(id_)
            change = check_region(
                id_, AddressSpaceId.PRIVATE, flags, gpa, size, offset, self.vm.max_slots, existing, True
            )
            if change is RegionChange.DELETE:
                assert existing is not None
                check_loose(existing)
                self._delete(id_, private=True)
                return
            gfn, page_count, pgoff = gpa >> PAGE_SHIFT, size >> PAGE_SHIFT, offset >> PAGE_SHIFT
            slots.check_free(gfn, gfn + page_count)
            fd = _open(path) if mapped_fd is None else os.dup(mapped_fd)
            try:
                check_addressable(gfn, page_count)
            except Refused:
                os.close(fd)
                raise
            backing = replace(self._link(fd, path, offset + size), sticky=mapped_fd is not None)
            assert backing.link is not None
            all_flags = SlotFlag(flags) | SlotFlag.GUEST_MEMFD
            slot = Memslot(
                id_,
                AddressSpaceId.PRIVATE,
                gfn,
                page_count,
                all_flags,
                backing,
                pgoff,
                backing.link,
                max_order=backing.leaf_order,
            )
            try:
                with self._change(slot):
                    try:
                        backing.link.bind(id_, gfn, pgoff, page_count)
                    except PeerLost as lost:
                        raise Refused(errno.EHOSTDOWN, str(lost)) from None
                    with self.vm.mmu.lock:
                        slots.add(slot)
            except Refused:
                self._end_unused(backing.link)
                raise

    def set_shared_slot(
        self,
        id_: int,
        gpa: int,
        size: int,
        flags: int,
        memory: Memory | None,
        offset: int,
        *,
        owned: bool,
        path: str = "",
    ) -> None:
        """Create, move, re-flag or (size 0) delete a shared slot over host memory. Takes an owned memory.

        KVM's checks in KVM's order. A slot that exists keeps its memory: name it again (or None), or EINVAL.
        """
        try:
            with self.slots_lock:
                self._set_shared(id_, gpa, size, flags, memory, offset, owned, path)
        except Refused:
            if owned and memory is not None:
                memory.close()
            raise

    def check_shared_slot(self, id_: int, gpa: int, size: int, flags: int, offset: int) -> None:
        """The refusals of `set_shared_slot` that need no memory: KVM makes them before it looks at any."""
        with self.slots_lock:
            slots = self.vm.slots[False]
            check_region(id_, AddressSpaceId.SHARED, flags, gpa, size, offset, self.vm.max_slots, slots.get(id_), False)
            if size and slots.get(id_) is None:
                slots.check_free(gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT)
                check_addressable(gpa >> PAGE_SHIFT, size >> PAGE_SHIFT)

    def _set_shared(
        self, id_: int, gpa: int, size: int, flags: int, memory: Memory | None, offset: int, owned: bool, path: str
    ) -> None:
        slots, mmu = self.vm.slots[False], self.vm.mmu
        existing = slots.get(id_)
        change = check_region(id_, AddressSpaceId.SHARED, flags, gpa, size, offset, self.vm.max_slots, existing, False)
        gfn, page_count, pgoff = gpa >> PAGE_SHIFT, size >> PAGE_SHIFT, offset >> PAGE_SHIFT
        if existing is not None and change is not RegionChange.DELETE:
            backing = backing_of(existing)
            if (memory is not None and memory is not backing.memory) or (path and path != backing.path):
                raise Refused(errno.EINVAL, f"{existing} shows other memory: delete the slot, then create it anew")
        if change is RegionChange.DELETE:
            self._delete(id_, private=False)
        elif change is RegionChange.CREATE:
            assert memory is not None
            slots.check_free(gfn, gfn + page_count)
            check_addressable(gfn, page_count)
            with mmu.lock:
                whole, end = memory.frame_count, pgoff + page_count
                if whole is not None and end <= whole:
                    base, is_whole = self.vm.physmap.share(memory, whole), True
                else:
                    base, is_whole = self.vm.physmap.add(memory, pgoff, end), False
                backing = Backing(memory, base, owned=owned, path=path, whole=is_whole)
                slots.add(
                    Memslot(
                        id_,
                        AddressSpaceId.SHARED,
                        gfn,
                        page_count,
                        SlotFlag(flags),
                        backing,
                        pgoff,
                        max_order=memory.leaf_order,
                    )
                )
            self._shade(gfn, gfn + page_count)
        elif change is not RegionChange.NONE:
            assert existing is not None
            with mmu.lock:
                slots.delete(id_)
                moved = Memslot(
                    id_,
                    AddressSpaceId.SHARED,
                    gfn,
                    page_count,
                    SlotFlag(flags),
                    existing.backing,
                    existing.pgoff,
                    max_order=backing_of(existing).leaf_order,
                )
                if moved.dirty is not None:
                    moved.dirty = existing.dirty or moved.dirty
                try:
                    slots.check_free(gfn, gfn + page_count)
                    check_addressable(gfn, page_count)
                    slots.add(moved)
                except Refused:
                    slots.add(existing)
                    raise
            self._zap_segments(existing.segments, private=False)
            self._shade(gfn, gfn + page_count)

    def delete_slot(self, id_: int, *, private: bool) -> None:
        """EINVAL when there is none. A private slot's contents are destroyed, as TDX and SNP unmap."""
        with self.slots_lock:
            slot = self.vm.slots[private].get(id_)
            if slot is None:
                kind = "private" if private else "shared"
                raise Refused(errno.EINVAL, f"there is no {kind} slot {id_}: see 'info slots'")
            check_loose(slot)
            self._delete(id_, private=private)

    def get_dirty_log(self, id_: int) -> list[tuple[int, int]]:
        """KVM_GET_DIRTY_LOG: GFN ranges of a shared slot that were written since the last time, and are logged anew.

        ENOENT where no slot logs. Writes that are reported have landed: every vCPU has left the guest since.
        """
        with self.slots_lock:
            slot = self.vm.slots[False].get(id_)
            if slot is None or slot.dirty is None:
                raise Refused(errno.ENOENT, f"no shared slot {id_} logs dirty pages: set it with flags=log_dirty")
            with self._bracket(slot.segments):
                dirty = [(slot.gfn + start, slot.gfn + end) for start, end in slot.dirty.take()]
                for start, end in dirty:
                    self.vm.mmu.protect(start, end)
            return dirty

    def punch_slot(self, id_: int, gpa: int, size: int) -> list[tuple[int, int]]:
        """The proposed ioctl: a hole in a private slot. Data around it survives; ranges (gfn, end) removed."""
        if (gpa | size) % PAGE_SIZE:
            raise Refused(errno.EINVAL, f"gpa {gpa:#x} and size {size:#x} must be multiples of 4096")
        start, end = gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT
        with self.slots_lock:
            slot = self.vm.slots[True].get(id_)
            if slot is None:
                raise Refused(errno.EINVAL, f"there is no private slot {id_}: see 'info slots'")
            check_loose(slot)
            with self._change(slot):
                with self._retirement():
                    with self.vm.mmu.lock:
                        removed = self.vm.slots[True].punch(id_, start, end)
                    self._retire(slot, removed)
                self._forget(slot, removed)
            return removed

    def fill_slot(self, id_: int, start: int, end: int) -> None:
        """The inverse of a punch: GFNs [start, end) of a hole belong to the slot again. What `punch_slot` took is
        empty; what `hide` took has its contents."""
        with self.slots_lock:
            slots = self.vm.slots[True]
            slot = slots.get(id_)
            assert slot is not None
            with self._change(slot), self._faults_wait(start, end):
                with self.vm.mmu.lock:
                    slots.fill(id_, start, end)
                try:
                    self._bind(slot, [(start, end)])
                except Refused:
                    with self.vm.mmu.lock:
                        slots.punch(id_, start, end)
                    raise

    def destroy(self, slot: Memslot, runs: Runs) -> None:
        """Contents of frames that are not mapped any more: what a TDX or SNP unmap does. They read as zeros."""
        backing, link = backing_of(slot), link_of(slot)
        for _, pfn, count in runs:
            link.memory.scrub(pfn - backing.base, count)
        self.forget(runs)

    def _shade(self, start: int, end: int) -> None:
        """An ordinary slot lies over [start, end) now: under it, private pages are blocked where it is an overlay."""
        if self.vm.overlay:
            self._block([(start, end)])

    def _delete(self, id_: int, *, private: bool) -> None:
        if private:
            doomed = self.vm.slots[True].get(id_)
            assert doomed is not None
            with self._change(doomed):
                with self._retirement():
                    with self.vm.mmu.lock:
                        self.vm.slots[True].delete(id_)
                    self._retire(doomed, doomed.segments)
                self._forget(doomed, doomed.segments)
            self._end_unused(link_of(doomed))
            return
        with self.vm.mmu.lock:
            slot = self.vm.slots[False].delete(id_)
        self._zap_segments(slot.segments, private=False)
        backing = backing_of(slot)
        with self.vm.mmu.lock:
            if backing.whole:
                self.vm.physmap.unshare(backing.memory)
            else:
                self.vm.physmap.remove(backing.base + slot.pgoff)
        if backing.owned:
            backing.memory.close()

    def _retire(self, slot: Memslot, segments: list[tuple[int, int]]) -> None:
        """Private GFNs that no slot shows any more: zap, flush, destroy contents."""
        self.destroy(slot, self._zap_segments(segments, private=True))


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"{quoted(path)}: {error.strerror}") from None


def check_loose(slot: Memslot) -> None:
    if backing_of(slot).sticky:
        raise Refused(errno.EPERM, f"{slot} shows an encrypted mapping: it stays until the VM ends: lay a slot over it")
