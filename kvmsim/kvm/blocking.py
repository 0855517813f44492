"""Steps of a conversion that can be taken back: contents stay in the window until `destroy`.

What user space says is what an ioctl would take: slot ids, GFNs and counts of 4 KiB pages, files by their names.
"""

import threading

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import Gfn, GfnRange, Pgoff

from .alias import PRIVATE, SHARED
from .ioctls import check_not_pinned, slot_of
from .pairings import PairedFile, Pairings
from .region import SlotFlag
from .slots.memslots import Memslot
from .unmapper import Unmapper
from .vm import Vm


class Blocking:
    """Private pages are unmapped as TDH.MEM.RANGE.BLOCK does it. `lock` is Kvm.slots_lock."""

    def __init__(self, vm: Vm, lock: threading.Lock, unmapper: Unmapper, pairings: Pairings) -> None:
        self._vm = vm
        self._lock = lock
        self._unmapper = unmapper
        self._pairings = pairings

    def hide(self, id_: int, gfn: Gfn, page_count: int) -> None:
        """A punch that only blocks: these pages leave the private slot. Undone by `fill_slot`.

        EINVAL: no such slot, or the range is empty, not inside it, or in part a hole. EPERM: the slot shows an
        encrypted mapping. EHOSTDOWN, or the store's errno: it does not unbind the pages, and the slot is as before.
        """
        start, end = gfn, gfn + page_count
        with self._lock:
            slots = self._vm.slots[PRIVATE]
            slot = slot_of(self._vm, PRIVATE, id_)
            check_not_pinned(slot)
            with self._pairings.announce_change(slot):
                with self._unmapper.deleting([(start, end)]):
                    with self._vm.mmu.lock:
                        slots.punch(id_, start, end)
                    self._block([(start, end)])
                try:
                    self._pairings.unbind(slot, [(start, end)])
                except Refused:
                    with self._vm.mmu.lock:
                        slots.fill(id_, start, end)
                    raise

    def detach(self, id_: int) -> None:
        """Take a private slot out, and only block it. Undone by `attach`.

        EINVAL: no such slot. EPERM: it shows an encrypted mapping. The store's errno: it does not unbind the pages, and
        the slot is as before; a store that is gone has no bindings, and does not keep the slot.
        """
        with self._lock:
            slot = slot_of(self._vm, PRIVATE, id_)
            check_not_pinned(slot)
            with self._pairings.announce_change(slot):
                with self._unmapper.deleting(slot.segments):
                    with self._vm.mmu.lock:
                        self._vm.slots[PRIVATE].delete(id_)
                    self._block(slot.segments)
                try:
                    self._pairings.unbind(slot, slot.segments)
                except Refused:
                    if not slot.gmem.lost:
                        with self._vm.mmu.lock:
                            self._vm.slots[PRIVATE].add(slot)
                        raise

    def _block(self, segments: list[GfnRange]) -> None:
        """Until they are bound again, the store does not say that it takes back what is out."""
        self._unmapper.block(segments)
        with self._vm.mmu.lock:
            self._vm.exports.unbound(segments)

    def attach(
        self, id_: int, gfn: Gfn, page_count: int, file: PairedFile, pgoff: Pgoff, segments: list[GfnRange]
    ) -> None:
        """Put a private slot back that `detach` took out. segments: the ranges of GFNs [start, end) that it showed.

        ENOENT: the file's pairing has ended. EEXIST: another slot is there by now. The store's errno: it does not bind
        the pages again, and there is no slot; with a store that is gone there is one all the same, which shows nothing.
        """
        with self._lock:
            self._add(self._slot(id_, gfn, page_count, file, pgoff, segments), even_if_lost=True)

    def create_private(self, id_: int, gfn: Gfn, page_count: int, file: PairedFile, pgoff: Pgoff) -> None:
        """A private slot of pages of a file that the VM has paired with and that are not bound now, which have their
        contents. The id is free.

        ENOENT: the pairing has ended. EEXIST: another slot is there. EHOSTDOWN, or the store's errno: it does not bind
        the pages, and there is no slot.
        """
        with self._lock:
            self._add(self._slot(id_, gfn, page_count, file, pgoff, [(gfn, gfn + page_count)]), even_if_lost=False)

    def _slot(
        self, id_: int, gfn: Gfn, page_count: int, file: PairedFile, pgoff: Pgoff, segments: list[GfnRange]
    ) -> Memslot:
        backing = self._pairings.paired(file)
        kind, flags, order = PRIVATE, SlotFlag.GUEST_MEMFD, backing.leaf_order
        return Memslot(id_, kind, gfn, page_count, flags, backing, pgoff, list(segments), max_order=order)

    def _add(self, slot: Memslot, *, even_if_lost: bool) -> None:
        slots = self._vm.slots[PRIVATE]
        with self._pairings.announce_change(slot), self._unmapper.hold_off_faults(slot.gfn, slot.end):
            with self._vm.mmu.lock:
                slots.add(slot)
            try:
                self._pairings.bind(slot, slot.segments)
            except Refused:
                if not (even_if_lost and slot.gmem.lost):
                    with self._vm.mmu.lock:
                        slots.delete(slot.id)
                    raise

    def destroy(self, gfn: Gfn, page_count: int) -> int:
        """Contents of the private pages of [gfn, gfn + page_count) that are blocked: they read as zeros. Returns the
        number of pages. OSError: the window is out of memory for it.

        Nothing is bound there, so the store may have taken pages back without a call: those are not destroyed whose
        frames are another page's by now."""
        with self._vm.mmu.lock:
            self._vm.exports.destroy([(gfn, gfn + page_count)])
        return self._unmapper.destroy([(gfn, gfn + page_count)])

    def forget(self, gfn: Gfn, page_count: int) -> None:
        """The store has taken these pages back: they are not blocked any more. Never refused."""
        with self._vm.mmu.lock:
            self._vm.mmu.blocked.take(gfn, gfn + page_count)
            self._vm.exports.taken_back(gfn, gfn + page_count)

    def set_overlay(self, on: bool) -> None:
        """From now on lookups see ordinary slots first, and a private page under one is not mapped; or no more. Never
        refused."""
        with self._lock:
            with self._vm.mmu.lock:
                self._vm.rules.overlay = on
                under = [(start, end) for slot in self._vm.slots[SHARED] for start, end in slot.segments]
            if on:
                self._unmapper.block(under)
