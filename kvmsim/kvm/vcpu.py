"""One vCPU: KVM_RUN and what is under way, guest mode, kicks and its TLB."""

import ctypes
import errno
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from memfsd.common import sync, trace
from memfsd.uapi.errors import Refused

from .exits import INTR, Exit, ExitReason, IntrExit, IoExit, MmioExit
from .kvm_run import KvmRun, KvmRunMapping, exit_of, fill, io_data, mmio_data
from .mmu.tlb import Tlb, Translation

R = TypeVar("R")

Program = Generator[Exit, None, R]
"""What a guest does, as far as KVM sees it: yields the exits, takes the answers out of `run`, returns the result.
It holds no lock while it waits at an exit, and may be abandoned there."""


MAX_NMIS = 2
"""That wait: the one that is taken next, and one latched behind it (process_nmi() of KVM)."""


class Vcpu:
    """Guest mode is holding `guest_lock`. A kick makes the vCPU leave, and lets it go on.

    Others flush its TLB with Mmu.lock held, also in guest mode: what it has looked up already it may use until
    the kick. The vCPU waits while someone kicks, or a busy guest would take the lock again before the kicker gets it.

    KVM_RUN is between `take` and `release`: one thread at a time. A program that exits belongs to the vCPU until
    it has ended or the next one is started, which abandons it: what it did has happened, the rest never will.
    """

    def __init__(self, id_: int, vm: str = "", reported: Callable[[Exit], Exit] = lambda exit_: exit_) -> None:
        """vm: its name, for traces. reported: an exit as user space sees it (Rules.reported)."""
        self.id = id_
        self._vm = vm
        self._reported = reported
        self.run: KvmRun = KvmRunMapping().run
        """Shared with user space; valid after an exit."""
        self.pf_taken = 0
        """Faults, since the start. This and the next two are counted in KVM_RUN, so by one thread at a time."""
        self.hypercall_count = 0
        self.exit_counts: dict[ExitReason, int] = {}
        """Returns of KVM_RUN, by reason."""
        self.program: Program[object] | None = None
        """What is under way: it came back with the exit in `run`. Guarded by the KVM_RUN."""
        self.interrupt: int | None = None
        """The vector that machine code takes when it can. Guarded by the KVM_RUN."""
        self.nmi_count = 0
        """NMIs that machine code has not taken. Guarded by the KVM_RUN, as the next one."""
        self.is_in_nmi = False
        """It has taken one, and no IRET was executed since."""
        self._mutex = sync.lock("Vcpu.mutex")
        self._try_to_take = self._mutex.acquire
        self.release = self._mutex.release
        """Out of KVM_RUN. The lock's own method, since every access goes through it."""
        self.tlb: Tlb[Translation] = Tlb()
        self.guest_lock = sync.lock("Vcpu.guest_lock")
        self.kick_count = 0
        self._kick_lock = sync.lock("Vcpu.kick_lock")
        self._kickers = 0
        self.kicked = ctypes.c_uint32(0)
        """Not 0 while somebody kicks: machine code looks at it in guest mode."""
        self._go_on = sync.event("Vcpu.go_on")

    # -- KVM_RUN

    def take(self) -> None:
        """Into KVM_RUN with something new. EBUSY while another thread is there (a kernel would let us wait)."""
        if not self._try_to_take(False):
            raise self._busy()
        if self.program is not None:
            self.program.close()
            self._forget()

    @contextmanager
    def held(self) -> Iterator[None]:
        """For an ioctl of the vCPU that is not KVM_RUN: what is under way stays. EBUSY as `take`."""
        if not self._try_to_take(False):
            raise self._busy()
        try:
            if trace.vm is not None:
                trace.vm.ioctl_begun(self._vm, self.id)
            yield
        finally:
            if trace.vm is not None:
                trace.vm.ioctl_ended(self._vm, self.id)
            self.release()

    def queue_interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT. EEXIST: one is queued that the guest has not taken, EBUSY the vCPU runs."""
        with self.held():
            if self.interrupt is not None:
                why = f"vCPU {self.id} has not taken interrupt {self.interrupt:#x} yet: run it until IRQ_WINDOW_OPEN"
                raise Refused(errno.EEXIST, why)
            self.interrupt = vector

    def queue_nmi(self) -> None:
        """KVM_NMI. Two wait at most, one while the guest handles one, and a further one is lost. EBUSY: it runs."""
        with self.held():
            self.nmi_count = min(self.nmi_count + 1, MAX_NMIS - self.is_in_nmi)

    def step(self, program: Program[R]) -> R | Exit:
        """Run a program on, between take and release, to its next exit or its end.

        EINTR when it was asked to leave: it stays under way. Refused by the program: it has ended.
        """
        try:
            exit_ = self._reported(next(program))
        except StopIteration as end:
            self._forget()
            if trace.vm is not None:
                trace.vm.run_done(self._vm, self.id)
            result: R = end.value
            return result
        except BaseException:
            self._forget()
            raise
        self.program = program
        fill(self.run, exit_)
        self.exit_counts[exit_.reason] = self.exit_counts.get(exit_.reason, 0) + 1
        if trace.vm is not None:
            trace.vm.userspace_exit(self._vm, self.id, exit_.reason.name, exit_.reason, exit_.fields)
        if isinstance(exit_, IntrExit):
            raise Refused(errno.EINTR, f"vCPU {self.id} was kicked: run it again to go on")
        return exit_

    def start(self, program: Program[R]) -> R | Exit:
        """KVM_RUN of something new."""
        self.take()
        try:
            return self.step(program)
        finally:
            self.release()

    def kvm_run(self) -> object:
        """KVM_RUN again: what is under way goes on, with the answers in `run`. Its result, or the next exit.

        EINVAL when nothing is. The operation that user space has answered is completed before immediate_exit is
        looked at, as in the kernel.
        """
        if not self._try_to_take(False):
            raise self._busy()
        try:
            if self.program is None:
                raise Refused(errno.EINVAL, f"nothing is under way on vCPU {self.id}: let its guest do something first")
            if trace.vm is not None:
                self._trace_answer(trace.vm)
            return self.step(self.program)
        finally:
            self.release()

    @property
    def is_running(self) -> bool:
        """A thread is in KVM_RUN."""
        return self._mutex.locked()

    def entry(self) -> Program[None]:
        """Before each entry into the guest: leave for as long as user space asks for it."""
        while self.run.immediate_exit:
            yield INTR

    def request_exit(self) -> None:
        """From any thread: KVM_RUN ends with EINTR soon, or at once when it is called next, until user space clears
        immediate_exit. What waits for the store first hears from it, within its deadline."""
        self.run.immediate_exit = 1

    def _trace_answer(self, to: trace.Instrument) -> None:
        if self.run.exit_reason not in (ExitReason.MMIO, ExitReason.IO):
            return
        exit_ = exit_of(self.run)
        if isinstance(exit_, MmioExit) and not exit_.is_write:
            to.mmio_read(self._vm, self.id, exit_.phys_addr, mmio_data(self.run, exit_.length))
        elif isinstance(exit_, IoExit) and exit_.is_in:
            data = io_data(self.run, exit_.size * exit_.count)
            to.port_read(self._vm, self.id, exit_.port, exit_.size, exit_.count, data)

    def _busy(self) -> Refused:
        return Refused(errno.EBUSY, f"another thread runs vCPU {self.id}: wait for it, or kick it")

    def _forget(self) -> None:
        self.program = None
        self.run.exit_reason = 0

    # -- guest mode

    @trace.hot(
        trace.Side.VM, after=(trace.Instrument.guest_entered, lambda to, _, vcpu: to.guest_entered(vcpu._vm, vcpu.id))
    )
    def enter(self) -> None:
        """Into guest mode; waits while the vCPU is being kicked."""
        while self._kickers:
            self._go_on.wait()
        self.guest_lock.acquire()

    def leave(self) -> None:
        self.guest_lock.release()

    def kick(self) -> None:
        """Return when the vCPU has been out of guest mode once: an access that began before has ended."""
        with self._kick_lock:
            self._kickers += 1
            self.kicked.value = 1
            self._go_on.clear()
        with self.guest_lock:
            pass
        with self._kick_lock:
            self.kick_count += 1
            self._kickers -= 1
            if self._kickers == 0:
                self.kicked.value = 0
                self._go_on.set()
