"""One model through one scenario, on a separate VM and store."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import NamedTuple

from kvmsim.kvm.exits import Exit, HypercallExit, MemoryErrorExit, MemoryFaultExit
from kvmsim.kvm.hypercalls import KVM_ENOSYS, KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED, negative
from kvmsim.kvm.vcpu import Vcpu
from kvmsim.machine import VirtualMachine
from kvmsim.vmm.models.calls import Model, Region, VmEnded, pages
from memfsd.uapi.abi import THREAD, Abi, Attributes
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.limits import ANSWER_DEADLINE_S
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn, Pgoff

from .border import Border, Snapshot, ZapBusy
from .gmem_memory import GmemMemory
from .judge import LOST, Belief, Finding, disagreements, gone_after, last_call, reached_meanwhile
from .memory import ConvertibleMemory, File, ThreadMemory
from .scenarios import REGIONS, Event, Scenario, Via
from .store import LocalStore

_POOL_FRAMES = 128
_SLOTS = 64
_SIGN = 1 << 63
_MAX_ERRNO = 4095
_LOOK_AGAIN_S = 0.001
_TRIES = 4
"""Exits of one request that a VMM may handle: one that comes back more often makes no progress."""
_RAM = tuple(region for region in REGIONS if region.is_ram)


class Reply(NamedTuple):
    """outcome: "done", "refused" or "ended". why: the errno, or why the VM ended."""

    outcome: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.why}" if self.why else self.outcome


@dataclass(slots=True)
class Result:
    """What was measured. The texts name pages in runs, in the order of their addresses, of the requested range."""

    model: str
    scenario: str
    abi: str
    reply: Reply
    calls: list[str]
    guest_view: str
    attribute: str
    private_copy: str
    shared_copy: str
    doubled_bytes: int
    lost_pages: int
    findings: list[Finding]
    verdict: str
    """"ok", "fails", or "-": the VMM does not do this."""
    notes: list[str] = field(default_factory=list)


class Rig:
    """Close it."""

    def __init__(self, kind: type[Model], scenario: Scenario, abi: Abi = THREAD) -> None:
        self._scenario = scenario
        self._abi = abi.name
        self.store = LocalStore(_POOL_FRAMES, abi)
        self.machine = VirtualMachine("vmms", _SLOTS, pair=self.store.pair, abi=abi)
        self._files: dict[Region, File] = {}
        for slot, region in enumerate(_RAM):
            self._files[region] = File(slot, *self.store.create(f"ram{slot}", region.size >> PAGE_SHIFT))
        how = ThreadMemory if abi.attributes is Attributes.NONE else GmemMemory
        self._memory: ConvertibleMemory = how(self.machine, self._files)
        self.border = Border(self.machine, self.store, self._memory, REGIONS, self._files)
        self.model = kind(self.border)
        self.border.recorded_shared = self._recorded_shared
        self.vcpus = [self.machine.vm.vcpu(0), self.machine.vm.create_vcpu(1), self.machine.vm.create_vcpu(2)]
        """The last one looks at what is left, whatever became of the others."""
        if self.model.converts:
            self.machine.vm.exit_hypercalls = 1 << KVM_HC_MAP_GPA_RANGE
        self._data: dict[tuple[Gfn, bool], bytes] = {}
        """What the guest has written, by page and alias (True: shared)."""
        self._later: Callable[[], None] | None = None
        self._was_shared = True
        """What is to be shared before the request could be."""

    def close(self) -> None:
        self.machine.close()
        self._memory.close()
        self.store.close()

    # -- before

    def prepare(self) -> None:
        """Every page is written to; with a device, if there is to be one; then shared what is to be shared first."""
        for gfn in self._ram():
            self.write(self.vcpus[0], gfn, shared=False)
        if self._scenario.device:
            self.border.has_device = True
            self.model.device_added()
        if self._scenario.shared_first:
            for _, start, end in self._requested_of_regions():
                if self.ask(self.vcpus[0], start, end - start, private=False).outcome != "done":
                    self._was_shared = False
                else:
                    for page in pages(start, end - start):
                        self.write(self.vcpus[0], Gfn(page >> PAGE_SHIFT), shared=True)
        self.border.watch()
        if self._scenario.meanwhile is not None:
            when = self._scenario.meanwhile
            self.border.hooks[when.call, when.nth] = partial(self._happen, when.event, when.errno)

    def write(self, vcpu: Vcpu, gfn: Gfn, *, shared: bool) -> None:
        data = f"{gfn:x} {'shared' if shared else 'private'} {len(self._data)}".encode().ljust(32)
        if self.machine.guest.write(vcpu, gfn << PAGE_SHIFT, data, shared=shared) is None:
            self._data[gfn, shared] = data

    # -- the request

    def ask(
        self,
        vcpu: Vcpu,
        gpa: int,
        size: int,
        *,
        private: bool,
        hint: int = 0,
        via: Via = Via.HYPERCALL,
        page_count: int | None = None,
    ) -> Reply:
        """page_count: what the guest passes, if it is not that of size."""
        attributes = hint | (MAP_GPA_RANGE_ENCRYPTED if private else 0)
        count = size // PAGE_SIZE if page_count is None else page_count
        try:
            if via is Via.UNCHECKED:
                return _reply(self._answer(gpa, count, attributes))
            if via is Via.FAULT:
                return self._touch(vcpu, Gfn(gpa >> PAGE_SHIFT), private)
            result = self.machine.guest.vmcall(vcpu, KVM_HC_MAP_GPA_RANGE, (gpa, count, attributes))
            if isinstance(result, HypercallExit):
                vcpu.run.hypercall.ret = self._answer(*result.args[:3])
                result = vcpu.kvm_run()  # type: ignore[assignment]
            assert isinstance(result, int), result
            return _reply(result)
        except VmEnded as ended:
            return Reply("ended", str(ended))

    def _answer(self, gpa: int, page_count: int, attributes: int) -> int:
        """The model's to a hypercall, as a register holds it. TypeError: it is none."""
        try:
            answer: object = self.model.hypercall(gpa, page_count, attributes)
        except Refused as refused:
            raise VmEnded(f"nobody handled {errno_name(refused.errno)}: {refused.reason}") from None
        if not isinstance(answer, int) or not -_MAX_ERRNO <= answer <= 0:
            raise TypeError(f"{type(self.model).__name__}.hypercall() returned {answer!r}: it must be 0 or -errno")
        return negative(-answer)

    def _touch(self, vcpu: Vcpu, gfn: Gfn, private: bool) -> Reply:
        data = f"touched {gfn:x} {private}".encode()
        result: object = self.machine.guest.write(vcpu, gfn << PAGE_SHIFT, data, shared=not private)
        for _ in range(_TRIES):
            if result is None:
                self._data[gfn, not private] = data
                return Reply("done")
            assert isinstance(result, MemoryErrorExit | MemoryFaultExit), result
            try:
                self.model.memory_fault(result.gpa & -PAGE_SIZE, PAGE_SIZE, private=result.private)
            except Refused as refused:
                return Reply("refused", errno_name(refused.errno))
            result = vcpu.kvm_run()
        return Reply("ended", "the access exits again and again")

    def _happen(self, event: Event, number: int) -> None:
        match event:
            case Event.REFUSE:
                raise Refused(number, "made to fail")
            case Event.ZAP_BUSY:
                raise ZapBusy
            case Event.OTHER_VCPU:
                if self.model.serialized:
                    self._later = self._convert_back
                else:
                    self._convert_back()
            case Event.HOST_PUNCH:
                for region, start, end in self._requested_of_regions():
                    first = Pgoff((start - region.gpa) >> PAGE_SHIFT)
                    self.store.punch(self._files[region].ino, first, (end - start) >> PAGE_SHIFT)
                    for page in pages(start, end - start):
                        self._data.pop((Gfn(page >> PAGE_SHIFT), False), None)
            case Event.STORE_DIES:
                self.store.die()
                links = self.machine.kvm.pairings.links.values()
                _wait_until(lambda: self.store.is_alone and all(link.lost for link in links))
                self._data = {key: data for key, data in self._data.items() if key[1]}
            case Event.POOL_TAKEN:
                free = self.store.free_count
                ino, _ = self.store.create("other", free)
                self.store.allocate(ino, free)

    def _convert_back(self) -> None:
        scenario, vcpu = self._scenario, self.vcpus[1]
        reply = self.ask(vcpu, scenario.gpa, scenario.size, private=not scenario.private)
        if reply.outcome == "done":
            for gfn in self._requested():
                self._data.pop((gfn, False), None)
                self.write(vcpu, gfn, shared=scenario.private)

    # -- the measurement

    def run(self) -> Result:
        scenario, border = self._scenario, self.border
        reply = self.ask(
            self.vcpus[0],
            scenario.gpa,
            scenario.size,
            private=scenario.private,
            hint=scenario.hint,
            via=scenario.via,
            page_count=scenario.page_count,
        )
        notes = [] if self._was_shared else ["it could not be shared before"]
        if self._later is not None:
            notes.append("the other vCPU had to wait for a lock")
            self._later()
        elif border.hooks and scenario.meanwhile is not None:
            notes.append(f"it makes no such call: {scenario.meanwhile.call} {scenario.meanwhile.nth}")
            if scenario.meanwhile.event is Event.OTHER_VCPU and self.model.converts:
                self._convert_back()
        if border.busy_zaps:
            notes.append(f"KVM got every vCPU out and zapped again, {border.busy_zaps} time(s)")
        border.look("the end")
        return self._judged(reply, notes)

    def _judged(self, reply: Reply, notes: list[str]) -> Result:
        scenario, history = self._scenario, self.border.history
        end = history[-1]
        belief = self._belief(reply)
        reached, until = reached_meanwhile(history, belief.ram)
        if reached:
            notes.append(f"the device could reach the shared copy of {reached} pages that were private, until {until}")
        converts = self._was_shared and self.model.converts
        lost = self._lost(belief)
        findings = disagreements(history, belief) + lost + (self._of_reply(reply) if converts else [])
        requested = self._requested()
        ram = [gfn for gfn in requested if gfn in belief.ram]
        return Result(
            self.model.name,
            scenario.name,
            self._abi,
            reply,
            [snapshot.call for snapshot in history[1:-1]],
            "the VM has ended" if reply.outcome == "ended" else self._guest_view(belief),
            _runs(requested, lambda gfn: self._attribute(gfn, end, belief)),
            _runs(ram, lambda gfn: "held" if gfn in end.held_private else "none"),
            _runs(ram, lambda gfn: "stale" if gfn in end.stale else "held" if gfn in end.held_shared else "none"),
            len(end.held_private & (end.held_shared | end.stale)) * PAGE_SIZE,
            sum(finding.page_count for finding in lost),
            findings,
            "fails" if findings else "ok" if converts else "-",
            notes,
        )

    def _belief(self, reply: Reply) -> Belief:
        """Of two requests for one page that were both granted either may have been the last."""
        ram, scenario = frozenset(self._ram()), self._scenario
        start, end = self.border.history[0], self.border.history[-1]
        shared = start.shared_attribute
        requested = frozenset(self._requested()) & ram
        if scenario.meanwhile is not None and scenario.meanwhile.event is Event.OTHER_VCPU:
            shared = (shared - requested) | (end.shared_attribute & requested)
        elif reply.outcome == "done":
            shared = shared - requested if scenario.private else shared | requested
        return Belief(ram, shared, scenario.device)

    def _of_reply(self, reply: Reply) -> list[Finding]:
        scenario, found = self._scenario, list[str]()
        last = last_call(self.border.history)
        may = scenario.may | {"done"} if self.border.hooks else scenario.may
        if reply.outcome not in may:
            wanted = " or ".join(sorted(may))
            what = {"ended": "the guest's request ends the VM", "done": "answered with success", "refused": "refused"}
            found.append(f"{what[reply.outcome]}, not {wanted}")
        if len(self.model.replies) > 1:
            words = ["yes" if answer else "no" for answer in self.model.replies]
            found.append(f"more than one reply: {', then '.join(words)}")
        if reply.outcome != "done" and self._memory.private_elsewhere():
            found.append("attribute private where no memory is")
        return [Finding(kind, 0, last) for kind in found]

    def _lost(self, belief: Belief) -> list[Finding]:
        """Data that the guest wrote and that neither a conversion nor the host has taken: private data of pages that
        are believed private and were not made so by this request, and shared data likewise."""
        start, end = self.border.history[0], self.border.history[-1]
        kept_private = [
            gfn
            for gfn in sorted(belief.ram - belief.shared)
            if gfn not in start.shared_attribute and (gfn, False) in self._data
        ]
        found = gone_after(self.border.history, kept_private, LOST)
        for gfn in sorted(belief.shared & start.shared_attribute & end.shared_attribute):
            data = self._data.get((gfn, True))
            if data is not None and self._peek(gfn, shared=True, length=len(data)) != data:
                found.append(Finding(LOST, 1, "the end"))
        return found

    def _peek(self, gfn: Gfn, *, shared: bool, length: int = 32) -> bytes | Exit:
        return self.machine.guest.read(self.vcpus[2], gfn << PAGE_SHIFT, length, shared=shared)

    def _guest_view(self, belief: Belief) -> str:
        """What the guest reads where it believes its pages to be."""

        def view(gfn: Gfn) -> str:
            if gfn not in belief.ram:
                return "no memory"
            shared = gfn in belief.shared
            got = self._peek(gfn, shared=shared)
            alias = "shared" if shared else "private"
            if not isinstance(got, bytes):
                error = got.errno if isinstance(got, MemoryErrorExit | MemoryFaultExit) else 0
                return f"{alias} exits {got.reason.name} {errno_name(error) if error else ''}".rstrip()
            data = self._data.get((gfn, shared))
            what = "zeros" if not any(got) else "its data" if data and got.startswith(data) else "other data"
            return f"{alias}, {what}"

        return _runs(self._requested(), view)

    def _attribute(self, gfn: Gfn, end: Snapshot, belief: Belief) -> str:
        is_shared = gfn in end.shared_attribute if gfn in belief.ram else gfn not in self._memory.private_elsewhere()
        return "shared" if is_shared else "private"

    def _recorded_shared(self) -> frozenset[Gfn] | None:
        answers = {gfn: self.model.believes_shared(gfn << PAGE_SHIFT) for gfn in self._ram()}
        if None in answers.values():
            return None
        return frozenset(gfn for gfn, answer in answers.items() if answer)

    @staticmethod
    def _ram() -> list[Gfn]:
        return [Gfn(page >> PAGE_SHIFT) for region in _RAM for page in pages(region.gpa, region.size)]

    def _requested(self) -> list[Gfn]:
        scenario = self._scenario
        return [Gfn(page >> PAGE_SHIFT) for page in pages(scenario.gpa, scenario.size)]

    def _requested_of_regions(self) -> list[tuple[Region, int, int]]:
        parts = [(region, *region.part(self._scenario.gpa, self._scenario.size)) for region in _RAM]
        return [(region, start, start + size) for region, start, size in parts if size]


