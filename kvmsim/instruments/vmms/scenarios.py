"""What the guest asks for, and what fails meanwhile.

Guest memory is three regions, each with its own file and its own shared memory: LOW and HIGH touch, a hole lies between
HIGH and UPPER. MMIO is a device's. Nothing is at NOWHERE. All of it is private at the start, and the guest has written
to every page.
"""

import errno
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from kvmsim.vmm.models.calls import Region
from memfsd.uapi.abi import GMEM_6_18, GMEM_7_2, THREAD
from memfsd.uapi.units import PAGE_SIZE

_REGION_PAGES = 16


def _region(page: int, page_count: int, *, is_ram: bool = True) -> Region:
    return Region(page * PAGE_SIZE, page_count * PAGE_SIZE, is_ram)


LOW = _region(0x100, _REGION_PAGES)
HIGH = _region(0x110, _REGION_PAGES)
UPPER = _region(0x128, _REGION_PAGES)
MMIO = _region(0x200, 4, is_ram=False)
NOWHERE = _region(0x300, 4, is_ram=False)
REGIONS = (LOW, HIGH, UPPER, MMIO)
"""What the VMM has in its map."""
ABIS_THAT_CONVERT = (THREAD, GMEM_6_18, GMEM_7_2)
"""Where a VMM has two memories. With attributes in the file there is one, which no model converts."""


class Via(Enum):
    """How the request reaches the VMM."""

    HYPERCALL = "KVM_HC_MAP_GPA_RANGE"
    FAULT = "an access to the other alias"
    UNCHECKED = "an exit that KVM's own check of the request prevents"


class Event(Enum):
    """What happens just before a call."""

    REFUSE = "the call is refused"
    ZAP_BUSY = "the zap is busy"
    OTHER_VCPU = "another vCPU converts the page back"
    HOST_PUNCH = "somebody on the host punches the pages"
    STORE_DIES = "the store dies"
    POOL_TAKEN = "another file takes every free frame"


class Meanwhile(NamedTuple):
    """Before the nth call of this kind. errno: what it is refused with, for REFUSE."""

    call: str
    nth: int
    event: Event
    errno: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """[gpa, gpa + size) to be private, or to be shared.

    shared_first: it has been converted to shared, and the guest has written to it. may: how it may end: "done" and
    "refused" are what the guest is told.
    """

    name: str
    about: str
    gpa: int
    size: int
    private: bool
    may: frozenset[str]
    via: Via = Via.HYPERCALL
    hint: int = 0
    page_count: int | None = None
    """What the guest passes for it; None: that of size."""
    meanwhile: Meanwhile | None = None
    device: bool = False

    @property
    def shared_first(self) -> bool:
        return self.private


_DONE, _REFUSED = frozenset({"done"}), frozenset({"refused"})
_EITHER = _DONE | _REFUSED
_WRAPPING = (1 << 52) + 1
"""Pages whose bytes are 4096 when 64 bits are kept of them. KVM lets it pass: no GFN wraps."""
_2M = 1
"""KVM_MAP_GPA_RANGE_PAGE_SZ_2M: SNP's page state changes have it when the guest asked in pages of 2 MiB."""


def _at(region: Region, first: int, page_count: int) -> tuple[int, int]:
    return region.gpa + first * PAGE_SIZE, page_count * PAGE_SIZE


_PART = _at(LOW, 4, 4)
_ONE = _at(LOW, 4, 1)
_TWO = _at(LOW, _REGION_PAGES - 2, 4)
_HOLE_WITHIN = _at(HIGH, _REGION_PAGES - 2, 12)
_HOLE_FIRST = _at(UPPER, -2, 4)
_PAST_THE_END = _at(UPPER, _REGION_PAGES - 2, 4)


def _refuse(call: str, nth: int, number: int) -> Meanwhile:
    return Meanwhile(call, nth, Event.REFUSE, number)


