"""A vCPU, as a VMM has it."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from kvmsim.kvm.exits import INTR, Exit, HltExit
from kvmsim.kvm.kvm_run import KvmRun
from kvmsim.kvm.vcpu import Program, Vcpu
from kvmsim.machine import VirtualMachine
from kvmsim.vmm.answers import answer_hypercall, answer_read
from memfsd.common import sync
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import ANSWER_DEADLINE_S
from memfsd.uapi.units import PAGE_SIZE

from .cpu import Cpu, GuestCode

R = TypeVar("R")


class UnhandledExit(Exception):
    """The guest left with an exit that the VM's policy does not handle: `exit`."""

    def __init__(self, exit_: Exit) -> None:
        super().__init__(f"KVM_EXIT_{exit_.reason.name} {exit_.fields()}")
        self.exit = exit_


class VCPU:
    """A vCPU. One thread at a time runs it; `kick` may come from any. Made by VM.create_vcpu().

    What its guest code raises, run() raises: the code has ended then.
    """

    def __init__(self, machine: VirtualMachine, vcpu: Vcpu) -> None:
        self._vmm = machine.vmm
        self._vcpu = vcpu
        self._kvm = machine.kvm
        self._loaded: Program[Exit] | None = None
        self._running = sync.lock("VCPU.running")
        self._kicked = False
        self._closed = False
        self.cpu = Cpu(machine.guest, vcpu)
        self.result: object = None
        """What the guest code returned; None before that."""
        self.is_done = False
        """The guest code has returned: from then on the vCPU halts."""

    @property
    def id(self) -> int:
        return self._vcpu.id

    @property
    def exit_struct(self) -> KvmRun:
        """struct kvm_run, as it would be mapped: valid after an exit."""
        return self._vcpu.run

    # -- the guest's code

    def load(self, code: GuestCode) -> None:
        """The next run starts the guest again, with this code. What it did before has happened."""
        self._loaded = self._boot(code(self.cpu))
        self.result, self.is_done = None, False

    def _boot(self, program: Program[object]) -> Program[Exit]:
        self.result = yield from program
        self.is_done = True
        while True:
            yield from self._vcpu.entry()
            yield HltExit()

    # -- KVM_RUN

    def kvm_run(self) -> Exit:
        """ioctl(KVM_RUN): the guest runs to its next exit, which user space handles, or answers in `exit_struct` or by
        `answer`, before the next KVM_RUN. HltExit also when its code has ended, IntrExit when it was kicked.

        Refused: EINVAL no code was loaded, EBUSY another thread runs this vCPU, EBADF the VM is closed; and what the
        guest code itself raises.
        """
        with self._run_by_me() as begin:
            kvm_run: Callable[[], Exit] = self._vmm.on_a_thread(self._vcpu, begin, self._wanted_back)
            return self._ran(kvm_run)

    def run(self) -> Exit:
        """KVM_RUN in a loop: port I/O is served (a console at 0x3f8 and 0xe9; other ports read all ones), exits that
        the VM's policy handles (conversions) are handled, and the first other one comes back.

        Refused as kvm_run(), and with the errno of a conversion that failed and changed nothing.
        """
        with self._run_by_me() as begin:
            return self._ran(lambda: self._vmm.run(self._vcpu, begin, self._wanted_back))

    def handle(self, exit_: Exit) -> bool:
        """Let the ports or the policy handle the exit that kvm_run() has just returned. True: run the vCPU again.
        Refused: the conversion failed, and changed nothing."""
        return self._vmm.handle(self._vcpu, exit_)

    def console(self) -> str:
        """What the guest has printed since the last time: its OUTs to a console port, as `run` and `handle` serve
        them."""
        return self._vmm.ports.console(self._vcpu)

    def answer(self, *, data: bytes | None = None, ret: int | None = None) -> None:
        """For the next KVM_RUN: data is what an MMIO read or an IN returns, ret what a hypercall does (or 0 to a map
        request where there is no memory). EINVAL: the vCPU is at no such exit, or data has not the length that it asks
        for."""
        if data is not None:
            answer_read(self._vcpu, data)
        if ret is not None:
            answer_hypercall(self._vcpu, ret)

    def kick(self) -> None:
        """From any thread: the KVM_RUN under way, or else the next one, ends with IntrExit."""
        self._kicked = True
        self._vcpu.request_exit()

    # -- the whole of a guest's work at once

    def execute(self, code: Callable[[Cpu], Program[R]]) -> R:
        """Load this code and run it to its end under the VM's policy; what it returns.

        UnhandledExit: an exit that the policy does not handle; run() goes on from there. Refused as run().
        """
        self.load(code)
        exit_ = self.run()
        if not self.is_done:
            raise UnhandledExit(exit_)
        result: R = self.result  # type: ignore[assignment]
        return result

    def read(self, gpa: int, length: int, *, shared: bool = False) -> bytes:
        """The guest reads. UnhandledExit and Refused as execute()."""
        return self.execute(lambda cpu: cpu.read(gpa, length, shared=shared))

    def write(self, gpa: int, data: bytes, *, shared: bool = False) -> None:
        """The guest writes. UnhandledExit and Refused as execute()."""
        self.execute(lambda cpu: cpu.write(gpa, data, shared=shared))

    # -- ioctls of a vCPU that are not KVM_RUN

    def pre_fault_memory(self, gpa: int, size: int, *, shared: bool = False) -> int:
        """KVM_PRE_FAULT_MEMORY of bytes [gpa, gpa + size); how many at its end are still to do, because something
        stopped it. Refused: EINVAL unaligned or empty, ENOENT no slot, EBUSY another thread runs the vCPU, EINTR
        kicked, or why the store gives no page (ENOSPC)."""

        def ioctl() -> int:
            return self._kvm.pre_fault(self._vcpu, gpa, size, shared=shared)

        left: int = self._vmm.on_a_thread(self._vcpu, ioctl, self._wanted_back, again=ioctl)()
        return left

    def init_mem_region(self, gpa: int, image: bytes) -> None:
        """KVM_TDX_INIT_MEM_REGION: an image, filled up with zeros to whole pages, into private memory from gpa on; it
        is measured. Refused: EINVAL unaligned, empty, no private slot there, or finalized; EFBIG the slot is shorter;
        EEXIST a page is in use."""
        padded = image + bytes(-len(image) % PAGE_SIZE)

        def read(offset: int, length: int) -> bytes:
            return padded[offset : offset + length]

        def ioctl() -> None:
            self._kvm.image.populate(self._vcpu, gpa, len(padded) // PAGE_SIZE, read)

        self._vmm.on_a_thread(self._vcpu, ioctl, self._wanted_back, again=ioctl)()

    # -- its end

    def close(self) -> None:
        """The vCPU leaves, and what is under way is abandoned. By VM.close()."""
        self._closed = True
        self.kick()
        if not self._running.acquire(timeout=ANSWER_DEADLINE_S):
            raise Refused(errno.EBUSY, f"vCPU {self.id} still waits for the store: close the VM again")
        try:
            self._vcpu.take()
            self._vcpu.release()
        finally:
            self._running.release()

    # -- how KVM_RUN begins and ends

    @contextmanager
    def _run_by_me(self) -> Iterator[Callable[[], Exit]]:
        """The first KVM_RUN, to be called once."""
        mine = self._running.acquire(blocking=False)
        try:
            if self._closed:
                raise Refused(errno.EBADF, "the VM is closed: make another one")
            if not mine:
                raise Refused(errno.EBUSY, f"another thread runs vCPU {self.id}: wait for it, or kick it")
            program, self._loaded = self._loaded, None
            yield self._kvm_run if program is None else lambda: self._vcpu.start(program)
        finally:
            if mine:
                self._running.release()

    def _kvm_run(self) -> Exit:
        exit_: Exit = self._vcpu.kvm_run()  # type: ignore[assignment]
        return exit_

    def _ran(self, kvm_run: Callable[[], Exit]) -> Exit:
        try:
            return kvm_run()
        except Refused as refused:
            if refused.errno != errno.EINTR:
                raise
            return INTR

    def _wanted_back(self, _: int) -> bool:
        wanted, self._kicked = self._kicked, False
        return wanted
