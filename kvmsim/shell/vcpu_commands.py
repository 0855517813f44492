"""Script commands that run a vCPU: what each lets the guest do, under the VM's policy, and how its result is reported.

A command whose vCPU exits leaves the rest under way; `resume` goes on with it and reports the result of that command.
`start` does a command on its own thread, as a VMM has a thread for each vCPU.
"""

import errno
import os
import queue
import select
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from kvmsim.kvm.exits import Exit, FailedExit, MemoryErrorExit, MemoryFaultExit, ShutdownExit
from kvmsim.kvm.hypercalls import STATUS_NAMES, SUCCESS, Registers
from kvmsim.kvm.vcpu import Vcpu
from kvmsim.machine import VirtualMachine
from kvmsim.vmm.answers import answer_hypercall, answer_read
from memfsd.common import sync
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.limits import MAX_ACCESS_BYTES

from .image import open_image, read_program
from .interrupt import Interrupt
from .script import commands as c
from .script.outcome import Outcome

Begin = Callable[[], object]
"""The first KVM_RUN: a result, or an exit."""
Tell = Callable[[Any], Outcome]
"""The result of a command, once it has one."""
Do = Callable[[], Outcome]
_LOOK_UP_MS = 100
"""Between two looks at immediate_exit while a pipe that is loaded has nothing to read."""


