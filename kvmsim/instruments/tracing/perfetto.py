"""A timeline as a Perfetto file: packets of the Trace message, one after the other, so that it needs no memory.

By the package `perfetto`, an optional extra (`trace`).
"""

import errno
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from memfsd.uapi.errors import Refused

from .timeline import Begin, Count, End, Instant, Item, Kind, Track

_SEQUENCE = 1


def load() -> Any:
    """The messages' module. ENOENT (Refused) without the package."""
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2
    except ImportError:
        raise Refused(
            errno.ENOENT,
            "a Perfetto file needs the package perfetto: pip install perfetto, or .[trace] in a checkout",
        ) from None
    return perfetto_trace_pb2


def is_ours() -> Callable[[bytes], bool]:
    """Whether a file with this beginning was written here: all of them begin with the same clock. Refused as `load`."""
    beginning = _clock(load())
    return lambda head: head.startswith(beginning)


def write(items: Iterable[Item], to: BinaryIO) -> dict[str, int]:
    """How many tracks, slices, instants, counts and flows were written. OSError; Refused as `load`."""
    messages = load()
    event = messages.TrackEvent
    types = {Begin: event.TYPE_SLICE_BEGIN, End: event.TYPE_SLICE_END, Instant: event.TYPE_INSTANT}
    counted = dict.fromkeys(("tracks", "slices", "instants", "counts", "flows"), 0)
    to.write(_clock(messages))
    for item in items:
        trace = messages.Trace()
        packet = trace.packet.add()
        packet.trusted_packet_sequence_id = _SEQUENCE
        if isinstance(item, Track):
            counted["tracks"] += 1
            _describe(item, packet.track_descriptor)
        else:
            packet.timestamp, packet.timestamp_clock_id = item.t, messages.BUILTIN_CLOCK_MONOTONIC
            shown = packet.track_event
            shown.track_uuid = item.track
            if isinstance(item, Count):
                counted["counts"] += 1
                shown.type, shown.counter_value = event.TYPE_COUNTER, item.value
            else:
                shown.type = types[type(item)]
            if isinstance(item, Begin | Instant):
                counted["slices" if isinstance(item, Begin) else "instants"] += 1
                shown.name = item.name
                _annotate(item, shown)
            if isinstance(item, Begin) and item.flow:
                shown.flow_ids.append(item.flow)
            if isinstance(item, Instant) and item.ends_flow:
                counted["flows"] += 1
                shown.terminating_flow_ids.append(item.ends_flow)
        to.write(trace.SerializeToString())
    return counted


def _clock(messages: Any) -> bytes:
    """All times are of this clock, and so is the viewer's axis: without that it drops what it cannot convert."""
    trace = messages.Trace()
    snapshot = trace.packet.add().clock_snapshot
    snapshot.primary_trace_clock = messages.BUILTIN_CLOCK_MONOTONIC
    for clock in (messages.BUILTIN_CLOCK_MONOTONIC, messages.BUILTIN_CLOCK_BOOTTIME):
        snapshot.clocks.add(clock_id=clock, timestamp=1)
    return bytes(trace.SerializeToString())


def _describe(track: Track, to: Any) -> None:
    to.uuid, to.name = track.uuid, track.name
    if track.kind is Kind.PROCESS:
        to.process.pid, to.process.process_name = track.pid, track.name
        return
    to.parent_uuid = track.parent
    if track.kind is Kind.COUNTER:
        to.counter.unit = to.counter.UNIT_SIZE_BYTES


def _annotate(item: Begin | Instant, to: Any) -> None:
    for name, value in item.values.items():
        note = to.debug_annotations.add()
        note.name = name
        if isinstance(value, str):
            note.string_value = value
        elif value < 0:
            note.int_value = value
        else:
            note.uint_value = value
