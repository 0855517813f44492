"""S2 to S4: what each sink costs where P1, P2 and P6 measure.

CPU time of the VM's process with the sink and without, in turns, each from a new VM to its end and the last record: the
trace's thread counts, too.
A sink that is not used is in the figures P1, P2 and P6 themselves: its points are not in the code of a fault at all.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from benchlib import conversions, our_mount
from benchlib.fault import scattered_pages
from benchlib.figure import Figure, Part, Progress
from kvmsim.machine import VirtualMachine
from kvmsim.shell.info import stats
from memfsd.common import trace
from memfsd.common.journalfile import open_journal, start_journal
from memfsd.common.tracefile import TraceFile, open_trace, wanted
from memfsd.common.tracing import Tracing
from memfsd.uapi.units import PAGE_SIZE

_POOL_BYTES = 1 << 30
_LIVE = 16
_READ_EACH_S = 0.1
"""Ten times as often as kvm_stat(1)."""

Watch = Callable[[VirtualMachine], object]
"""Called with the VM when it is there."""
Sink = Callable[[Path], AbstractContextManager[Watch]]
"""Writes into the file."""


@contextmanager
def _nothing(_: Path) -> Iterator[Watch]:
    yield id


@contextmanager
def _statistics(_: Path) -> Iterator[Watch]:
    """All of them are read, again and again."""
    over = threading.Event()
    machines: list[VirtualMachine] = []

    def read() -> None:
        while not over.wait(_READ_EACH_S):
            for machine in machines:
                stats(machine)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield machines.append
    finally:
        over.set()
        thread.join()


@contextmanager
def _trace(path: Path) -> Iterator[Watch]:
    tracing = Tracing(TraceFile(open_trace(str(path)), "kvmsim", wanted([]), _fail), "kvmsim")
    with contextlib.closing(tracing), trace.observed(vm=tracing):
        yield id


@contextmanager
def _journal(path: Path) -> Iterator[Watch]:
    fd = open_journal(str(path))
    try:
        with trace.observed(vm=start_journal(fd, "kvmsim", time.monotonic_ns, _fail)):
            yield id
    finally:
        os.close(fd)


def _fail(why: str) -> None:
    raise RuntimeError(why)


def measure_statistics(progress: Progress, rounds: int = 7, count: int = 4000) -> Figure:
    ratios, _, parts = _measure(progress, _statistics, rounds, count)
    what = "P1, P2 and P6 with all statistics read ten times a second / without, CPU time"
    return Figure(what, "x, the worst of three", 1.03, True, max(ratios), parts)


def measure_trace(progress: Progress, rounds: int = 5, count: int = 4000) -> Figure:
    _, each_us, parts = _measure(progress, _trace, rounds, count)
    return Figure("an event of --trace in P1 and P6", "us, the worse of both", 3.0, True, max(each_us), parts)


def measure_journal(progress: Progress, rounds: int = 5, count: int = 4000) -> Figure:
    _, each_us, parts = _measure(progress, _journal, rounds, count)
    return Figure("a record of --journal in P1 and P6", "us, the worse of both", None, True, max(each_us), parts)


def _measure(
    progress: Progress, sink: Sink, rounds: int, count: int
) -> tuple[list[float], list[float], dict[str, Part]]:
    """Of each the ratio, and microseconds a record."""
    works = {"P1": _faults, "P2": _first_touch, "P6": _conversions}
    ratios: list[float] = []
    each_us: list[float] = []
    parts: dict[str, Part] = {}
    with our_mount.mounted(_POOL_BYTES) as mount:
        for done, (name, work) in enumerate(works.items()):
            pairs: list[tuple[float, float]] = []
            records = 0
            for number in range(rounds + 1):
                progress.round(done * rounds + number, len(works) * rounds)
                without, _ = _run(partial(work, mount, count), _nothing)
                with_sink, records = _run(partial(work, mount, count), sink)
                if number:  # the first fills caches
                    pairs.append((without, with_sink))
            ratios.append(median(after / before for before, after in pairs))
            parts[f"{name}, with / without"] = ratios[-1]
            if records > count:  # P2 has so few that their cost is less than the noise
                each_us.append(median(after - before for before, after in pairs) / records * 1e6)
                parts |= {f"{name}, us a record": each_us[-1], f"{name}, records": records}
    return ratios, each_us, parts


def _run(work: Callable[[Watch], None], sink: Sink) -> tuple[float, int]:
    """Seconds of CPU, and the records that were written."""
    with tempfile.TemporaryDirectory(prefix="memfsd-bench-") as place:
        path = Path(place, "records")
        start = time.process_time()
        with sink(path) as watch:
            work(watch)
        cost = time.process_time() - start
        records = path.read_bytes().splitlines() if path.exists() else []
    if any(b"LOST" in record for record in records):
        raise RuntimeError("records were lost")
    return cost, len(records)


def _faults(mount: Path, count: int, watch: Watch) -> None:
    """P1's: no two neighbours, each asks the store."""
    pages = scattered_pages()[:count]
    with _machine(mount, (max(pages) + 1) * PAGE_SIZE, watch) as machine:
        vcpu = machine.vm.vcpu(0)
        for gfn in pages:
            if machine.kvm.faults.fault(vcpu, gfn, shared=False, write=True) is not None:
                raise RuntimeError(f"the guest stopped at GFN {gfn:#x}")


def _first_touch(mount: Path, count: int, watch: Watch) -> None:
    """P2's, of eight times as many pages in order."""
    size_bytes = 8 * count * PAGE_SIZE
    with _machine(mount, size_bytes, watch) as machine:
        if machine.guest.touch(machine.vm.vcpu(0), 0, size_bytes) is not None:
            raise RuntimeError("the guest stopped")


def _conversions(mount: Path, count: int, watch: Watch) -> None:
    """P6's, there and back."""
    with conversions.with_live(mount, _LIVE) as machine:
        watch(machine)
        conversions.convert(machine, max(count // 10, 1))


@contextmanager
def _machine(mount: Path, size_bytes: int, watch: Watch) -> Iterator[VirtualMachine]:
    path = our_mount.sealed_file(mount / "memory", size_bytes)
    try:
        with our_mount.attached(path, size_bytes) as machine:
            watch(machine)
            yield machine
    finally:
        path.unlink()
