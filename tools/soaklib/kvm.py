"""All that the soak uses of kvmsim: a VM with private memory at GPA 0, several vCPUs, and a policy."""

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kvmsim.kvm.alias import PRIVATE, SHARED
from kvmsim.kvm.exits import Exit, HltExit, MemoryErrorExit
from kvmsim.kvm.region import MemoryRegion
from kvmsim.kvm.vcpu import Vcpu
from kvmsim.machine import VirtualMachine
from kvmsim.memory.encrypted import MemoryKey
from kvmsim.memory.memory import WindowMemory
from kvmsim.shell.image import read_program
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.limits import MAX_SLOTS
from memfsd.uapi.units import Gfn

PAGE_SHIFT = 12
STORE_GONE = (errno.ENOTCONN, errno.ECONNABORTED)
_LOSS_DEADLINE_S = 60.0
_TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a guest's action did not happen. errno 0: an exit that the policy left, for want of a slot."""

    errno: int
    why: str
    refused: bool = False
    """User space refused a conversion, and changed nothing."""


class Vm:
    """Each vCPU has a thread, and its actions come from there."""

    def __init__(
        self, name: str, path: str, size_bytes: int, policy: str, under: str, vcpu_count: int, *, encrypted: bool
    ) -> None:
        open_window = MemoryKey().open_window if encrypted else WindowMemory
        self._machine = VirtualMachine(name, MAX_SLOTS, open_window=open_window)
        self._machine.vmm.memory.set_private_slot(MemoryRegion.private(0, 0, size_bytes), path)
        (self._link,) = self._machine.kvm.pairings.links.values()
        for id_ in range(1, vcpu_count):
            self._machine.vm.create_vcpu(id_)
        self._machine.vmm.set_policy(policy, under)
        self._pages = size_bytes >> PAGE_SHIFT
        self._wanted_back = threading.Event()

    # -- what a guest does

    def read(self, vcpu: int, page: int, count: int, *, shared: bool) -> bytes | Trouble:
        cpu, guest = self._machine.vm.vcpu(vcpu), self._machine.guest
        got = self._run(cpu, lambda: guest.read(cpu, page << PAGE_SHIFT, count << PAGE_SHIFT, shared=shared))
        assert got is not None
        return got

    def write(self, vcpu: int, page: int, data: bytes, *, shared: bool) -> Trouble | None:
        cpu, guest = self._machine.vm.vcpu(vcpu), self._machine.guest
        done = self._run(cpu, lambda: guest.write(cpu, page << PAGE_SHIFT, data, shared=shared))
        assert not isinstance(done, bytes)
        return done

    def convert(self, vcpu: int, page: int, count: int, *, private: bool) -> Trouble | None:
        """The explicit request (MapGPA)."""
        cpu, guest = self._machine.vm.vcpu(vcpu), self._machine.guest
        done = self._run(cpu, lambda: guest.map(cpu, page << PAGE_SHIFT, count << PAGE_SHIFT, private=private))
        assert not isinstance(done, bytes)
        return done

    def _run(self, cpu: Vcpu, action: Callable[[], bytes | Exit | None]) -> bytes | Trouble | None:
        """User space's loop around KVM_RUN. What is under way after trouble is abandoned by the vCPU's next action."""
        vmm = self._machine.vmm
        try:
            result = vmm.run(cpu, action, lambda _: self._wanted_back.is_set())
        except Refused as refused:
            return Trouble(refused.errno, f"{errno_name(refused.errno)}: {refused.reason}", refused=True)
        if isinstance(result, HltExit):
            return None
        if isinstance(result, Exit):
            number, why = (result.errno, result.why) if isinstance(result, MemoryErrorExit) else (0, "")
            return Trouble(number, why or str(result))
        assert result is None or isinstance(result, bytes)
        return result

    # -- machine code

    def boot(self, vcpu: int, name: str) -> Trouble | None:
        """A shipped guest program."""
        cpu, program = self._machine.vm.vcpu(vcpu), read_program(f"guest:{name}", None, None)
        done = self._run(cpu, lambda: self._machine.cpus.boot(cpu, program))
        assert not isinstance(done, bytes)
        return done

    def execute(self, vcpu: int, *, again: bool = False) -> Trouble | None:
        """To the next HLT. again: after one."""
        cpu = self._machine.vm.vcpu(vcpu)
        done = self._run(cpu, (lambda: self._going_on(cpu)) if again else (lambda: self._machine.cpus.run(cpu)))
        assert not isinstance(done, bytes)
        return done

    @staticmethod
    def _going_on(cpu: Vcpu) -> Exit | None:
        exit_ = cpu.kvm_run()
        assert exit_ is None or isinstance(exit_, Exit)
        return exit_

    def console(self, vcpu: int) -> str:
        """What has been printed since the last time."""
        return self._machine.console(self._machine.vm.vcpu(vcpu))

    def has_printed(self, vcpu: int) -> bool:
        return self._machine.vmm.ports.has_printed(self._machine.vm.vcpu(vcpu))

    def want_back(self) -> None:
        """Every vCPU comes out with EINTR, until `let_go_on`."""
        self._wanted_back.set()
        for cpu in self._machine.vm.vcpus.values():
            cpu.request_exit()

    def let_go_on(self) -> None:
        """No vCPU is in KVM_RUN."""
        self._wanted_back.clear()
        for cpu in self._machine.vm.vcpus.values():
            cpu.run.immediate_exit = 0

    # -- what is known of it, while no conversion is under way

    def shared_pages(self, page: int, count: int) -> list[bool]:
        """Which of these pages an ordinary slot shows."""
        with self._machine.vmm.inhibitor.in_kvm_run(), self._machine.vm.mmu.lock:
            slots = self._machine.vm.slots[SHARED]
            return [slots.lookup(Gfn(gfn)) is not None for gfn in range(page, page + count)]

    def slot_around(self, page: int) -> tuple[int, int]:
        """Pages [first, end) of the private slot that has this page; empty when none has."""
        with self._machine.vmm.inhibitor.in_kvm_run(), self._machine.vm.mmu.lock:
            slot = self._machine.vm.slots[PRIVATE].lookup(Gfn(page))
            return (0, 0) if slot is None else (slot.gfn, slot.end)

    @property
    def lost(self) -> str:
        """Why the store is gone; "" while it is there."""
        return self._link.lost

    def await_loss(self) -> None:
        """A system call on the mount may show the end of memfsd before its sockets do."""
        until = time.monotonic() + _LOSS_DEADLINE_S
        while not self.lost and time.monotonic() < until:
            time.sleep(_TICK_S)

    @property
    def fault_count(self) -> int:
        return self._machine.vm.mmu.fault_count

    @property
    def converted_count(self) -> int:
        return self._machine.vmm.converted_count

    @property
    def lost_page_count(self) -> int:
        return self._machine.vmm.tally.lost_pages

    def close(self) -> None:
        self._machine.close()
