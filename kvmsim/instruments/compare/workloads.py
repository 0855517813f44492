"""What the guests do. Each takes a rig and returns when it is done, or when user space could convert no more."""

from collections.abc import Callable

from memfsd.uapi.units import PAGE_SIZE

from .ram import RAM_BYTES
from .rig import Rig

Workload = Callable[[Rig], None]

_KERNEL, _KERNEL_PAGES = 16 << 20, 4096
_POOL, _POOL_BYTES = 512 << 20, 64 << 20
_BUFFERS = 64
_RING, _DESCRIPTORS, _ROUNDS = 256 << 20, 256, 4


def boot(rig: Rig) -> None:
    """A normal boot: nearly all private, one swiotlb-like pool that is shared once, and a page per device beside it."""
    for page in range(_KERNEL_PAGES):
        rig.stamp(_KERNEL + page * PAGE_SIZE)
    if not rig.convert(_POOL, _POOL_BYTES, private=False):
        return
    for buffer in range(_BUFFERS):
        gpa = _POOL + buffer * PAGE_SIZE
        rig.write_shared(gpa, b"request")
        assert rig.host_read(gpa, 7) == b"request"
    for page in range(1, 1025):
        rig.stamp(_POOL - page * PAGE_SIZE)
        rig.stamp(_POOL + _POOL_BYTES + page * PAGE_SIZE)
    for device in range(16):
        gpa = (800 << 20) + device * (2 << 20)
        for neighbour in range(1, 5):
            rig.stamp(gpa + neighbour * PAGE_SIZE)
        if not rig.convert(gpa, PAGE_SIZE, private=False):
            return


def ring(rig: Rig) -> None:
    """A driver's ring: each buffer goes to shared for one request and back."""
    for page in range(_DESCRIPTORS):
        rig.stamp(_RING + (2 * page + 1) * PAGE_SIZE)
    for _ in range(_ROUNDS):
        for descriptor in range(_DESCRIPTORS):
            gpa = _RING + 2 * descriptor * PAGE_SIZE
            if not rig.convert(gpa, PAGE_SIZE, private=False):
                return
            rig.write_shared(gpa, b"packet")
            assert rig.host_read(gpa, 6) == b"packet"
            if not rig.convert(gpa, PAGE_SIZE, private=True):
                return
            rig.stamp(gpa)


def misbehave(rig: Rig) -> None:
    """The thread's misbehaving guest: it uses its memory, and shares every second page until the cap on slots stops it.
    Where that costs no slots: as many pages."""
    for gpa in range(0, RAM_BYTES, 2 * PAGE_SIZE):
        if rig.conversion_count == rig.max_slots and not rig.spends_slots:
            return
        rig.stamp(gpa)
        rig.stamp(gpa + PAGE_SIZE)
        if not rig.convert(gpa, PAGE_SIZE, private=False):
            return
        rig.write_shared(gpa, b"shared")


WORKLOADS: dict[str, Workload] = {"boot": boot, "ring": ring, "misbehave": misbehave}
COSTS = "page"
"""What --workloads calls the costs of a page, which no design has a part in."""
