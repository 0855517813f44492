"""Machine code as an actor: a vCPU that runs a program in slices of so many instructions.

The vCPU stays in guest mode between two slices, as a real one does until it is kicked: each slice begins with a point
there, at which it may be left standing with its translations in hand. The engine, its fill and its faults are the real
ones.
"""

from typing import cast

from kvmsim.cpu.accesses import Guest
from kvmsim.cpu.x86.cpus import Cpus
from kvmsim.cpu.x86.engine import Engine, Stop, Why
from kvmsim.cpu.x86.layout import Refusal
from kvmsim.cpu.x86.machine import Machine
from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.exits import Exit, HltExit, IoExit, ShutdownExit
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.mmu.ept import entry_pfn
from kvmsim.kvm.vcpu import Vcpu
from kvmsim.memory.memory import Memory
from memfsd.uapi.units import PAGE_SHIFT, Gfn

from . import points
from .accesses import Kind
from .history import ONE_MORE, Page
from .oracle import Oracle
from .primitives import Lock
from .programs import NOWHERE, TEXT_BYTES, Does, Work
from .scheduler import Scheduler

SLICES_OF_A_STAY = 3
"""Then the vCPU leaves guest mode, and its turn is over: as after 20,000 blocks where nobody counts."""


class SlicedEngine(Engine):
    """As long as there is work, `run` is counted."""

    def __init__(self, machine: Machine, vcpu: Vcpu, kvm: Kvm, scheduler: Scheduler, oracle: Oracle) -> None:
        super().__init__(machine, vcpu)
        self._kvm = kvm
        self._scheduler = scheduler
        self._oracle = oracle
        self._tlb_key = ("tlb", points.labels[id(vcpu.tlb)])
        self._ept_key = ("ept", kvm.vm.name)
        self._kick_key = cast(Lock, vcpu._kick_lock).key
        self.work: Work | None = None
        self._held: set[tuple[Memory, int]] = set()
        """(memory, frame) that its TLB may have."""

    def enter(self) -> None:
        """Whether something was flushed is looked at in this step."""
        self._scheduler.touch(self._tlb_key, Kind.READ)
        super().enter()

    def run(self, count: int = 0) -> Stop:
        if self.work is None or count:
            return super().run(count)
        for _ in range(SLICES_OF_A_STAY):
            if self.state.flush_tlb:
                self._held.clear()
            self._point()
            stop = self._slice(self.work)
            if stop.why is not Why.COUNTED:
                return stop
        return Stop(Why.KICKED)

    def _point(self) -> None:
        """In guest mode, with the translations of the slices before it in hand."""
        scheduler, oracle = self._scheduler, self._oracle
        task = scheduler.me()
        if task is scheduler.main:
            return
        oracle.in_access[task] = [(memory, frame, 1) for memory, frame in self._held]
        scheduler.reach(points.MACHINE_CODE, None, None, (self._tlb_key, Kind.READ))
        del oracle.in_access[task]
        scheduler.touch(self._ept_key, Kind.READ)
        for kind in (Kind.LOOK, Kind.UNLOOK):
            scheduler.touch(self._kick_key, kind)
        assert self.work is not None
        for gfn in (self.work.code, self.work.data):
            entry = self._kvm.vm.mmu.epts[PRIVATE].walk(Gfn(gfn))
            found = self._kvm.vm.physmap.find(entry_pfn(entry)) if entry else None
            if found is not None:
                self._held.add(found)
        for memory, frame in self._held:
            window = points.labels.get(id(memory), self._kvm.vm.name)
            scheduler.touch(("frame", f"{frame:#x} of window {window}"), Kind.WRITE)

    def _done(self, work: Work) -> int:
        return work.program.retired(self.read("rip") - (work.code << PAGE_SHIFT), self.read("rcx"), work.times)

    def _slice(self, work: Work) -> Stop:
        """What may happen in it begins here; what has not happened is taken back."""
        history, program = work.history, work.program
        first = self._done(work)
        pages = work.shown(work.data)
        start = history.tick()
        begun = [
            (number, history.begin(pages, work.value if does is Does.STORE else ONE_MORE))
            for number, does in enumerate(program.effects(first, first + work.slice, work.times), first)
            if does in (Does.STORE, Does.ADD)
        ]
        stop = super().run(work.slice)
        end = self._done(work)
        for number, changes in begun:
            history.end(changes, happened=number < end)
        if end > first:
            self._fetched(work, program.text, start)
        elif stop.refusal is Refusal.BEYOND and stop.va == NOWHERE:
            self._fetched(work, bytes(TEXT_BYTES), start)
            work.gone = True
        if Does.LOAD in program.effects(first, end, work.times):
            self._check(work, pages, self.read("rdx").to_bytes(8, "little"), start)
        if stop.why is Why.COUNTED and end == program.length(work.times):
            return Stop(Why.HALTED)
        return stop

    def _fetched(self, work: Work, text: bytes, start: int) -> None:
        self._check(work, work.shown(work.code), text, start)

    def _check(self, work: Work, pages: list[Page], value: bytes, start: int) -> None:
        found = [work.history.check(page, value, start) for page in pages]
        if found and all(found):
            work.wrong(found[0])


class MachineCode:
    """The vCPUs of a VM that run it."""

    def __init__(self, kvm: Kvm, guest: Guest, scheduler: Scheduler, oracle: Oracle) -> None:
        self._cpus = Cpus(kvm, guest, lambda machine, vcpu: SlicedEngine(machine, vcpu, kvm, scheduler, oracle))

    def run(self, vcpu: Vcpu, work: Work) -> str | Exit:
        """What came of it, or the exit at which it gives up."""
        engine = self._cpus.engine(vcpu)
        assert isinstance(engine, SlicedEngine)
        engine.reset()
        for name, value in (
            ("rip", work.code << PAGE_SHIFT),
            ("rbx", work.data << PAGE_SHIFT),
            ("rcx", work.times),
            ("rsi", int.from_bytes(work.value, "little")),
            ("rax", NOWHERE),
        ):
            engine.write(name, value)
        engine.work = work
        try:
            exit_ = self._cpus.run(vcpu)
            while isinstance(exit_, IoExit):  # user space has no device: OUT is ignored
                exit_ = vcpu.kvm_run()  # type: ignore[assignment]
        finally:
            engine.work = None
        assert exit_ is not None
        if isinstance(exit_, HltExit):
            return "ran to its end"
        if isinstance(exit_, ShutdownExit) and work.gone:
            return "its code is gone"
        return exit_
