"""Script commands to calls of the machines: what each does, and what it answers."""

import errno
import signal
import subprocess
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from kvmsim.cpu.x86.library import check
from kvmsim.kvm.alias import Alias
from kvmsim.kvm.pairings import Pair
from kvmsim.kvm.region import MemoryRegion
from kvmsim.kvm.tampering import tamper
from kvmsim.memory.memory import Memory, OpenWindow, WindowMemory, shared_memory
from kvmsim.store.link import pair as pair_with_store
from kvmsim.vmm.guest_memory import GuestMemory
from kvmsim.vmm.host import VMM, Host, encrypted_of, memory_of
from memfsd.common.quote import quoted
from memfsd.uapi.abi import THREAD, Abi
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.limits import MAX_VMS
from memfsd.uapi.messages import KVM_OPERATIONS, Kind

from . import info
from .gmem_commands import GmemCommands
from .host_commands import HostCommands
from .info import Answer
from .interrupt import Interrupt
from .script import commands as c
from .script.outcome import Outcome
from .script_vm import ScriptVm
from .vcpu_commands import GUEST_COMMANDS, exited

_SHELL_ENDS_S = 2.0
"""After an interrupt, which a terminal sends to the shell, too."""


class SwitchEvents(Protocol):
    """Tracing.switch."""

    def __call__(self, pattern: str, *, on: bool) -> None: ...


