"""How GFNs lose their mappings when it is this side that takes them away."""

import contextlib
import time
from collections.abc import Callable, Iterator

from kvmsim.memory.memory import WindowMemory
from memfsd.common import trace
from memfsd.uapi.units import Gfn, GfnRange, HostPfn

from .alias import PRIVATE, SHARED, Alias
from .mmu.runs import Run
from .vm import Vm


class Unmapper:
    """Each in its own bracket, as an invalidation by the store is: every vCPU leaves the guest before its end."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.is_deleting = False
        """Private GFNs have no slot any more and may still be mapped, or hold their contents. Guarded by Mmu.lock."""
        self.going: dict[Alias, list[GfnRange]] = {SHARED: [], PRIVATE: []}
        """GFN ranges [start, end) that a slot has just lost and what follows is not done yet. Guarded by Mmu.lock."""

    @contextlib.contextmanager
    def bracket(self, segments: list[GfnRange], last: Callable[[], object] = lambda: None) -> Iterator[None]:
        """An invalidation of our own, so that nothing maps it again. The body has Mmu.lock; then every vCPU leaves the
        guest, and the bracket closes. last: before it does, with Mmu.lock held and no vCPU inside."""
        mmu = self.vm.mmu
        with mmu.lock:
            mmu.invalidate_begin(min(start for start, _ in segments), max(end for _, end in segments))
            yield
        self.kick_all()
        with mmu.lock:
            try:
                last()
            finally:
                mmu.invalidate_end()

    def zap(self, segments: list[GfnRange], *, private: bool) -> list[Run]:
        """private: contents are the file's. In `deleting`, or when the store is gone: it must not take back frames that
        KVM has lost sight of before it is noted that they are unmapped."""
        runs: list[Run] = []
        if segments:
            remove = self.vm.mmu.zap
            with self.bracket(segments, lambda: self.unmapped(runs if private else [])):
                runs += [run for start, end in segments for run in remove(start, end, private=private)]
        return runs

    def block(self, segments: list[GfnRange]) -> None:
        """Private GFNs are unmapped and keep their contents. What the store takes back meanwhile is not blocked any
        more when the bracket closes."""
        mmu = self.vm.mmu
        if segments:
            with self.bracket(segments, lambda: self.unmapped(self._blocked(segments))):
                for start, end in segments:
                    mmu.block(start, end)

    def unmapped(self, runs: list[Run]) -> None:
        """These frames have lost their GFNs and keep their contents. With Mmu.lock held, and every vCPU out since:
        later they may be other pages'."""
        for _, pfn, count in runs:
            memory, frame = self._window(pfn)
            memory.unmapped(frame, count)

    def is_going(self, alias: Alias, gfn: Gfn) -> bool:
        """KVM_MEMSLOT_INVALID: the slot that showed this page is being deleted. With Mmu.lock held."""
        return any(start <= gfn < end for start, end in self.going[alias])

    @contextlib.contextmanager
    def deleting(self, segments: list[GfnRange]) -> Iterator[None]:
        """Private GFNs lose their slot, are zapped, and perhaps destroyed: the store's BEGIN waits until it is done.

        Else it would find no slot, and be acknowledged while they are mapped; and contents would be destroyed in a
        frame that is another page's by then. No down-call in it: the store may be waiting for us.
        """
        mmu = self.vm.mmu
        with mmu.lock:
            self.is_deleting = True
            self.going[PRIVATE] = segments
        try:
            yield
        finally:
            with mmu.lock:
                self.is_deleting = False
                self.going[PRIVATE] = []
                mmu.invalidation_ended.notify_all()

    @contextlib.contextmanager
    def hold_off_faults(self, start: Gfn, end: Gfn) -> Iterator[None]:
        """GFNs get a slot here and a binding in the store: a fault that sees one of both waits for the other."""
        mmu = self.vm.mmu
        with mmu.lock:
            mmu.invalidate_begin(start, end)
        try:
            yield
        finally:
            with mmu.lock:
                mmu.invalidate_end()

    def kick_all(self) -> None:
        since_ns = time.monotonic_ns()
        for vcpu in list(self.vm.vcpus.values()):
            vcpu.kick()
        if trace.vm is not None:
            trace.vm.kicked_out(self.vm.name, since_ns)

    def retire(self, segments: list[GfnRange]) -> None:
        """Private GFNs are unmapped, and then their contents destroyed, before anything can map them again."""
        if segments:
            with self.bracket(segments, lambda: self._destroy(segments)):
                for start, end in segments:
                    self.vm.mmu.block(start, end)

    def destroy(self, segments: list[GfnRange]) -> int:
        """Contents of private pages that are blocked: what a TDX or SNP unmap does. They read as zeros. Returns the
        number of pages. OSError: the window is out of memory for it.

        With Mmu.lock held all the time, since a frame that another page gets meanwhile is not blocked any more.
        """
        with self.vm.mmu.lock:
            return self._destroy(segments)

    def _destroy(self, segments: list[GfnRange]) -> int:
        page_count = 0
        for gfn, pfn, count in self._blocked(segments):
            memory, frame = self._window(pfn)
            memory.scrub(frame, count)
            self.vm.mmu.blocked.take(gfn, gfn + count)
            page_count += count
        return page_count

    def _blocked(self, segments: list[GfnRange]) -> list[Run]:
        return [run for start, end in segments for run in self.vm.mmu.blocked.runs(start, end)]

    def _window(self, pfn: HostPfn) -> tuple[WindowMemory, int]:
        """With Mmu.lock held."""
        memory, frame = self.vm.physmap.find(pfn)
        assert isinstance(memory, WindowMemory)
        return memory, frame
