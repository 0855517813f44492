"""How GFNs lose their mappings when it is this side that takes them away."""

import contextlib
from collections.abc import Iterator

from kvmsim.memory.memory import Memory

from .backing import Runs, Translation
from .vm import Vm


class Unmapping:
    """Each in a bracket of its own, as an invalidation by the store is: every vCPU leaves the guest before its end."""

    def __init__(self, vm: Vm[Memory, Translation]) -> None:
        self.vm = vm
        self._retiring = False
        """Private GFNs have no slot any more and may still be mapped, or hold their contents. Guarded by Mmu.lock."""

    @contextlib.contextmanager
    def _bracket(self, segments: list[tuple[int, int]]) -> Iterator[None]:
        """An invalidation of our own, so that no fault under way maps it again. The body has Mmu.lock; then every vCPU
        leaves the guest, and the bracket closes."""
        mmu = self.vm.mmu
        with mmu.lock:
            mmu.invalidate_begin(min(start for start, _ in segments), max(end for _, end in segments))
            yield
        self._kick_all()
        with mmu.lock:
            mmu.invalidate_end()

    def _zap_segments(self, segments: list[tuple[int, int]], *, private: bool) -> Runs:
        runs: Runs = []
        if segments:
            zap = self.vm.mmu.zap
            with self._bracket(segments):
                runs += [run for start, end in segments for run in zap(start, end, private=private)]
        return runs

    def _block(self, segments: list[tuple[int, int]]) -> Runs:
        """Private GFNs are unmapped and keep their contents: what is blocked there now."""
        runs: Runs = []
        if segments:
            with self._bracket(segments):
                runs += [run for start, end in segments for run in self.vm.mmu.block(start, end)]
        return runs

    @contextlib.contextmanager
    def _retirement(self) -> Iterator[None]:
        """Private GFNs lose their slot, are zapped, and perhaps destroyed: the store's BEGIN waits until it is done.

        Else it would find no slot, and be acknowledged while they are mapped; and contents would be destroyed in a
        frame that is another page's by then. No down-call in it: the store may be waiting for us.
        """
        mmu = self.vm.mmu
        with mmu.lock:
            self._retiring = True
        try:
            yield
        finally:
            with mmu.lock:
                self._retiring = False
                mmu.ended.notify_all()

    @contextlib.contextmanager
    def _faults_wait(self, start: int, end: int) -> Iterator[None]:
        """GFNs get a slot here and a binding in the store: a fault that sees one of both waits for the other."""
        mmu = self.vm.mmu
        with mmu.lock:
            mmu.invalidate_begin(start, end)
        try:
            yield
        finally:
            with mmu.lock:
                mmu.invalidate_end()

    def _kick_all(self) -> None:
        for vcpu in list(self.vm.vcpus.values()):
            vcpu.kick()

    def forget(self, runs: Runs) -> None:
        """Pages that were blocked have no contents any more."""
        with self.vm.mmu.lock:
            for gfn, _, count in runs:
                self.vm.mmu.blocked.take(gfn, gfn + count)
