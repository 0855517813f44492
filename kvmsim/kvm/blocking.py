"""Steps of a conversion that can be taken back: contents stay in the window until `destroy`."""

from dataclasses import replace

from memfsd.uapi.errors import Refused

from .backing import Runs, backing_of, link_of
from .ioctls import Slots, check_loose
from .slots.memslots import Memslot


class Blocking(Slots):
    """Private pages are unmapped as TDH.MEM.RANGE.BLOCK does it."""

    def hide(self, id_: int, start: int, end: int) -> Runs:
        """A punch that only blocks: GFNs [start, end) leave the slot. What was mapped there; undone by `fill_slot`."""
        with self.slots_lock:
            slots = self.vm.slots[True]
            slot = slots.get(id_)
            assert slot is not None
            check_loose(slot)
            with self._change(slot):
                with self._retirement():
                    with self.vm.mmu.lock:
                        slots.punch(id_, start, end)
                    runs = self._block([(start, end)])
                try:
                    self._unbind(slot, [(start, end)])
                except Refused:
                    with self.vm.mmu.lock:
                        slots.fill(id_, start, end)
                    raise
            return runs

    def detach(self, id_: int) -> Runs:
        """Take a private slot out, and only block it. What was mapped; undone by `attach`."""
        with self.slots_lock:
            slot = self.vm.slots[True].get(id_)
            assert slot is not None
            check_loose(slot)
            with self._change(slot):
                with self._retirement():
                    with self.vm.mmu.lock:
                        self.vm.slots[True].delete(id_)
                    runs = self._block(slot.segments)
                try:
                    self._unbind(slot, slot.segments)
                except Refused:
                    if not link_of(slot).lost:  # else its bindings are gone with the store
                        with self.vm.mmu.lock:
                            self.vm.slots[True].add(slot)
                        raise
            return runs

    def attach(self, slot: Memslot) -> None:
        """Put a slot back that `detach` took out."""
        with self.slots_lock, self._change(slot), self._faults_wait(slot.gfn, slot.end):
            with self.vm.mmu.lock:
                self.vm.slots[True].add(slot)
            self._bind(slot, slot.segments)

    def create_private(self, id_: int, start: int, end: int, like: Memslot) -> None:
        """A private slot over GFNs [start, end), of the file and at the place that `like` has them."""
        with self.slots_lock:
            slot = replace(
                like,
                id=id_,
                gfn=start,
                page_count=end - start,
                pgoff=like.pgoff_of(start),
                segments=[],
                max_order=backing_of(like).leaf_order,
            )
            with self._change(slot), self._faults_wait(start, end):
                with self.vm.mmu.lock:
                    self.vm.slots[True].add(slot)
                try:
                    self._bind(slot, slot.segments)
                except Refused:
                    with self.vm.mmu.lock:
                        self.vm.slots[True].delete(id_)
                    raise

    def mapped_private(self, start: int, end: int) -> Runs:
        """Private leaves of GFNs [start, end)."""
        with self.vm.mmu.lock:
            return list(self.vm.mmu.epts[True].runs(start, end))

    def held_private(self, start: int, end: int) -> int:
        """Private pages of GFNs [start, end) that hold memory, mapped or under an overlay."""
        with self.vm.mmu.lock:
            return self.vm.mmu.held_private(start, end)

    def set_overlay(self, on: bool) -> None:
        """From now on lookups see ordinary slots first, and a private page under one is not mapped; or no more."""
        with self.slots_lock:
            with self.vm.mmu.lock:
                self.vm.overlay = on
                under = [(start, end) for slot in self.vm.slots[False] for start, end in slot.segments]
            if on:
                self._block(under)
