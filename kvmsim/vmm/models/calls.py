"""What the conversion code of a VMM calls, and what a model of it answers. Addresses and sizes are bytes."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from kvmsim.kvm.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from memfsd.uapi.units import PAGE_SIZE


class VmEnded(Exception):
    """The VMM stops the VM, or its own process: the guest gets no reply."""


class Region(NamedTuple):
    """A RAMBlock, a GuestRegionMmap: [gpa, gpa + size), with a private file and its own shared host memory. is_ram
    False: a device's registers, which have neither."""

    gpa: int
    size: int
    is_ram: bool = True

    @property
    def end(self) -> int:
        return self.gpa + self.size

    def overlaps(self, gpa: int, end: int) -> bool:
        return self.gpa < end and gpa < self.end

    def part(self, gpa: int, size: int) -> tuple[int, int]:
        """What the region has of [gpa, gpa + size): where it begins, and its size, which is 0 if there is none."""
        start = max(gpa, self.gpa)
        return start, max(0, min(gpa + size, self.end) - start)


class Calls(Protocol):
    """Below user space. Each call is Refused with its errno, and has then changed nothing but where it says so."""

    regions: Sequence[Region]
    """The VMM's own map, by GPA."""
    has_device: bool
    """A device with DMA is assigned: VFIO listens to conversions, if the VMM does."""

    def set_attributes(self, gpa: int, size: int, *, private: bool) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES: any range of whole pages, with memory or without, all of it or none."""

    def punch(self, region: Region, offset: int, size: int) -> None:
        """fallocate(PUNCH_HOLE) of the region's private file; past its end it succeeds and does nothing there."""

    def discard(self, region: Region, offset: int, size: int) -> None:
        """madvise(MADV_DONTNEED) of the region's shared memory. ENOMEM past its end: what is inside is discarded."""

    def pre_fault(self, gpa: int, size: int, *, private: bool) -> int:
        """KVM_PRE_FAULT_MEMORY of the vCPU that asks: the bytes at the end of the range that are still to do. private:
        which side, on an ABI without memory attributes."""

    def dma_map(self, gpa: int, size: int) -> None:
        """VFIO_IOMMU_MAP_DMA: the shared pages are allocated, pinned, and mapped for the device."""

    def dma_unmap(self, gpa: int, size: int) -> None:
        """VFIO_IOMMU_UNMAP_DMA; what is not mapped is passed over."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model is a model of: the version that was read, the files and functions, and the order of calls there."""

    version: str
    sources: tuple[str, ...]
    order: str


class Model(abc.ABC):
    """One VM's conversion code."""

    name: ClassVar[str]
    facts: ClassVar[Facts]
    converts: ClassVar[bool] = True
    """It has private memory, and asks KVM for KVM_EXIT_HYPERCALL of KVM_HC_MAP_GPA_RANGE."""
    takes_devices: ClassVar[bool] = True
    """It can assign a device with DMA to a VM."""
    serialized: ClassVar[bool] = False
    """One lock is held while an exit is handled, so that another vCPU's waits; else they run side by side."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.replies: list[bool] = []
        """What a worker has answered to the exit that was handled last, where there is a worker."""

    def device_added(self) -> None:
        """When a device is assigned: VFIO is given what the device may reach."""
        for region in self.calls.regions:
            if region.is_ram:
                self.calls.dma_map(region.gpa, region.size)

    def believes_shared(self, gpa: int) -> bool | None:
        """By the VMM's own record of a page of RAM; None where it keeps none."""
        return None

    @abc.abstractmethod
    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        """KVM_EXIT_HYPERCALL for KVM_HC_MAP_GPA_RANGE; the guest's answer, 0 or -errno. VmEnded; a call's Refused that
        nobody handles ends the VM, too."""

    @abc.abstractmethod
    def memory_fault(self, gpa: int, size: int, *, private: bool) -> None:
        """KVM_EXIT_MEMORY_FAULT: back in KVM_RUN when it returns. VmEnded; Refused: nothing has changed, and the access
        is not tried again."""


def pages(gpa: int, size: int) -> range:
    """The GPA of each page."""
    return range(gpa, gpa + size, PAGE_SIZE)


def size_of(page_count: int) -> int:
    """In bytes, as a VMM computes it: 64 bits are kept."""
    return page_count * PAGE_SIZE & (1 << 64) - 1


def is_private(attributes: int) -> bool:
    """What KVM_HC_MAP_GPA_RANGE asks for; the low bits are a hint of the page size."""
    return bool(attributes & MAP_GPA_RANGE_ENCRYPTED)
