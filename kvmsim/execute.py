"""Script commands to calls of the machines: what each does, and what it answers."""

import errno
import os
import subprocess
from collections.abc import Callable
from typing import Any

from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.limits import MAX_ACCESS_BYTES, MAX_VMS

from . import info
from .computer import Computer
from .core.exits import Exit, MemoryErrorExit
from .host import VMM, Host, encrypted_of, memory_of
from .host_commands import HostCommands
from .info import Answer
from .memory import AnonymousMemory, FileMemory, Memory
from .script import commands as c
from .script.outcome import Outcome


class Executor:
    """All VMs of a process; vm0 exists and is current."""

    def __init__(self, max_slots: int, policy: str = "none", under: str = "kept") -> None:
        self._max_slots = max_slots
        self._policy = policy, under
        self._computers: dict[str, Computer] = {}
        self._host = Host()
        self._doers: dict[type[c.Command], Callable[[Any], Outcome]] = {
            c.CreateVm: self._vm,
            c.CreateVcpu: self._vcpu,
            c.SlotSet: self._slot_set,
            c.SlotDelete: self._slot_delete,
            c.SlotPunch: self._slot_punch,
            c.Read: self._read,
            c.Write: self._write,
            c.Touch: self._touch,
            c.MapRange: self._map,
            c.Load: self._load,
            c.Sha256: self._sha256,
            c.HostRead: self._host_read,
            c.HostWrite: self._host_write,
            c.SetPolicy: self._set_policy,
            c.Info: self._info,
            c.Sh: self._sh,
        }
        self._doers |= HostCommands(self._host, self._computers).doers()
        self._topics: dict[str, Callable[[], Answer]] = {
            "slots": lambda: info.slots(self._current),
            "ept": lambda: info.ept(self._current),
            "mmu": lambda: info.mmu(self._current),
            "memory": lambda: info.memory(self._current),
            "stats": lambda: info.stats(self._current),
            "vms": self._vms,
            "hva": lambda: info.hva(list(self._host.processes.values())),
        }
        self._current = self._create("vm0")

    def __call__(self, command: c.Command) -> Outcome:
        """Do one command; every failure is an Outcome or Refused."""
        try:
            return self._doers[type(command)](command)
        except PeerLost as lost:
            raise Refused(errno.EHOSTDOWN, str(lost)) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise Refused(error.errno or errno.EIO, f"{where}{error.strerror or error}") from None

    def close(self) -> None:
        for computer in self._computers.values():
            computer.close()
        self._host.close()

    # -- VMs, vCPUs, slots

    def _create(self, name: str) -> Computer:
        if name in self._computers:
            raise Refused(errno.EEXIST, f"VM {name} exists")
        if len(self._computers) >= MAX_VMS:
            raise Refused(errno.ENOSPC, f"{MAX_VMS} VMs are the limit")
        computer = Computer(name, self._max_slots)
        computer.vmm.set_policy(*self._policy)
        self._computers[name] = computer
        return computer

    def _vm(self, command: c.CreateVm) -> Outcome:
        self._current = self._create(command.vm)
        return Outcome(ok=True)

    def _vcpu(self, command: c.CreateVcpu) -> Outcome:
        self._current.vm.create_vcpu(command.vcpu)
        return Outcome(ok=True)

    def _slot_set(self, command: c.SlotSet) -> Outcome:
        machine = self._current.machine
        space = self._host.processes[VMM]
        if command.private:
            path, fd = command.file or "", None
            if command.hva is not None and command.size:
                path, fd = encrypted_of(space, command.hva, command.size)
            machine.set_private_slot(
                command.id, command.gpa, command.size, command.flags, path, command.offset, mapped_fd=fd
            )
            return Outcome(ok=True)
        memory: Memory | None = None
        path, offset = command.file or "", command.offset
        existing = self._current.vm.slots[False].get(command.id)
        if command.hva is not None and command.size:
            vma = space.backing(command.hva, command.size)
            memory, path, offset = memory_of(vma), str(vma), vma.memory_offset + command.hva - vma.start
        elif existing is None and command.size:
            memory, path = self._shared_memory(command)
        machine.set_shared_slot(
            command.id, command.gpa, command.size, command.flags, memory, offset, owned=command.hva is None, path=path
        )
        return Outcome(ok=True)

    @staticmethod
    def _shared_memory(command: c.SlotSet) -> tuple[Memory, str]:
        if command.file is None:
            return AnonymousMemory(command.offset + command.size), "(anonymous)"
        return FileMemory(os.open(command.file, os.O_RDWR | os.O_CLOEXEC)), command.file

    def _slot_delete(self, command: c.SlotDelete) -> Outcome:
        self._current.machine.delete_slot(command.id, private=command.private)
        return Outcome(ok=True)

    def _slot_punch(self, command: c.SlotPunch) -> Outcome:
        self._current.machine.punch_slot(command.id, command.gpa, command.size)
        return Outcome(ok=True)

    # -- the guest

    def _read(self, command: c.Read) -> Outcome:
        computer = self._current
        vcpu = computer.vm.vcpu(command.vcpu)
        return self._finish(
            computer.vmm.run(lambda: computer.guest.read(vcpu, command.gpa, command.length, shared=command.shared))
        )

    def _write(self, command: c.Write) -> Outcome:
        computer = self._current
        vcpu = computer.vm.vcpu(command.vcpu)
        return self._finish(
            computer.vmm.run(lambda: computer.guest.write(vcpu, command.gpa, command.data, shared=command.shared))
        )

    def _touch(self, command: c.Touch) -> Outcome:
        computer = self._current
        vcpu = computer.vm.vcpu(command.vcpu)
        return self._finish(
            computer.vmm.run(lambda: computer.guest.touch(vcpu, command.gpa, command.size, shared=command.shared))
        )

    def _map(self, command: c.MapRange) -> Outcome:
        computer = self._current
        vcpu = computer.vm.vcpu(command.vcpu)
        return self._finish(
            computer.vmm.run(lambda: computer.guest.map(vcpu, command.gpa, command.size, private=command.private))
        )

    def _load(self, command: c.Load) -> Outcome:
        computer, gpa = self._current, command.gpa
        vcpu = computer.vm.vcpu(0)
        with open(command.path, "rb") as file:
            while chunk := file.read(MAX_ACCESS_BYTES):
                result = computer.vmm.run(lambda at=gpa, data=chunk: computer.guest.write(vcpu, at, data))  # type: ignore[misc]
                if result is not None:
                    return self._finish(result)
                gpa += len(chunk)
        return Outcome(ok=True, text=f"{gpa - command.gpa} bytes")

    def _sha256(self, command: c.Sha256) -> Outcome:
        computer = self._current
        vcpu = computer.vm.vcpu(0)
        result = computer.vmm.run(lambda: computer.guest.sha256(vcpu, command.gpa, command.length))
        if isinstance(result, bytes):
            return Outcome(ok=True, data=result, text=result.hex())
        return self._finish(result)

    def _host_read(self, command: c.HostRead) -> Outcome:
        return self._finish(self._current.guest.host_access(command.gpa, command.length, None))

    def _host_write(self, command: c.HostWrite) -> Outcome:
        result = self._current.guest.host_access(command.gpa, len(command.data), command.data)
        return self._finish(None if isinstance(result, bytes) else result)

    @staticmethod
    def _finish(result: bytes | Exit | None) -> Outcome:
        if result is None:
            return Outcome(ok=True)
        if isinstance(result, bytes):
            return Outcome(ok=True, data=result)
        name = f"KVM_EXIT_{result.reason.name}"
        why = result.why if isinstance(result, MemoryErrorExit) else ""
        return Outcome(ok=False, exit=name, exit_fields=result.fields(), reason=why)

    # -- around it

    def _set_policy(self, command: c.SetPolicy) -> Outcome:
        self._current.vmm.set_policy(command.policy, command.under)
        self._policy = command.policy, command.under
        return Outcome(ok=True)

    def _sh(self, command: c.Sh) -> Outcome:
        done = subprocess.run(
            ["/bin/sh", "-c", command.command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        text = done.stdout.decode(errors="replace").rstrip("\n")
        return Outcome(ok=done.returncode == 0, status=done.returncode, text=text)

    def _info(self, command: c.Info) -> Outcome:
        facts, text = self._topics[command.what]()
        return Outcome(ok=True, info=facts, text=text)

    def _vms(self) -> Answer:
        return info.vms(self._computers, self._current)
