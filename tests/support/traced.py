"""Traces of a VM's points, and what is in them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memfsd.common import trace
from memfsd.common.tracefile import TraceFile, open_trace, wanted
from memfsd.common.tracing import Tracing
from memfsd.uapi.units import Gfn


@contextmanager
def tracing(path: Path, *chosen: tuple[str, str], warn: Callable[[str], None] = print) -> Iterator[Tracing]:
    to = Tracing(TraceFile(open_trace(str(path)), "kvmsim", wanted(chosen), warn), "kvmsim")
    try:
        with trace.observed(vm=to):
            yield to
    finally:
        to.close()


def events(path: Path) -> list[str]:
    """Event and fields, without time."""
    return [line.split(": ", 1)[1] for line in path.read_text().splitlines() if not line.startswith("#")]


def fault(to: Tracing, gfn: int, vcpu: int = 0) -> None:
    to.fault_begun("vm0", vcpu, Gfn(gfn), 0, False, True)
    to.guest_entered("vm0", vcpu)
