"""The options of a trace, of both programs: --trace FILE, -e EVENT and its filter, in trace-cmd's way."""

import argparse
import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from memfsd.uapi.errors import Refused

if TYPE_CHECKING:  # what a trace needs is loaded for one alone
    from .tracing import Tracing


def add_trace_arguments(parser: argparse.ArgumentParser, *filter_options: str) -> None:
    """filter_options: what a filter is called, since -f has another meaning in memfsd."""
    parser.add_argument("--trace", metavar="FILE", help="write events in the text form of the kernel's trace_pipe")
    parser.add_argument(
        "-e",
        action=_Event,
        dest="trace_events",
        default=[],
        metavar="EVENT",
        help="only these events: SYSTEM:EVENT, SYSTEM or EVENT, with * and ? (kvmsim trace list); may be repeated",
    )
    parser.add_argument(
        *filter_options,
        action=_Filter,
        dest="trace_events",
        metavar="FILTER",
        help=f"of the -e before it, as in -e kvm:kvm_page_fault {filter_options[0]} 'gpa >= 0x100000'",
    )


class _Event(argparse.Action):
    def __call__(self, _: object, asked: argparse.Namespace, value: str | Sequence[Any] | None, *more: object) -> None:
        asked.trace_events = [*asked.trace_events, (str(value), "")]


class _Filter(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        asked: argparse.Namespace,
        value: str | Sequence[Any] | None,
        option: str | None = None,
    ) -> None:
        if not asked.trace_events or asked.trace_events[-1][1]:
            parser.error(f"{option}: a filter follows the -e that it is for")
        asked.trace_events = [*asked.trace_events[:-1], (asked.trace_events[-1][0], str(value))]


def open_asked(asked: argparse.Namespace, side: str) -> Callable[[Callable[[str], None]], "Tracing"] | None:
    """None without --trace. Else what begins the trace, in the process that is to be traced, with where its one warning
    goes. Refused: what `tracefile.open_trace` and `wanted` say; EINVAL for events without a trace."""
    if asked.trace is None:
        if asked.trace_events:
            raise Refused(errno.EINVAL, "-e chooses events of a trace: name its file with --trace")
        return None
    from .tracefile import TraceFile, open_trace, wanted
    from .tracing import Tracing

    chosen = wanted(asked.trace_events)
    fd = open_trace(asked.trace)
    return lambda warn: Tracing(TraceFile(fd, side, chosen, warn), side)
