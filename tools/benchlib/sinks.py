"""S2 to S4: what each sink costs where P1, P2 and P6 measure.

Two VMs of one process, with everybody on one core, take turns: one that a sink observes, and one that none does. What
counts is the CPU time of the process until the last record is in the file: the trace's thread counts, too.
A sink that is not used is in the figures P1, P2 and P6 themselves: its points are not in the code of a fault at all.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchlib import conversions, our_mount
from benchlib.fault import scattered_pages
from benchlib.figure import Figure, Part, Progress
from benchlib.machine import first_cpu, pin
from kvmsim.machine import VirtualMachine
from kvmsim.shell.info import stats
from memfsd.common import trace
from memfsd.common.journalfile import open_journal, start_journal
from memfsd.common.linux import punch_hole
from memfsd.common.tracefile import TraceFile, open_trace, wanted
from memfsd.common.tracing import Tracing
from memfsd.uapi.units import PAGE_SIZE

_POOL_BYTES = 2 << 30
_LIVE = 16
_READ_EACH_S = 0.1
"""Ten times as often as kvm_stat(1)."""
_WRITTEN_S = 0.15
"""Until a trace has written what there is: three times what it waits at most. Waiting takes no CPU time."""

Watching = AbstractContextManager[object]
Do = Callable[[int], None]
"""The work, so many times as long."""


@dataclass(frozen=True)
class Sink:
    """watching: it observes so long, and has written everything at the end."""

    path: Path
    watching: Callable[[VirtualMachine | None], Watching]

    def record_count(self) -> int:
        if not self.path.exists():
            return 0
        records = self.path.read_bytes()
        if b" [LOST " in records:
            raise RuntimeError("records were lost")
        return records.count(b"\n")


MakeSink = Callable[[Path], AbstractContextManager[Sink]]
"""It writes into this file."""


@contextmanager
def _statistics(path: Path) -> Iterator[Sink]:
    """All of them are read, again and again: so often in the time of all turns together."""
    left_s = _READ_EACH_S

    @contextmanager
    def watching(machine: VirtualMachine | None) -> Iterator[None]:
        nonlocal left_s
        over, due = threading.Event(), time.monotonic() + left_s

        def read() -> None:
            nonlocal due
            while not over.wait(max(due - time.monotonic(), 0)):
                due += _READ_EACH_S
                if machine is not None:
                    stats(machine)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            left_s = max(due - time.monotonic(), 0)

    yield Sink(path, watching)


@contextmanager
def _trace(path: Path) -> Iterator[Sink]:
    tracing = Tracing(TraceFile(open_trace(str(path)), "kvmsim", wanted([]), _fail), "kvmsim")

    @contextmanager
    def watching(_: VirtualMachine | None) -> Iterator[None]:
        with trace.observed(vm=tracing):
            yield
        time.sleep(_WRITTEN_S)

    with closing(tracing):
        yield Sink(path, watching)


@contextmanager
def _journal(path: Path) -> Iterator[Sink]:
    fd = open_journal(str(path))
    try:
        journal = start_journal(fd, "kvmsim", time.monotonic_ns, _fail)
        yield Sink(path, lambda _: trace.observed(vm=journal))
    finally:
        os.close(fd)


def _fail(why: str) -> None:
    raise RuntimeError(why)


def measure_statistics(progress: Progress, rounds: int = 40, count: int = 3000) -> Figure:
    ratios, _, parts = _measure(progress, _statistics, rounds, count)
    what = "P1, P2 and P6 with all statistics read ten times a second / without, CPU time"
    return Figure(what, "x, the worst of three", 1.03, True, max(ratios), parts)


def measure_trace(progress: Progress, rounds: int = 25, count: int = 1000) -> Figure:
    _, each_us, parts = _measure(progress, _trace, rounds, count)
    return Figure("an event of --trace in P1 and P6", "us, the worse of both", 3.0, True, max(each_us), parts)


def measure_journal(progress: Progress, rounds: int = 25, count: int = 1000) -> Figure:
    _, each_us, parts = _measure(progress, _journal, rounds, count)
    return Figure("a record of --journal in P1 and P6", "us, the worse of both", None, True, max(each_us), parts)


def _measure(
    progress: Progress, make: MakeSink, rounds: int, count: int
) -> tuple[list[float], list[float], dict[str, Part]]:
    """Of each the ratio, and microseconds a record."""
    works = {"P1": _faults, "P2": _first_touch, "P6": _conversions}
    ratios: list[float] = []
    each_us: list[float] = []
    parts: dict[str, Part] = {}
    with pin(first_cpu()), our_mount.mounted(_POOL_BYTES) as mount, tempfile.TemporaryDirectory() as place:
        for number, (name, work) in enumerate(works.items()):
            (mount / name).mkdir()
            with make(Path(place, name)) as sink, _both(mount / name, work, sink) as (without, within):
                turns = [
                    _turns(without, within, sink, count, swapped=bool(turn % 2))
                    for turn in _counted(progress, number, rounds, len(works))
                ][1:]  # the first fills caches
            ratios.append(median(after / before for before, after, _ in turns))
            parts[f"{name}, with / without"] = ratios[-1]
            records = [each for _, _, each in turns]
            if min(records) > count:  # P2 has so few that their cost is less than the noise
                costs = sorted((after - before) / each * 1e6 for before, after, each in turns)
                each_us.append(median(costs))
                parts[f"{name}, us a record"] = each_us[-1]
                parts[f"{name}, half of the turns, us"] = (
                    f"{costs[len(costs) // 4]:.2f} to {costs[-1 - len(costs) // 4]:.2f}"
                )
                parts[f"{name}, records a turn"] = median(records)
    return ratios, each_us, parts


def _counted(progress: Progress, number: int, rounds: int, works: int) -> Iterator[int]:
    for turn in range(rounds + 1):
        progress.round(number * rounds + turn, works * rounds)
        yield turn


@contextmanager
def _both(mount: Path, work: "Work", sink: Sink) -> Iterator[tuple["_Turn", "_Turn"]]:
    """The work of a VM without the sink, and of one with it."""
    with ExitStack() as stack:
        (mount / "without").mkdir()
        (mount / "with").mkdir()
        without = stack.enter_context(work(mount / "without"))
        with sink.watching(None):  # so that its connections are observed
            within = stack.enter_context(work(mount / "with"))
        yield without, within


_Turn = tuple[VirtualMachine, Do]
Work = Callable[[Path], AbstractContextManager[_Turn]]
"""In this directory."""


def _turns(without: _Turn, within: _Turn, sink: Sink, count: int, *, swapped: bool) -> tuple[float, float, int]:
    """Seconds of CPU without the sink and with it, and the records that it wrote."""
    before = sink.record_count()
    if swapped:
        with_sink = _cost(within, count, sink)
        return _cost(without, count), with_sink, sink.record_count() - before
    return _cost(without, count), _cost(within, count, sink), sink.record_count() - before


def _cost(turn: _Turn, count: int, sink: Sink | None = None) -> float:
    machine, do = turn
    if sink is None:
        start = time.process_time()
        do(count)
        return time.process_time() - start
    start = time.process_time()
    with sink.watching(machine):
        do(count)
    return time.process_time() - start


@contextmanager
def _faults(place: Path) -> Iterator[_Turn]:
    """P1's: no two neighbours, each asks the store."""
    pages = iter(scattered_pages())
    with _machine(place, 1 << 30) as (machine, _):
        fault, vcpu = machine.kvm.faults.fault, machine.vm.vcpu(0)

        def do(count: int) -> None:
            for _ in range(count):
                gfn = next(pages)
                if fault(vcpu, gfn, shared=False, write=True) is not None:
                    raise RuntimeError(f"the guest stopped at GFN {gfn:#x}")

        yield machine, do


@contextmanager
def _first_touch(place: Path) -> Iterator[_Turn]:
    """P2's, of eight times as many pages in order; the store takes them back each time."""
    size_bytes = 256 << 20
    with _machine(place, size_bytes) as (machine, path), our_mount.write_only(path) as fd:
        vcpu = machine.vm.vcpu(0)

        def do(count: int) -> None:
            for at in range(0, 8 * count * PAGE_SIZE, size_bytes):
                if machine.guest.touch(vcpu, 0, min(size_bytes, 8 * count * PAGE_SIZE - at)) is not None:
                    raise RuntimeError("the guest stopped")
                punch_hole(fd, 0, size_bytes)

        yield machine, do


@contextmanager
def _conversions(place: Path) -> Iterator[_Turn]:
    """P6's, there and back."""
    with conversions.with_live(place, _LIVE) as machine:

        def do(count: int) -> None:
            conversions.convert(machine, max(count // 10, 1))

        yield machine, do


@contextmanager
def _machine(place: Path, size_bytes: int) -> Iterator[tuple[VirtualMachine, Path]]:
    path = our_mount.sealed_file(place / "memory", size_bytes)
    try:
        with our_mount.attached(path, size_bytes) as machine:
            yield machine, path
    finally:
        path.unlink()
