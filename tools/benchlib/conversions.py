"""P6: one conversion, with few and with many of them live, under policy overlay: to shared and back."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

from benchlib import our_mount
from benchlib.figure import Figure, Part, Progress, spread
from kvmsim.kvm.alias import PRIVATE, SHARED
from kvmsim.kvm.region import MemoryRegion
from kvmsim.machine import VirtualMachine
from memfsd.uapi.limits import MAX_SLOTS
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

_SPARE_PAGES = 64
"""At the end of memory: those that are converted in the rounds."""


def measure(
    progress: Progress, rounds: int = 25, live: tuple[int, ...] = (300, 3000, 30_000), count: int = 40
) -> Figure:
    """A VM for each number of live conversions; in each round each VM converts count pages, there and back."""
    with our_mount.mounted(1 << 30) as mountpoint, ExitStack() as stack:
        vms = {number: stack.enter_context(with_live(mountpoint, number)) for number in live}
        shared_us: dict[int, list[float]] = {number: [] for number in live}
        private_us: dict[int, list[float]] = {number: [] for number in live}
        lookup_ns: dict[int, list[float]] = {number: [] for number in live}
        for round_ in range(rounds + 1):
            progress.round(round_, rounds)
            for number, machine in vms.items():
                there, back = convert(machine, count)
                shared_us[number].append(there)
                private_us[number].append(back)
                lookup_ns[number].append(_lookup_ns(machine, count * 20))
    both = {number: [a + b for a, b in zip(shared_us[number], private_us[number], strict=True)][1:] for number in live}
    few, many = live[0], live[-1]
    ratios = [large / small for large, small in zip(both[many], both[few], strict=True)]
    parts: dict[str, Part] = {}
    for number in live:
        parts[f"to_shared_us, {number} live"] = median(shared_us[number][1:])
        parts[f"to_private_us, {number} live"] = median(private_us[number][1:])
        parts[f"slot_lookup_ns, {number} live"] = median(lookup_ns[number][1:])
    return Figure(
        what=f"a conversion with {many} live / with {few} live, overlay",
        unit="x",
        target=1.5,
        at_most=True,
        value=median(ratios),
        parts=parts | {**spread(ratios), "rounds": rounds},
    )


@contextmanager
def with_live(mountpoint: Path, number: int) -> Iterator[VirtualMachine]:
    """A VM in which every second page, so many of them, is shared; each has a slot."""
    pages = 2 * number + _SPARE_PAGES
    path = our_mount.sealed_file(mountpoint / f"live-{number}", pages * PAGE_SIZE)
    with closing(VirtualMachine("bench", MAX_SLOTS)) as machine:
        machine.vmm.memory.set_private_slot(MemoryRegion.private(0, 0, pages * PAGE_SIZE), str(path))
        machine.vmm.set_policy("overlay")
        for page in range(0, 2 * number, 2):
            _map(machine, page, private=False)
        assert len(machine.vm.slots[SHARED]) == number
        yield machine
    path.unlink()


def convert(machine: VirtualMachine, count: int) -> tuple[float, float]:
    """Microseconds to shared and back to private of a page that the guest has touched in both aliases."""
    vcpu, first = machine.vm.vcpu(0), _first_spare(machine)
    there = back = 0.0
    for index in range(count):
        page = first + 2 * (index % (_SPARE_PAGES // 2))
        assert machine.guest.write(vcpu, page << PAGE_SHIFT, b"private") is None
        start = perf_counter()
        _map(machine, page, private=False)
        middle = perf_counter()
        assert machine.guest.write(vcpu, page << PAGE_SHIFT, b"shared", shared=True) is None
        begin = perf_counter()
        _map(machine, page, private=True)
        back += perf_counter() - begin
        there += middle - start
    return there / count * 1e6, back / count * 1e6


def _lookup_ns(machine: VirtualMachine, count: int) -> float:
    """Nanoseconds of one lookup of the slot that shows a page, the loop around it included."""
    lookup, last = machine.vm.slots[SHARED].lookup, _first_spare(machine)
    gfns = [Gfn(index * 7919 % last) for index in range(count)]
    start = perf_counter()
    for gfn in gfns:
        lookup(gfn)
    return (perf_counter() - start) / count * 1e9


def _first_spare(machine: VirtualMachine) -> int:
    (slot,) = machine.vm.slots[PRIVATE]
    return slot.page_count - _SPARE_PAGES


def _map(machine: VirtualMachine, page: int, *, private: bool) -> None:
    vcpu, gpa = machine.vm.vcpu(0), page << PAGE_SHIFT
    stopped = machine.vmm.run(vcpu, lambda: machine.guest.map(vcpu, gpa, PAGE_SIZE, private=private))
    if stopped is not None:
        raise RuntimeError(f"the guest stopped: {stopped}")