def run(kind: type[Model], scenario: Scenario, abi: Abi = THREAD) -> Result:
    """Refused when this process has no room for a VM."""
    with contextlib.closing(Rig(kind, scenario, abi)) as rig:
        rig.prepare()
        return rig.run()


def why_not(kind: type[Model], scenario: Scenario) -> str:
    """What the VMM lacks that the scenario is about; "": nothing."""
    if scenario.device and not kind.takes_devices:
        return "no device"
    return "" if kind.converts or scenario.via is Via.HYPERCALL else "no such exit"


def _wait_until(is_so: Callable[[], bool]) -> None:
    """TimeoutError at the deadline of an answer."""
    until = time.monotonic() + ANSWER_DEADLINE_S
    while not is_so():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(_LOOK_AGAIN_S)


def _reply(answer: int) -> Reply:
    if not answer:
        return Reply("done")
    number = -(answer - (1 << 64)) if answer & _SIGN else answer
    return Reply("refused", "KVM_ENOSYS" if number == KVM_ENOSYS else errno_name(number))


def _runs(gfns: list[Gfn], say: Callable[[Gfn], str]) -> str:
    """ "2 shared, 2 private"; "-" for no page."""
    runs: Iterator[tuple[str, int]] = ((what, sum(1 for _ in same)) for what, same in groupby(gfns, say))
    return "; ".join(f"{count} {what}" for what, count in runs) or "-"
