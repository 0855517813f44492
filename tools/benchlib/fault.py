"""P1 and P1b: one cold 4 KiB fault against a raw SEQPACKET round trip of the same size, both sides on one core.

The fault is Faults.fault: from the EPT violation until the granted page is in the EPT and the TLB, with
memfsd's grant in between. The whole access (a guest's write of one byte) comes as a part: it also has
the walk that misses, the write, and the kernel's own first touch of the window's page.

P1's pages are holes, which take a message. P1b's were allocated before, each by itself: the page map has them.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter_ns

from benchlib import our_mount, raw_socket
from benchlib.figure import Figure, Progress, spread
from benchlib.machine import first_cpu, pin
from kvmsim.machine import VirtualMachine
from memfsd.common.linux import fallocate
from memfsd.uapi.framing import encode_reply, encode_request
from memfsd.uapi.limits import MAX_AHEAD_PAGES
from memfsd.uapi.messages import GetPfn, GetPfnReply, Kind
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

_FILE_BYTES = 1 << 30
_SEED = 1


def measure(progress: Progress, starts: int = 5, rounds: int = 6, count: int = 600) -> Figure:
    """count faults, as many accesses and round trips in each of the rounds, after one that is not counted.

    memfsd is restarted several times: where a process comes to lie in memory is worth ten per cent.
    """
    what = "one cold 4 KiB fault / raw SEQPACKET round trip of the same size, one core"
    return _measure(progress, starts, rounds, count, what, 2.0)


def measure_allocated(progress: Progress, starts: int = 5, rounds: int = 6, count: int = 600) -> Figure:
    """As `measure`, of pages that the store has."""
    what = "one cold 4 KiB fault on an allocated page / raw SEQPACKET round trip of GET_PFN's size, one core"
    return _measure(progress, starts, rounds, count, what, 1.0, allocated=2 * count * (rounds + 1))


def _measure(
    progress: Progress, starts: int, rounds: int, count: int, what: str, target: float, allocated: int = 0
) -> Figure:
    """allocated: so many of the pages are there before."""
    some_page = _FILE_BYTES >> PAGE_SHIFT + 1
    request_bytes = len(encode_request(1 << 16, Kind.GET_PFN, GetPfn(some_page, MAX_AHEAD_PAGES, 0)))
    reply_bytes = len(encode_reply(1 << 16, Kind.GET_PFN, GetPfnReply(some_page, 1, 0, 0)))
    raw_us, fault_us, access_us = [], [], []
    with pin(first_cpu()), raw_socket.echoing(request_bytes, reply_bytes) as round_trip_us:
        for start in range(starts):
            pages = scattered_pages()
            with _machine(pages[:allocated]) as machine:
                left = iter(pages)
                for number in range(rounds + 1):
                    progress.round(start * rounds + number, starts * rounds)
                    raw = round_trip_us(count)
                    fault = _median_us(_fault(machine), left, count)
                    access = _median_us(_access(machine), left, count)
                    if number > 0:
                        raw_us.append(raw)
                        fault_us.append(fault)
                        access_us.append(access)
    ratios = [fault / raw for fault, raw in zip(fault_us, raw_us, strict=True)]
    return Figure(
        what=what,
        unit="x",
        target=target,
        at_most=True,
        value=median(ratios),
        parts={
            "fault_us": median(fault_us),
            "raw_round_trip_us": median(raw_us),
            **spread(ratios),
            "access_us": median(access_us),
            "access_ratio": median(access / raw for access, raw in zip(access_us, raw_us, strict=True)),
            "request_bytes": request_bytes,
            "reply_bytes": reply_bytes,
            "starts": starts,
            "rounds_per_start": rounds,
            "faults_per_round": count,
        },
    )


@contextmanager
def _machine(allocated: list[Gfn]) -> Iterator[VirtualMachine]:
    """A VM on a new memfsd, which has these pages already."""
    with our_mount.mounted(_FILE_BYTES) as mountpoint:
        file = our_mount.sealed_file(Path(mountpoint, "memory"), _FILE_BYTES)
        with our_mount.write_only(file) as fd:
            for page in allocated:
                fallocate(fd, 0, page << PAGE_SHIFT, PAGE_SIZE)
        with our_mount.attached(file, _FILE_BYTES) as machine:
            yield machine


def scattered_pages() -> list[Gfn]:
    """Every other page once, in random order: no page follows one that was touched, so nothing is read ahead."""
    pages = [Gfn(gfn) for gfn in range(0, _FILE_BYTES >> PAGE_SHIFT, 2)]
    random.Random(_SEED).shuffle(pages)
    return pages


def _fault(machine: VirtualMachine) -> Callable[[Gfn], object]:
    faults, vcpu = machine.kvm.faults, machine.vm.vcpu(0)
    return lambda gfn: faults.fault(vcpu, gfn, shared=False, write=True)


def _access(machine: VirtualMachine) -> Callable[[Gfn], object]:
    guest, vcpu = machine.guest, machine.vm.vcpu(0)
    return lambda gfn: guest.write(vcpu, gfn << PAGE_SHIFT, b"x")


def _median_us(action: Callable[[Gfn], object], pages: Iterator[Gfn], count: int) -> float:
    times = []
    for _ in range(count):
        gfn = next(pages)
        start = perf_counter_ns()
        stopped = action(gfn)
        times.append(perf_counter_ns() - start)
        if stopped is not None:
            raise RuntimeError(f"the guest stopped at GFN {gfn:#x}: {stopped}")
    return median(times) / 1e3