class VcpuCommands:
    """Those of one VM. Commands are prepared on the thread of the script, and done there or on one of their own."""

    def __init__(self, machine: VirtualMachine, interrupt: Interrupt) -> None:
        self._machine = machine
        self._kvm = machine.kvm
        self._vm = machine.vm
        self._guest = machine.guest
        self._vmm = machine.vmm
        self._interrupt = interrupt
        self._under_way: dict[int, Tell] = {}
        """By vCPU: how the result of what is under way is reported. Written by the thread that runs the vCPU."""
        self._started: dict[int, _Thread] = {}
        self._kicked: set[int] = set()
        """vCPUs that the script wants back: EINTR of others was user space's own doing."""

    def do(self, command: c.GuestCommand) -> Outcome:
        """An interrupt kicks the vCPU: EINTR, and `resume` goes on."""
        do = self._prepare(command)
        try:
            with self._interrupt.stops(lambda: self._want_back(command.vcpu)):
                return do()
        finally:
            if self._interrupt.asked and self._wanted_back(command.vcpu):  # it came when the command had ended already
                self._vm.vcpu(command.vcpu).run.immediate_exit = 0

    def start(self, command: c.GuestCommand) -> Outcome:
        """EBUSY until what was started on that vCPU before is joined."""
        do = self._prepare(command)
        self._started[command.vcpu] = _Thread(f"vcpu{command.vcpu}", do)
        return Outcome(ok=True)

    def join(self, vcpu: int) -> Outcome:
        """What the started command came to: its outcome, or its refusal."""
        started = self._started.get(vcpu)
        if started is None:
            raise Refused(errno.EINVAL, f"nothing was started on vCPU {vcpu}: write for example start read 0 4")
        with self._interrupt.stops(started.stop_waiting):
            ended = started.wait()
        if not ended:
            raise Refused(errno.EINTR, f"vCPU {vcpu} runs on: join it later, or kick and join it")
        del self._started[vcpu]
        return started.outcome()

    def kick(self, vcpu: int) -> Outcome:
        """Its KVM_RUN ends with EINTR: the one under way, or the next."""
        self._want_back(vcpu)
        return Outcome(ok=True)

    def close(self) -> None:
        """Every vCPU leaves, and what is under way is abandoned."""
        for id_, started in self._started.items():
            self._want_back(id_)
            while not started.wait():
                pass
        for vcpu in self._vm.vcpus.values():
            vcpu.take()
            vcpu.release()

    def _prepare(self, command: c.GuestCommand) -> Do:
        vcpu = self._vm.vcpu(command.vcpu)
        if vcpu.id in self._started:
            raise Refused(errno.EBUSY, f"vCPU {vcpu.id} does what was started: join it first, or kick and join it")
        ioctl = _IOCTLS.get(type(command))
        if ioctl is not None:
            return lambda: ioctl(self, vcpu, command)
        begin, tell = _MAKERS[type(command)](self, vcpu, command)
        return lambda: self._run(vcpu, begin, tell)

    def _pre_fault(self, vcpu: Vcpu, command: c.PreFault) -> Outcome:
        """One ioctl, whose struct the kernel has changed when it returns 0."""

        def ioctl() -> int:
            return self._kvm.pre_fault(vcpu, command.gpa, command.size, shared=command.shared)

        left: int = self._vmm.on_a_thread(vcpu, ioctl, self._wanted_back, again=ioctl)()
        if left and self._wanted_back(vcpu.id):  # the kick has done what it is for
            vcpu.run.immediate_exit = 0
        gpa = command.gpa + command.size - left
        return Outcome(ok=True, info={"gpa": gpa, "size": left}, text=f"gpa={gpa:#x} size={left:#x}")

    def _populate(self, vcpu: Vcpu, command: c.Populate) -> Outcome:
        with open_image(command.path) as image:

            def ioctl() -> None:
                self._kvm.image.populate(vcpu, command.gpa, image.page_count, image.read)

            self._vmm.on_a_thread(vcpu, ioctl, self._wanted_back, again=ioctl)()
            return Outcome(ok=True, text=f"{image.size} bytes, {image.page_count} pages")

    def _run(self, vcpu: Vcpu, begin: Begin, tell: Tell) -> Outcome:
        """User space's loop around KVM_RUN: the policy repairs, and the vCPU goes on where it was."""
        before = vcpu.program
        try:
            result = self._vmm.run(vcpu, begin, self._wanted_back)
        except Refused as refused:
            printed = self._machine.console(vcpu)
            if not printed:
                raise
            return replace(Outcome.refused(refused), text=printed)
        finally:
            if vcpu.program is not before:  # else it was refused before it began: what was under way still is
                self._under_way[vcpu.id] = tell
        outcome = exited(result) if isinstance(result, Exit) else tell(result)
        printed = self._machine.console(vcpu)
        return replace(outcome, text=f"{printed}{outcome.text}") if printed else outcome

    def _want_back(self, vcpu: int) -> None:
        kicked = self._vm.vcpu(vcpu)
        self._kicked.add(vcpu)
        kicked.request_exit()

    def _wanted_back(self, vcpu: int) -> bool:
        wanted = vcpu in self._kicked
        self._kicked.discard(vcpu)
        return wanted

    # -- what each command does, and reports

    def _read(self, vcpu: Vcpu, command: c.Read) -> tuple[Begin, Tell]:
        return (
            lambda: self._guest.read(vcpu, command.gpa, command.length, shared=command.shared),
            lambda data: Outcome(ok=True, data=data, address=command.gpa),
        )

    def _write(self, vcpu: Vcpu, command: c.Write) -> tuple[Begin, Tell]:
        return lambda: self._guest.write(vcpu, command.gpa, command.data, shared=command.shared), _done

    def _touch(self, vcpu: Vcpu, command: c.Touch) -> tuple[Begin, Tell]:
        return lambda: self._guest.touch(vcpu, command.gpa, command.size, shared=command.shared), _done

    def _map(self, vcpu: Vcpu, command: c.MapRange) -> tuple[Begin, Tell]:
        return lambda: self._guest.map(vcpu, command.gpa, command.size, private=command.private), _done

    def _load(self, vcpu: Vcpu, command: c.Load) -> tuple[Begin, Tell]:
        return (
            lambda: self._guest.load(vcpu, command.gpa, _chunks(command.path)),
            lambda size: Outcome(ok=True, text=f"{size} bytes"),
        )

    def _sha256(self, vcpu: Vcpu, command: c.Sha256) -> tuple[Begin, Tell]:
        return (
            lambda: self._guest.sha256(vcpu, command.gpa, command.length),
            lambda digest: Outcome(ok=True, data=digest, text=digest.hex()),
        )

    def _tdvmcall(self, vcpu: Vcpu, command: c.Tdvmcall) -> tuple[Begin, Tell]:
        asked = Registers(0, command.r11, command.r12, command.r13, command.r14, command.r15)

        def tell(registers: Registers) -> Outcome:
            r10, r11 = registers.r10, registers.r11
            shown = f"R10={r10:#x} ({STATUS_NAMES.get(r10, 'unknown')}) R11={r11:#x}"
            return _returned(r10 == SUCCESS, r10, {"r10": r10, "r11": r11}, shown)

        return lambda: self._guest.tdvmcall(vcpu, asked), tell

    def _hypercall(self, vcpu: Vcpu, command: c.Hypercall) -> tuple[Begin, Tell]:
        args = (command.a0, command.a1, command.a2, command.a3, command.a4, command.a5)

        def tell(rax: int) -> Outcome:
            signed = rax - (rax >> 63 << 64)
            return _returned(signed >= 0, rax, {"rax": rax}, f"RAX={rax:#x} ({signed})")

        return lambda: self._guest.vmcall(vcpu, command.nr, args), tell

    def _boot(self, vcpu: Vcpu, command: c.Boot) -> tuple[Begin, Tell]:
        image = read_program(command.path, command.at, command.entry)
        text = f"{image.size} bytes, entry {image.entry:#x}"
        return lambda: self._machine.cpus.boot(vcpu, image), lambda _: Outcome(ok=True, text=text)

    def _cpu_run(self, vcpu: Vcpu, _: c.CpuRun) -> tuple[Begin, Tell]:
        return lambda: self._machine.cpus.run(vcpu), _done

    def _cpu_step(self, vcpu: Vcpu, command: c.CpuStep) -> tuple[Begin, Tell]:
        return lambda: self._machine.cpus.run(vcpu, command.count), _done

    def _hlt(self, vcpu: Vcpu, _: c.Hlt) -> tuple[Begin, Tell]:
        return lambda: self._guest.hlt(vcpu), _done

    def _shutdown(self, vcpu: Vcpu, _: c.Shutdown) -> tuple[Begin, Tell]:
        return lambda: self._guest.shutdown(vcpu), _done

    def _resume(self, vcpu: Vcpu, command: c.Resume) -> tuple[Begin, Tell]:
        """The answers are written before KVM_RUN, as user space does. EINVAL for one that the exit does not ask for."""
        if command.data is not None:
            answer_read(vcpu, command.data)
        if command.ret is not None:
            answer_hypercall(vcpu, command.ret)
        return vcpu.kvm_run, self._under_way.get(vcpu.id, _done)


