"""S1: what an event costs with --trace, from the point where it happens to the file."""

import tempfile
from pathlib import Path
from statistics import median
from time import process_time, thread_time

from benchlib.figure import Figure, Progress
from memfsd.common.tracefile import TraceFile, open_trace, wanted
from memfsd.common.tracing import Tracing
from memfsd.uapi.units import Gfn

_FAULTS_AT_ONCE = 4000
"""Less than a trace keeps until they are written."""


def measure(progress: Progress, rounds: int = 5, fault_count: int = 40_000) -> Figure:
    """kvm_exit, kvm_page_fault and kvm_entry of each fault: made, turned into text, written: CPU time of all."""
    made_us, written_us = [], []
    for number in range(rounds + 1):
        progress.round(number, rounds)
        with tempfile.TemporaryDirectory() as place:
            made, written = _faults(Path(place, "trace"), fault_count)
        made_us.append(made / fault_count / 3 * 1e6)
        written_us.append(written / fault_count / 3 * 1e6)
    del made_us[:1], written_us[:1]
    return Figure(
        what="an event of a trace, from its point to the file",
        unit="us",
        target=3,
        at_most=True,
        value=median(written_us),
        parts={"us_where_it_happens": median(made_us), "lowest": min(written_us), "rounds": rounds},
    )


def _faults(path: Path, fault_count: int) -> tuple[float, float]:
    """Seconds of CPU in the thread that faults, and of all threads until it is in the file."""
    made = written = 0.0
    for _ in range(0, fault_count, _FAULTS_AT_ONCE):
        tracing = Tracing(TraceFile(open_trace(str(path)), "kvmsim", wanted([]), _fail), "kvmsim")
        tracing.guest_entered("vm0", 0)
        start_thread, start = thread_time(), process_time()
        for gfn in range(_FAULTS_AT_ONCE):
            tracing.fault_begun("vm0", 0, Gfn(gfn), 0, False, True)
            tracing.guest_entered("vm0", 0)
        made += thread_time() - start_thread
        tracing.close()
        written += process_time() - start
    if b"LOST" in path.read_bytes():
        raise RuntimeError("events were lost")
    return made, written


def _fail(why: str) -> None:
    raise RuntimeError(why)
