"""One VM on its own file, and what is measured of it while a workload runs."""

import errno
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kvmsim.kvm.exits import Exit, MemoryErrorExit, MemoryFaultExit
from kvmsim.machine import VirtualMachine
from kvmsim.shell.info import stats
from kvmsim.vmm.policies import NEEDED
from memfsd.uapi.abi import ABIS, Abi, Attributes
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.units import ORDER_4K, PAGE_SIZE, order_of_page_size

from .ram import set_ram

_SAMPLE_EVERY = 64
"""Conversions of which one sample is made."""


class Design(NamedTuple):
    """A policy, and what becomes of the page under an overlay."""

    policy: str
    under: str = "kept"

    def __str__(self) -> str:
        return f"{self.policy}/{self.under}" if self.policy == "overlay" else self.policy

    def fits(self, abi: Abi, page_bytes: int = PAGE_SIZE) -> bool:
        """A VM of this ABI can convert that way, and a file of it has such pages: a guest_memfd has small ones only."""
        is_small = order_of_page_size(page_bytes) == ORDER_4K
        return NEEDED[self.policy] is abi.attributes and (is_small or not abi.is_sized_at_creation)

    @property
    def abi(self) -> Abi:
        """The newest that fits."""
        return next(abi for abi in reversed(ABIS.values()) if self.fits(abi))


DESIGNS = (
    Design("recreate"),
    Design("punch"),
    Design("overlay", "kept"),
    Design("overlay", "freed"),
    Design("attributes"),
    Design("inplace"),
)


@dataclass(slots=True)
class Sample:
    """After `live` conversions: slots of both spaces, and what one conversion took lately (us)."""

    live: int
    slots: int
    conversion_us: float


@dataclass(slots=True)
class Measured:
    """A workload's costs under one design. lost_pages: stamped private pages that were found empty without having been
    converted. stopped: why the workload ended before its end ("" when it did not)."""

    conversions: int = 0
    conversion_us: float = 0.0
    slots_peak: int = 0
    zapped: int = 0
    tlb_flushes: int = 0
    store_messages: int = 0
    exits: int = 0
    lost_pages: int = 0
    doubled_bytes_peak: int = 0
    stopped: str = ""
    samples: list[Sample] = field(default_factory=list)


class Rig:
    """RAM_BYTES of private memory at GPA 0, in frames of one size. Close it: the file and the VM go."""

    def __init__(self, directory: Path, abi: Abi, design: Design, page_bytes: int, max_slots: int) -> None:
        self.max_slots = max_slots
        self.spends_slots = abi.attributes is Attributes.NONE
        """A page that is shared takes a slot: the cap on slots will stop the guest."""
        self._machine = VirtualMachine("compare", max_slots, abi=abi)
        self._fd: int | None = None
        self.measured = Measured()
        self._times: list[float] = []
        self._live = 0
        self._stamps: dict[int, bytes] = {}
        try:
            self._fd = set_ram(self._machine, directory, page_bytes)
            self._machine.vmm.set_policy(design.policy, design.under)
        except BaseException:
            self.close()
            raise

    # -- what a guest does

    def stamp(self, gpa: int) -> None:
        """The guest writes eight bytes into a private page, and will look for them in the end."""
        self._stamps[gpa] = (gpa | 1).to_bytes(8, "little")
        self._must_not_exit(self._write(gpa, self._stamps[gpa], shared=False))

    def write_shared(self, gpa: int, data: bytes) -> None:
        self._must_not_exit(self._write(gpa, data, shared=True))
        if (len(self._times) + 1).bit_count() == 1:
            self._look()

    def host_read(self, gpa: int, length: int) -> bytes:
        got = self._machine.guest.host_access(gpa, length, None)
        assert isinstance(got, bytes), got
        return got

    @property
    def conversion_count(self) -> int:
        return len(self._times)

    def convert(self, gpa: int, size: int, *, private: bool) -> bool:
        """The guest asks with MapGPA; False when user space could not, and the workload is stopped."""
        machine = self._machine
        begin = time.perf_counter()
        try:
            vcpu = machine.vm.vcpu(0)
            result = machine.vmm.run(vcpu, lambda: machine.guest.map(vcpu, gpa, size, private=private))
        except Refused as refused:
            self.measured.stopped = f"{errno_name(refused.errno)}: {refused.reason}"
            return False
        self._times.append(time.perf_counter() - begin)
        self._must_not_exit(result)
        for page in range(gpa, gpa + size, PAGE_SIZE):
            self._stamps.pop(page, None)
        self._live += -1 if private else 1
        self._sample()
        return True

    # -- what is measured

    def finish(self) -> Measured:
        """Look for every stamp that should be there, and add up."""
        machine, measured = self._machine, self.measured
        vcpu = machine.vm.vcpu(0)
        for gpa, stamp in self._stamps.items():
            measured.lost_pages += machine.guest.read(vcpu, gpa, 8) != stamp
        self._look()
        facts, _ = stats(machine)
        assert isinstance(facts, dict)
        measured.conversions = len(self._times)
        measured.conversion_us = _median_us(self._times)
        measured.zapped = sum(facts[f"zapped_{size}"] for size in ("4k", "2m", "1g"))
        measured.tlb_flushes = facts["tlb_flush"] + facts["tlb_ranged_flush"]
        measured.store_messages = facts["store_messages"]
        measured.exits = facts["userspace_exits"]
        return measured

    def close(self) -> None:
        self._machine.close()
        if self._fd is not None:
            os.close(self._fd)

    def _write(self, gpa: int, data: bytes, *, shared: bool) -> Exit | None:
        machine = self._machine
        vcpu = machine.vm.vcpu(0)
        return machine.vmm.run(vcpu, lambda: machine.guest.write(vcpu, gpa, data, shared=shared))

    def _sample(self) -> None:
        ram = self._machine.vmm.memory.ram
        slots = len(ram.shared) if self._machine.vm.rules.has_one_space else len(ram.shared) + len(ram.private)
        self.measured.slots_peak = max(self.measured.slots_peak, slots)
        if len(self._times) % _SAMPLE_EVERY == 0:
            self.measured.samples.append(Sample(self._live, slots, _median_us(self._times[-_SAMPLE_EVERY:])))

    def _look(self) -> None:
        """Walks all that is live, and so is done after 1, 3, 7, ... conversions only."""
        doubled = self._machine.vmm.doubled_pages() * PAGE_SIZE
        self.measured.doubled_bytes_peak = max(self.measured.doubled_bytes_peak, doubled)

    @staticmethod
    def _must_not_exit(result: object) -> None:
        if result is not None:
            why = result.why if isinstance(result, MemoryErrorExit | MemoryFaultExit) else ""
            raise Refused(errno.EIO, f"the guest cannot go on: {why or result}")


def _median_us(times: list[float]) -> float:
    return sorted(times)[len(times) // 2] * 1e6 if times else 0.0
