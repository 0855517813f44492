"""The VMM side: user space that handles exits under a policy, and keeps the shared copy of memory.

Port I/O is served by `ports`. Policy `none` handles no other exit. The others convert what the guest asks for, each by
a design of `kvmsim.vmm.conversion`.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any, NamedTuple, TypeVar

from kvmsim.kvm.exits import Exit, HypercallExit, IoExit, MemoryErrorExit, MemoryFaultExit
from kvmsim.kvm.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED, negative
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.memory_use import MemoryUse
from kvmsim.kvm.vcpu import Vcpu
from memfsd.common import trace
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .conversion.attributes import VmAttributes
from .conversion.design import Design, Tally
from .conversion.in_place import InPlace
from .conversion.overlay import Overlay
from .conversion.punch import Punch
from .conversion.recreate import Recreate
from .conversion.shared_copy import SharedCopy
from .guest_memory import GuestMemory
from .inhibit import Inhibitor
from .policies import POLICIES, UNDER, check_policy
from .ports import Ports

R = TypeVar("R")
Handled = MemoryErrorExit | MemoryFaultExit | HypercallExit
MakeDesign = Callable[[GuestMemory, SharedCopy, Tally], Design]


class _Wanted(NamedTuple):
    """GFNs [start, end) in this alias; explicit: by a call of the guest, else by an access."""

    start: Gfn
    end: Gfn
    private: bool
    explicit: bool


class Vmm:
    """One VM's user space: a thread for each vCPU. Exits are handled one at a time, with all vCPUs out of KVM_RUN."""

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self.policy = "none"
        self.under = "kept"
        self.tally = Tally()
        self.memory = GuestMemory(kvm)
        self._copy = SharedCopy(self.memory)
        self._recreate = Recreate(self.memory, self._copy, self.tally)
        self._own_design: Design | None = None
        self.inhibitor = Inhibitor()
        self.ports = Ports()

    def set_policy(self, name: str, under: str = "kept") -> None:
        """One of POLICIES and UNDER. The slots that the policy before has made stay. EINVAL: a VM of this ABI converts
        otherwise. Where user space alone converts, it asks for the guest's requests (KVM_CAP_EXIT_HYPERCALL)."""
        assert name in POLICIES and under in UNDER, (name, under)
        vm = self._kvm.vm
        check_policy(name, vm.abi)
        if name != "none" and not vm.rules.maps_explicitly:
            vm.exit_hypercalls |= 1 << KVM_HC_MAP_GPA_RANGE
        self._set_overlay(name == "overlay")
        self.policy, self.under, self._own_design = name, under, None

    def set_design(self, make: MakeDesign) -> None:
        """A design that is not among POLICIES: what converts from now on, and the policy has its name. EEXIST where it
        has the name of one that is."""
        design = make(self.memory, self._copy, self.tally)
        if design.name in POLICIES:
            raise Refused(errno.EEXIST, f"policy {design.name} exists: give the design another name")
        self._set_overlay(False)
        self.policy, self._own_design = design.name, design

    def _set_overlay(self, on: bool) -> None:
        if on != (self.policy == "overlay"):
            self._kvm.blocking.set_overlay(on)

    def run(
        self, vcpu: Vcpu, begin: Callable[[], R | Exit], wanted_back: Callable[[int], bool] = lambda vcpu: False
    ) -> R | Exit:
        """KVM_RUN in a loop: `begin`, handle the exit, run again, until done or an exit that the policy leaves.

        Refused: the conversion itself failed, and changed nothing; the answer to a hypercall is its errno then.
        """
        result = self._run(vcpu, begin, wanted_back)
        if isinstance(result, MemoryErrorExit) and trace.vm is not None:
            trace.vm.memory_error(self._kvm.vm.name, vcpu.id, result.fields(), result.why)
        return result

    def _run(self, vcpu: Vcpu, begin: Callable[[], R | Exit], wanted_back: Callable[[int], bool]) -> R | Exit:
        kvm_run = self.on_a_thread(vcpu, begin, wanted_back)
        last: Exit | None = None
        while True:
            before = self.converted_count
            result: R | Exit = kvm_run()
            if isinstance(result, IoExit) and self.ports.serve(vcpu, result):
                continue
            if not isinstance(result, Handled) or self.policy == "none":
                return result
            with self._without_vcpus():
                if isinstance(result, HypercallExit):
                    if not self._handle(vcpu, result):
                        return result
                    continue
                # Another vCPU's thread may have converted just what this one wants, or have taken it away again.
                alone = self.converted_count == before
                if (alone and result == last) or (not self._handle(vcpu, result) and alone):
                    return result
            last = result

    def on_a_thread(
        self,
        vcpu: Vcpu,
        begin: Callable[[], Any],
        wanted_back: Callable[[int], bool] = lambda vcpu: False,
        again: Callable[[], Any] | None = None,
    ) -> Callable[[], Any]:
        """KVM_RUN as a vCPU's own thread calls it: by `begin` the first time, never while another thread changes
        slots, and again (by `again`, if it is another ioctl) when it was kicked out for that. EINTR when `wanted_back`
        says that somebody else kicked it."""
        runs = chain((begin,), repeat(again or vcpu.kvm_run))

        def kvm_run() -> Any:
            while True:
                with self.inhibitor.in_kvm_run(lambda: bool(vcpu.run.immediate_exit)):
                    try:
                        return next(runs)()
                    except Refused as refused:
                        if refused.errno != errno.EINTR:
                            raise
                        vcpu.run.immediate_exit = 0
                        if wanted_back(vcpu.id):
                            raise

        return kvm_run

    # -- without the loop: for user space that has its own

    def handle(self, vcpu: Vcpu, exit_: Exit) -> bool:
        """Let the ports or the policy handle the exit that the vCPU has just come back with: True when the vCPU can run
        on. Refused as `run`."""
        if isinstance(exit_, IoExit):
            return self.ports.serve(vcpu, exit_)
        if not isinstance(exit_, Handled) or self.policy == "none":
            return False
        with self._without_vcpus():
            return self._handle(vcpu, exit_)

    def convert(self, start: Gfn, end: Gfn, *, private: bool) -> int | None:
        """Convert GFNs [start, end) by the policy's design, unasked: as Design's methods."""
        with self._without_vcpus():
            return self._convert(start, end, private=private)

    @contextmanager
    def _without_vcpus(self) -> Iterator[None]:
        with self.inhibitor.quiesced(self._kick_all), self.memory.lock:
            yield

    # -- the whole VM, as QEMU's vm_stop() and vm_start(): from any thread

    @property
    def is_stopped(self) -> bool:
        return self.inhibitor.is_stopped

    def stop(self, deadline_s: float) -> bool:
        """No vCPU runs until `cont`: each leaves between two accesses of its guest. False when one is still on its way
        out at the deadline, as while it waits for the store; it will not come in again."""
        return self.inhibitor.stop(self._kick_all, deadline_s)

    def cont(self) -> None:
        self.inhibitor.cont()

    def _kick_all(self) -> None:
        for vcpu in list(self._kvm.vm.vcpus.values()):
            if vcpu.is_running:
                vcpu.request_exit()

    def _handle(self, vcpu: Vcpu, exit_: Handled) -> bool:
        """The vCPU can go on: the range is in the alias that its guest wants, or is a device's."""
        wanted = _wanted(exit_)
        if wanted is None:
            return False
        if wanted.explicit and not wanted.private and self.memory.ram.is_unknown(wanted.start, wanted.end):
            # A guest maps its devices' addresses shared, and QEMU answers that with success.
            vcpu.run.memory_error.answered = isinstance(exit_, MemoryErrorExit)
            return True
        try:
            changed = self._convert(wanted.start, wanted.end, private=wanted.private)
        except (Refused, PeerLost) as failed:
            if isinstance(exit_, HypercallExit):
                if isinstance(failed, Refused) and failed.errno == errno.EAGAIN:
                    vcpu.run.hypercall.ret = errno.EAGAIN  # the guest's to retry
                    return True
                vcpu.run.hypercall.ret = negative(failed.errno if isinstance(failed, Refused) else errno.EHOSTDOWN)
            raise
        if changed is None:
            return False
        if isinstance(exit_, MemoryErrorExit) and wanted.explicit:
            vcpu.run.memory_error.answered = not self._is_covered(wanted)  # several slots do: KVM would ask again
        return True

    def _convert(self, start: Gfn, end: Gfn, *, private: bool) -> int | None:
        design = self._design()
        if design is None or not self.memory.ram.is_known(start, end):
            return None
        try:
            changed = (design.to_private if private else design.to_shared)(start, end)
        except (Refused, PeerLost):
            self.tally.rolled_back += 1
            raise
        if changed is None:
            return None
        if trace.vm is not None:
            trace.vm.converted(self._kvm.vm.name, start, end, private, self._held)
        if private:
            self.tally.to_private_pages += changed
        else:
            self.tally.to_shared_pages += changed
        return changed

    def _design(self) -> Design | None:
        if self._own_design is not None:
            return self._own_design
        if self.policy == "punch":
            return Punch(self.memory, self._copy, self.tally)
        if self.policy == "overlay":
            return Overlay(self.memory, self._copy, self.tally, freed=self.under == "freed")
        if self.policy == "attributes":
            return VmAttributes(self.memory, self.tally)
        if self.policy == "inplace":
            return InPlace(self.memory)
        return self._recreate if self.policy == "recreate" else None

    def _is_covered(self, wanted: "_Wanted") -> bool:
        """KVM handles this request by itself."""
        ram, start, end = self.memory.ram, wanted.start, wanted.end
        if not wanted.private:
            return ram.shared.covers(start, end)
        return ram.private.covers(start, end) and not (self.policy == "overlay" and ram.shared.visible(start, end))

    @property
    def converted_count(self) -> int:
        """Pages converted, either way."""
        return self.tally.to_shared_pages + self.tally.to_private_pages

    def memory_use(self) -> MemoryUse:
        """What the VM's memory costs its host."""
        return self._kvm.memory.use(self._copy.populated())

    def shared_pages(self) -> int:
        """Pages that the VMM's own shared memory holds."""
        return self._copy.page_count()

    def doubled_pages(self) -> int:
        """Pages that shared and private memory both hold."""
        return self.memory_use().doubled_pages

    def _held(self) -> tuple[int, int]:
        use = self.memory_use()
        return use.shared, use.doubled_pages

    def close(self) -> None:
        self._copy.close()


def _wanted(exit_: Handled) -> _Wanted | None:
    """What a conversion would do about the exit; None: nothing."""
    if isinstance(exit_, MemoryFaultExit):
        if exit_.errno != errno.EFAULT:
            return None
        gfn = Gfn(exit_.gpa >> PAGE_SHIFT)
        return _Wanted(gfn, gfn + (exit_.size >> PAGE_SHIFT), exit_.private, explicit=False)
    if isinstance(exit_, MemoryErrorExit):
        if exit_.illegal or exit_.errno:
            return None
        start, end = Gfn(exit_.gpa >> PAGE_SHIFT), Gfn(-(-(exit_.gpa + exit_.size) // PAGE_SIZE))
        return _Wanted(start, end, exit_.private, exit_.explicit)
    if exit_.nr != KVM_HC_MAP_GPA_RANGE:
        return None
    gpa, page_count, attributes = exit_.args[:3]
    start = Gfn(gpa >> PAGE_SHIFT)
    return _Wanted(start, start + page_count, bool(attributes & MAP_GPA_RANGE_ENCRYPTED), explicit=True)