class Executor:
    """All VMs of a process; vm0 exists and is current."""

    def __init__(
        self,
        max_slots: int,
        policy: str = "none",
        under: str = "kept",
        pair: Pair = pair_with_store,
        windows: Callable[[], OpenWindow] = lambda: WindowMemory,
        operations: frozenset[Kind] = KVM_OPERATIONS,
        abi: Abi = THREAD,
    ) -> None:
        """pair makes the pairing with the file behind an fd; windows is asked for each VM how it maps its windows.
        operations: what stores may call. abi: of every VM."""
        self._operations = operations
        self._abi = abi
        self._max_slots = max_slots
        self._windows = windows
        self._policy = policy, under
        self._pair = pair
        self.interrupt = Interrupt()
        self.switch_events: SwitchEvents | None = None
        """Of the trace, if there is one. EINVAL (Refused): no such event."""
        self._machines: dict[str, ScriptVm] = {}
        self._host = Host()
        self._handlers: dict[type[c.Command], Callable[[Any], Outcome]] = {
            c.SwitchVm: self._vm,
            c.CreateVcpu: self._vcpu,
            c.SlotSet: self._slot_set,
            c.SlotDelete: self._slot_delete,
            c.SlotPunch: self._slot_punch,
            c.SlotDirty: self._slot_dirty,
            **dict.fromkeys(GUEST_COMMANDS, self._run),
            c.Finalize: self._finalize,
            c.ShowMeasurement: self._measurement,
            c.Start: self._start,
            c.Join: self._join,
            c.Kick: self._kick,
            c.CpuRegs: self._cpu_regs,
            c.CpuIrq: self._cpu_irq,
            c.CpuNmi: self._cpu_nmi,
            c.Ioport: self._ioport,
            c.CpuDisasm: self._cpu_disasm,
            c.CapExitHypercall: self._cap_exit_hypercall,
            c.HostRead: self._host_read,
            c.HostWrite: self._host_write,
            c.HostTamper: self._host_tamper,
            c.SetPolicy: self._set_policy,
            c.Info: self._info,
            c.Sh: self._sh,
        }
        self._handlers |= HostCommands(self._host, self._machines).handlers()
        self._gmem = GmemCommands(self._host, self._machines, lambda: self._target)
        self._handlers |= self._gmem.handlers()
        self._topics: dict[str, Callable[[ScriptVm], Answer]] = {
            "slots": info.slots,
            "ept": info.ept,
            "mmu": info.mmu,
            "memory": info.memory,
            "attributes": info.attributes,
            "run": info.run,
            "stats": info.stats,
            "vms": lambda _: info.vms(self._machines, self.current),
            "hva": lambda _: info.hva(list(self._host.processes.values())),
            "gmem": lambda _: info.gmem(self._gmem.facts()),
        }
        self.current = self._target = self._create("vm0")
        """The current VM, and the one that the command is about: its vm=, or else the current one."""

    def __call__(self, command: c.Command) -> Outcome:
        """Do one command; every failure is an Outcome or Refused."""
        self._target = self.machine(command.vm)
        try:
            return self._handlers[type(command)](command)
        except MemoryError:
            raise Refused(errno.ENOMEM, "out of memory: raise the limit (ulimit -v), or give the host more") from None
        except PeerLost as lost:
            raise Refused(errno.EHOSTDOWN, str(lost)) from None
        except OSError as error:
            where = f"{quoted(error.filename)}: " if error.filename else ""
            raise Refused(error.errno or errno.EIO, f"{where}{error.strerror or error}") from None

    # -- what others may ask, from any thread

    @property
    def machines(self) -> dict[str, ScriptVm]:
        """All VMs, now."""
        return self._machines.copy()

    def machine(self, name: str | None) -> ScriptVm:
        """This VM, or the current one. ENOENT (Refused)."""
        return self.current if name is None else self._find(name)

    def info(self, what: str, machine: ScriptVm, gpa: int | None) -> Answer:
        """What `info TOPIC` shows; gpa: the walk to it."""
        return self._topics[what](machine) if gpa is None else info.ept_walk(machine, gpa)

    def close(self) -> None:
        for machine in self._machines.values():
            machine.close()
        self._gmem.close()
        self._host.close()

    # -- VMs, vCPUs, slots

    def _find(self, name: str) -> ScriptVm:
        if name not in self._machines:
            shown = quoted(name)
            raise Refused(errno.ENOENT, f"there is no VM {shown}: create it with 'vm {shown}'")
        return self._machines[name]

    def _create(self, name: str) -> ScriptVm:
        if len(self._machines) >= MAX_VMS:
            raise Refused(
                errno.ENOSPC, f"VM {quoted(name)}: {MAX_VMS} VMs are the limit of one kvmsim: start another one"
            )
        machine = ScriptVm(
            name, self._max_slots, self.interrupt, self._pair, self._windows(), self._operations, self._abi
        )
        try:
            machine.vmm.set_policy(*self._policy)
        except Refused:
            machine.close()
            raise
        self._machines[name] = machine
        return machine

    def _vm(self, command: c.SwitchVm) -> Outcome:
        self.current = self._machines.get(command.to) or self._create(command.to)
        return Outcome(ok=True)

    def _vcpu(self, command: c.CreateVcpu) -> Outcome:
        self._target.vm.create_vcpu(command.vcpu)
        return Outcome(ok=True)

    def _slot_set(self, command: c.SlotSet) -> Outcome:
        guest = self._target.vmm.memory
        with guest.lock:
            return self._set_slot(guest, command)

    def _set_slot(self, guest: GuestMemory, command: c.SlotSet) -> Outcome:
        space = self._host.processes[VMM]
        region = MemoryRegion(
            command.id, Alias(command.private), command.flags, command.gpa, command.size, command.offset
        )
        path = command.file or ""
        if command.private:
            fd = None
            if command.hva is not None and command.size:
                path, fd = encrypted_of(space, command.hva, command.size)
            guest.set_private_slot(region, path, mapped_fd=fd)
            return Outcome(ok=True)
        memory: Memory | None = None
        existing = guest.ram.shared.get(command.id)
        if command.hva is not None and command.size:
            if existing is None:
                guest.check_shared_slot(region._replace(offset=command.hva))
            vma = space.backing(command.hva, command.size)
            memory, path = memory_of(vma), str(vma)
            region = region._replace(offset=vma.memory_offset + command.hva - vma.start)
        elif existing is None and command.size:
            guest.check_shared_slot(region)
            memory, path = shared_memory(command.file, command.offset + command.size)
        guest.set_shared_slot(region, memory, owned=command.hva is None, path=path)
        return Outcome(ok=True)

    def _slot_delete(self, command: c.SlotDelete) -> Outcome:
        guest = self._target.vmm.memory
        with guest.lock:
            guest.delete_slot(command.id, private=command.private)
        return Outcome(ok=True)

    def _slot_dirty(self, command: c.SlotDirty) -> Outcome:
        guest = self._target.vmm.memory
        with guest.lock:
            facts, text = info.dirty(guest.get_dirty_log(command.id))
        return Outcome(ok=True, info=facts, text=text)

    def _slot_punch(self, command: c.SlotPunch) -> Outcome:
        guest = self._target.vmm.memory
        with guest.lock:
            guest.punch_slot(command.id, command.gpa, command.size)
        return Outcome(ok=True)

    # -- vCPUs, and KVM's own accesses

    def _run(self, command: c.GuestCommand) -> Outcome:
        return self._target.vcpu_commands.do(command)

    def _start(self, command: c.Start) -> Outcome:
        return self._target.vcpu_commands.start(command.command)

    def _join(self, command: c.Join) -> Outcome:
        return self._target.vcpu_commands.join(command.vcpu)

    def _kick(self, command: c.Kick) -> Outcome:
        return self._target.vcpu_commands.kick(command.vcpu)

    def _cpu_regs(self, command: c.CpuRegs) -> Outcome:
        facts, text = info.registers(self._target.cpus.registers(self._target.vm.vcpu(command.vcpu)))
        return Outcome(ok=True, info=facts, text=text)

    def _cpu_irq(self, command: c.CpuIrq) -> Outcome:
        check()
        self._target.vm.vcpu(command.vcpu).queue_interrupt(command.vector)
        return Outcome(ok=True)

    def _cpu_nmi(self, command: c.CpuNmi) -> Outcome:
        check()
        self._target.vm.vcpu(command.vcpu).queue_nmi()
        return Outcome(ok=True)

    def _cpu_disasm(self, command: c.CpuDisasm) -> Outcome:
        vcpu = self._target.vm.vcpu(command.vcpu)
        facts, text = info.disassembly(self._target.cpus.disassemble(vcpu, command.address, command.count))
        return Outcome(ok=True, info=facts, text=text)

    def _ioport(self, command: c.Ioport) -> Outcome:
        self._target.vmm.ports.leave(command.port, command.count, left=command.to == "exit")
        return Outcome(ok=True)

    def _cap_exit_hypercall(self, command: c.CapExitHypercall) -> Outcome:
        self._target.vm.exit_hypercalls = command.mask
        return Outcome(ok=True)

    def _finalize(self, command: c.Finalize) -> Outcome:
        self._target.kvm.image.finalize()
        return Outcome(ok=True)

    def _measurement(self, command: c.ShowMeasurement) -> Outcome:
        image = self._target.kvm.image
        digest = image.measurement()
        return Outcome(ok=True, data=digest, text=digest.hex(), info={"final": image.is_final})

    def _host_read(self, command: c.HostRead) -> Outcome:
        result = self._target.guest.host_access(command.gpa, command.length, None)
        if isinstance(result, bytes):
            return Outcome(ok=True, data=result, address=command.gpa)
        return exited(result)

    def _host_write(self, command: c.HostWrite) -> Outcome:
        result = self._target.guest.host_access(command.gpa, len(command.data), command.data)
        return Outcome(ok=True) if isinstance(result, bytes) else exited(result)

    def _host_tamper(self, command: c.HostTamper) -> Outcome:
        tamper(self._target.vm, command.gpa, command.data)
        return Outcome(ok=True)

    # -- around it

    def _set_policy(self, command: c.SetPolicy) -> Outcome:
        """Also of the VMs that are made later, unless it names one."""
        self._target.vmm.set_policy(command.policy, command.under)
        if command.vm is None:
            self._policy = command.policy, command.under
        return Outcome(ok=True)

    def _sh(self, command: c.Sh) -> Outcome:
        """An interrupt reaches the shell by the terminal; one that it outlives ends it."""
        with subprocess.Popen(
            ["/bin/sh", "-c", command.command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as shell:
            try:
                with self.interrupt.stops(_interrupted):
                    said, _ = shell.communicate()
            except _Interrupted:
                said = _end(shell)
        text = said.decode(errors="replace").rstrip("\n")
        status, reason = shell.returncode, ""
        if status < 0:
            status, reason = 128 - status, f"the shell was ended by {signal.Signals(-status).name}"
        return Outcome(ok=status == 0, status=status, text=text, reason=reason)

    def _info(self, command: c.Info) -> Outcome:
        facts, text = self.info(command.what, self._target, command.gpa)
        return Outcome(ok=True, info=facts, text=text)


class _Interrupted(Exception):
    """While a shell command ran."""


def _interrupted() -> NoReturn:
    raise _Interrupted


def _end(shell: "subprocess.Popen[bytes]") -> bytes:
    """What it has said until its end. What it left in the background and holds its output open is not waited for."""
    try:
        return shell.communicate(timeout=_SHELL_ENDS_S)[0]
    except subprocess.TimeoutExpired:
        shell.kill()
    try:
        return shell.communicate(timeout=_SHELL_ENDS_S)[0]
    except subprocess.TimeoutExpired as late:
        return late.output or b""
