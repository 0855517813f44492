"""Steps of a conversion that can be taken back: contents stay in the window until `destroy`."""

import threading
from dataclasses import replace

from memfsd.uapi.errors import Refused

from .ioctls import check_not_pinned
from .pairings import Pairings
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

    def hide(self, id_: int, start: int, end: int) -> None:
        """A punch that only blocks: GFNs [start, end) leave the slot. Undone by `fill_slot`."""
        with self._lock:
            slots = self._vm.slots[True]
            slot = slots.get(id_)
            assert slot is not None
            check_not_pinned(slot)
            with self._pairings.change(slot):
                with self._unmapper.retirement():
                    with self._vm.mmu.lock:
                        slots.punch(id_, start, end)
                    self._unmapper.block([(start, end)])
                try:
                    self._pairings.unbind(slot, [(start, end)])
                except Refused:
                    with self._vm.mmu.lock:
                        slots.fill(id_, start, end)
                    raise

    def detach(self, id_: int) -> None:
        """Take a private slot out, and only block it. Undone by `attach`."""
        with self._lock:
            slot = self._vm.slots[True].get(id_)
            assert slot is not None
            check_not_pinned(slot)
            with self._pairings.change(slot):
                with self._unmapper.retirement():
                    with self._vm.mmu.lock:
                        self._vm.slots[True].delete(id_)
                    self._unmapper.block(slot.segments)
                try:
                    self._pairings.unbind(slot, slot.segments)
                except Refused:
                    if not slot.gmem.lost:  # else its bindings are gone with the store
                        with self._vm.mmu.lock:
                            self._vm.slots[True].add(slot)
                        raise

    def attach(self, slot: Memslot) -> None:
        """Put a slot back that `detach` took out."""
        with self._lock, self._pairings.change(slot), self._unmapper.hold_off_faults(slot.gfn, slot.end):
            with self._vm.mmu.lock:
                self._vm.slots[True].add(slot)
            self._pairings.bind(slot, slot.segments)

    def create_private(self, id_: int, start: int, end: int, like: Memslot) -> None:
        """A private slot over GFNs [start, end), of the file and at the place that `like` has them."""
        with self._lock:
            slot = replace(
                like,
                id=id_,
                gfn=start,
                page_count=end - start,
                pgoff=like.pgoff_of(start),
                segments=[],
                max_order=like.backing.leaf_order,
            )
            with self._pairings.change(slot), self._unmapper.hold_off_faults(start, end):
                with self._vm.mmu.lock:
                    self._vm.slots[True].add(slot)
                try:
                    self._pairings.bind(slot, slot.segments)
                except Refused:
                    with self._vm.mmu.lock:
                        self._vm.slots[True].delete(id_)
                    raise

    def destroy(self, start: int, end: int) -> int:
        """Contents of the private GFNs of [start, end) that are blocked: they read as zeros. How many pages it were."""
        with self._vm.mmu.lock:
            runs = self._vm.mmu.blocked.runs(start, end)
        self._unmapper.destroy(runs)
        return sum(count for _, _, count in runs)

    def forget(self, start: int, end: int) -> None:
        """The store has taken the pages of [start, end) back: they are not blocked any more."""
        with self._vm.mmu.lock:
            self._vm.mmu.blocked.take(start, end)

    def held_private(self, start: int, end: int) -> int:
        """Private pages of GFNs [start, end) that hold memory, mapped or under an overlay."""
        with self._vm.mmu.lock:
            return self._vm.mmu.held_private(start, end)

    def set_overlay(self, on: bool) -> None:
        """From now on lookups see ordinary slots first, and a private page under one is not mapped; or no more."""
        with self._lock:
            with self._vm.mmu.lock:
                self._vm.overlay = on
                under = [(start, end) for slot in self._vm.slots[False] for start, end in slot.segments]
            if on:
                self._unmapper.block(under)
