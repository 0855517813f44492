"""One vCPU: guest mode, kicks and its TLB."""

from typing import Generic, TypeVar

from memfsd.uapi import sync

from .tlb import Tlb

V = TypeVar("V")


class Vcpu(Generic[V]):
    """Guest mode is holding `guest_lock`. A kick makes the vCPU leave, flushes its TLB, and lets it go on.

    The vCPU waits while someone kicks, or a busy guest would take the lock again before the kicker gets it.
    """

    def __init__(self, id_: int) -> None:
        self.id = id_
        self.tlb: Tlb[V] = Tlb()
        self.guest_lock = sync.lock("Vcpu.guest_lock")
        self.kick_count = 0
        self._kick_lock = sync.lock("Vcpu.kick_lock")
        self._kickers = 0
        self._go_on = sync.event("Vcpu.go_on")

    def enter(self) -> None:
        """Into guest mode; waits while the vCPU is being kicked."""
        while self._kickers:
            self._go_on.wait()
        self.guest_lock.acquire()

    def leave(self) -> None:
        self.guest_lock.release()

    def kick(self) -> None:
        """Return when the vCPU has been out of guest mode once and its TLB is empty."""
        with self._kick_lock:
            self._kickers += 1
            self._go_on.clear()
        with self.guest_lock:
            self.tlb.flush()
        with self._kick_lock:
            self.kick_count += 1
            self._kickers -= 1
            if self._kickers == 0:
                self._go_on.set()