_MAKERS: dict[type[c.GuestCommand], Callable[[VcpuCommands, Vcpu, Any], tuple[Begin, Tell]]] = {
    c.Read: VcpuCommands._read,
    c.Write: VcpuCommands._write,
    c.Touch: VcpuCommands._touch,
    c.MapRange: VcpuCommands._map,
    c.Load: VcpuCommands._load,
    c.Sha256: VcpuCommands._sha256,
    c.Tdvmcall: VcpuCommands._tdvmcall,
    c.Hypercall: VcpuCommands._hypercall,
    c.Boot: VcpuCommands._boot,
    c.CpuRun: VcpuCommands._cpu_run,
    c.CpuStep: VcpuCommands._cpu_step,
    c.Hlt: VcpuCommands._hlt,
    c.Shutdown: VcpuCommands._shutdown,
    c.Resume: VcpuCommands._resume,
}
_IOCTLS: dict[type[c.GuestCommand], Callable[[VcpuCommands, Vcpu, Any], Outcome]] = {
    c.PreFault: VcpuCommands._pre_fault,
    c.Populate: VcpuCommands._populate,
}
"""Of a vCPU, and not KVM_RUN."""
GUEST_COMMANDS = (*_MAKERS, *_IOCTLS)


class _Thread:
    """A command on its own thread. Its exception is the joiner's."""

    def __init__(self, name: str, do: Do) -> None:
        self._do = do
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._ended: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """True: it has ended; False: the waiter has had enough."""
        self._thread = sync.thread(self._run, name)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise Refused(errno.EAGAIN, f"{name}: {error}: raise ulimit -u or -v, or join what runs") from None

    def _run(self) -> None:
        try:
            self._outcome = self._do()
        except BaseException as error:
            self._error = error
        finally:
            self._ended.put(True)

    def wait(self) -> bool:
        """True when it has ended, also if that was waited for before; False after `stop_waiting`."""
        ended = not self._thread.is_alive() or self._ended.get()
        if ended:
            self._thread.join()
        return ended

    def stop_waiting(self) -> None:
        """From a signal handler of the waiting thread."""
        self._ended.put(False)

    def outcome(self) -> Outcome:
        """After the wait."""
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome


def exited(exit_: Exit) -> Outcome:
    """The exit, as the outcome of the command whose vCPU came back with it."""
    why = exit_.why if isinstance(exit_, MemoryErrorExit | MemoryFaultExit | FailedExit | ShutdownExit) else ""
    number = errno_name(exit_.errno) if isinstance(exit_, MemoryFaultExit | FailedExit) else None
    return Outcome(ok=False, errno=number, exit=f"KVM_EXIT_{exit_.reason.name}", exit_fields=exit_.fields(), reason=why)


def _returned(ok: bool, ret: int, registers: dict[str, int], shown: str) -> Outcome:
    """A call that came back to the guest; not ok when its status is an error."""
    return Outcome(ok=ok, ret=ret, info=registers, text=shown if ok else "", reason="" if ok else shown)


def _done(_: object) -> Outcome:
    return Outcome(ok=True)


def _chunks(path: str) -> Iterator[bytes]:
    """Of a host file; b"" now and then while a pipe or a terminal has nothing to read, so that a kick gets through."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        waits = not stat.S_ISREG(os.fstat(fd).st_mode)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while True:
            if waits and not poll.poll(_LOOK_UP_MS):
                yield b""
            elif chunk := os.read(fd, MAX_ACCESS_BYTES):
                yield chunk
            else:
                return
    finally:
        os.close(fd)
