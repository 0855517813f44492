"""The VMM side: user space that handles exits under a policy, and keeps the shared copy of memory.

Policy `none` handles nothing. The others convert what the guest asks for, each by a design of `kvmsim.conversion`.
"""

import errno
from collections.abc import Callable
from itertools import chain, repeat
from typing import Any, TypeVar

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE

from .backing import GuestVcpu
from .conversion.design import Design, Tally
from .conversion.overlay import Overlay
from .conversion.punch import Punch
from .conversion.recreate import Recreate
from .conversion.shared_copy import SharedCopy
from .core.exits import Exit, MemoryErrorExit
from .inhibit import Inhibitor
from .machine import Machine
from .script.grammar import POLICIES, UNDER

R = TypeVar("R")


class Vmm:
    """One VM's user space: a thread for each vCPU. Exits are handled one at a time, with all vCPUs out of KVM_RUN."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.policy = "none"
        self.under = "kept"
        self.tally = Tally()
        self._copy = SharedCopy(machine)
        self._recreate = Recreate(machine, self._copy, self.tally)
        self.inhibitor = Inhibitor()

    def set_policy(self, name: str, under: str = "kept") -> None:
        """One of script.grammar's POLICIES and UNDER. The slots that the policy before has made stay."""
        assert name in POLICIES and under in UNDER, (name, under)
        if (name == "overlay") != self._machine.vm.overlay:
            self._machine.set_overlay(name == "overlay")
        self.policy, self.under = name, under

    def run(self, action: Callable[[], R | Exit]) -> R | Exit:
        """KVM_RUN in a loop: run, handle the exit, run again, until done or an exit that the policy leaves.

        Refused: the conversion itself failed, and changed nothing.
        """
        last: Exit | None = None
        while True:
            before = self.converted_count
            result = action()
            if isinstance(result, Exit):
                self.tally.exits += 1
            if not isinstance(result, MemoryErrorExit) or self.policy == "none":
                return result
            with self.inhibitor.alone(self._kick_all):
                # Another vCPU's thread may have converted just what this one wants, or have taken it away again.
                alone = self.converted_count == before
                if (alone and result == last) or (not self._handle(result) and alone):
                    return result
            last = result

    def on_a_thread(
        self, vcpu: GuestVcpu, begin: Callable[[], Any], wanted_back: Callable[[int], bool] = lambda vcpu: False
    ) -> Callable[[], Any]:
        """What a vCPU's own thread gives to `run`: KVM_RUN, by `begin` the first time, never while another thread
        changes slots, and again when it was kicked out for that. `wanted_back` tells who kicked it otherwise: EINTR."""
        runs = chain((begin,), repeat(vcpu.kvm_run))

        def kvm_run() -> Any:
            while True:
                with self.inhibitor.running():
                    try:
                        return next(runs)()
                    except Refused as refused:
                        if refused.errno != errno.EINTR:
                            raise
                        vcpu.run.immediate_exit = 0
                        if wanted_back(vcpu.id):
                            raise

        return kvm_run

    def _kick_all(self) -> None:
        for vcpu in list(self._machine.vm.vcpus.values()):
            if vcpu.is_running:
                vcpu.request_exit()

    def _handle(self, exit_: MemoryErrorExit) -> bool:
        design = self._design()
        if design is None or exit_.illegal or exit_.errno:
            return False
        start, end = exit_.gpa >> PAGE_SHIFT, -(-(exit_.gpa + exit_.size) // PAGE_SIZE)
        if not self._is_known(start, end):
            return False
        try:
            changed = design.to_private(start, end) if exit_.private else design.to_shared(start, end)
        except Refused:
            self.tally.rolled_back += 1
            raise
        if exit_.private:
            self.tally.to_private_pages += changed
        else:
            self.tally.to_shared_pages += changed
        return changed > 0

    def _design(self) -> Design | None:
        if self.policy == "punch":
            return Punch(self._machine, self._copy, self.tally)
        if self.policy == "overlay":
            return Overlay(self._machine, self._copy, self.tally, freed=self.under == "freed")
        return self._recreate if self.policy == "recreate" else None

    def _is_known(self, start: int, end: int) -> bool:
        """Every page is the guest's memory in one alias or the other: else no conversion completes the request, and
        one that does half of it would destroy for nothing."""
        vm, at = self._machine.vm, start
        while at < end:
            segment = vm.slots[True].segment(at) or vm.slots[False].segment(at)
            if segment is None:
                return False
            at = segment[2]
        return True

    @property
    def converted_count(self) -> int:
        """Pages converted, either way."""
        return self.tally.to_shared_pages + self.tally.to_private_pages

    def shared_pages(self) -> int:
        """Pages that the VMM's shared memory holds."""
        return self._copy.page_count()

    def doubled_pages(self) -> int:
        """Pages that the VMM's shared memory and private memory both hold."""
        machine, ranges = self._machine, self._copy.populated()
        return sum(machine.held_private(start, end) for start, end in ranges)

    def close(self) -> None:
        self._copy.close()