SCENARIOS = (
    Scenario("to-shared", "four pages of one region", *_PART, False, _DONE),
    Scenario("to-private", "and back", *_PART, True, _DONE),
    Scenario("fault-to-shared", "the guest touches the shared alias", *_ONE, False, _DONE, Via.FAULT),
    Scenario("fault-to-private", "the guest touches the private alias", *_ONE, True, _DONE, Via.FAULT),
    Scenario("two-regions-to-shared", "a range over two regions that touch", *_TWO, False, _DONE),
    Scenario("two-regions-to-private", "and back", *_TWO, True, _DONE),
    Scenario("hole-to-shared", "a range over a hole between two regions", *_HOLE_WITHIN, False, _DONE),
    Scenario("hole-to-private", "and back: the hole cannot be private", *_HOLE_WITHIN, True, _REFUSED),
    Scenario("hole-first-to-shared", "a range that begins in a hole", *_HOLE_FIRST, False, _DONE),
    Scenario("past-the-end-to-shared", "a punch past the end of the file", *_PAST_THE_END, False, _DONE),
    Scenario("mmio-to-shared", "a device's registers, as firmware asks", *_at(MMIO, 0, 2), False, _DONE),
    Scenario("mmio-to-private", "a device's registers", *_at(MMIO, 0, 2), True, _REFUSED),
    Scenario("unassigned-to-shared", "nothing is there", *_at(NOWHERE, 0, 2), False, _DONE),
    Scenario("unassigned-to-private", "nothing is there", *_at(NOWHERE, 0, 2), True, _REFUSED),
    Scenario("size-0", "no page", LOW.gpa, 0, False, _REFUSED),
    Scenario("size-0-unchecked", "no page", LOW.gpa, 0, False, _REFUSED, Via.UNCHECKED),
    Scenario("unaligned", "half a page in", LOW.gpa + 0x800, PAGE_SIZE, False, _REFUSED),
    Scenario(
        "unaligned-unchecked",
        "half a page in",
        *(LOW.gpa + 0x800, PAGE_SIZE, False, _REFUSED, Via.UNCHECKED),
    ),
    Scenario(
        "size-wraps",
        "2^52 + 1 pages, whose bytes do not fit into 64 bits, as a release build computes them",
        *(*_ONE, False, _REFUSED),
        page_count=_WRAPPING,
    ),
    Scenario("hint-2m", "to shared, with the hint of 2 MiB in the low bits", *_PART, False, _DONE, hint=_2M),
    Scenario(
        "attribute-fails",
        "KVM has no memory for the attributes",
        *(*_PART, False, _REFUSED),
        meanwhile=_refuse("set_attributes", 1, errno.ENOMEM),
    ),
    Scenario(
        "second-attribute-fails",
        "over two regions, KVM has no memory at the second call",
        *(*_TWO, False, _EITHER),
        meanwhile=_refuse("set_attributes", 2, errno.ENOMEM),
    ),
    Scenario(
        "punch-fails",
        "the store does not take the private pages back",
        *(*_PART, False, _REFUSED),
        meanwhile=_refuse("punch", 1, errno.EIO),
    ),
    Scenario(
        "second-punch-fails",
        "over two regions, the store fails at the second punch",
        *(*_TWO, False, _DONE),
        meanwhile=_refuse("punch", 2, errno.EIO),
    ),
    Scenario(
        "discard-fails",
        "the kernel does not take the shared pages back",
        *(*_PART, True, _REFUSED),
        meanwhile=_refuse("discard", 1, errno.EAGAIN),
    ),
    Scenario(
        "second-discard-fails",
        "over two regions, the kernel fails at the second discard",
        *(*_TWO, True, _DONE),
        meanwhile=_refuse("discard", 2, errno.EAGAIN),
    ),
    Scenario(
        "zap-busy",
        "the SEPT is busy: KVM tries again with every vCPU out",
        *(*_PART, False, _DONE),
        meanwhile=Meanwhile("zap", 1, Event.ZAP_BUSY),
    ),
    Scenario(
        "two-vcpus",
        "one vCPU converts a page to shared; before the punch another one converts it back, and writes to it",
        *(*_ONE, False, _EITHER),
        meanwhile=Meanwhile("punch", 1, Event.OTHER_VCPU),
    ),
    Scenario(
        "punch-meanwhile",
        "somebody punches the same pages",
        *(*_PART, False, _DONE),
        meanwhile=Meanwhile("set_attributes", 1, Event.HOST_PUNCH),
    ),
    Scenario(
        "store-dies",
        "the store dies before the punch",
        *(*_PART, False, frozenset({"done", "refused", "ended"})),
        meanwhile=Meanwhile("punch", 1, Event.STORE_DIES),
    ),
    Scenario(
        "pool-full",
        "no frame is left for the pages when they are private",
        *(*_PART, True, _DONE),
        meanwhile=Meanwhile("set_attributes", 1, Event.POOL_TAKEN),
    ),
    Scenario("dma-to-shared", "with a device assigned", *_PART, False, _DONE, device=True),
    Scenario("dma-to-private", "with a device assigned", *_PART, True, _DONE, device=True),
    Scenario(
        "dma-map-fails",
        "the third page cannot be pinned for the device",
        *(*_PART, False, _REFUSED),
        meanwhile=_refuse("dma_map", 3, errno.ENOMEM),
        device=True,
    ),
    Scenario(
        "dma-unmap-fails",
        "what becomes private cannot be unmapped for the device",
        *(*_PART, True, _REFUSED),
        meanwhile=_refuse("dma_unmap", 1, errno.EIO),
        device=True,
    ),
)
