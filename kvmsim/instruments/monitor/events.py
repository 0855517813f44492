"""Trace points to events of QMP. The points are called where it happens, with locks held: nothing here waits."""

from collections.abc import Callable, Mapping
from typing import Any

from memfsd.common.trace import Instrument
from memfsd.uapi.units import PAGE_SHIFT, Gfn, GfnRange, Pgoff

_MOST_RANGES = 64

Emit = Callable[[str, dict[str, Any]], None]
"""Puts an event where the monitor's thread finds it, or drops it."""


class Events(Instrument):
    """Attached when the first client comes. Points of the fault path are none of its business."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def taken_back(self, vm: str, ino: int, start: Pgoff, end: Pgoff, reason: str, ranges: list[GfnRange]) -> None:
        shown = [{"gpa": low << PAGE_SHIFT, "size": high - low << PAGE_SHIFT} for low, high in ranges[:_MOST_RANGES]]
        self._emit(
            "INVALIDATE",
            {
                "vm": vm,
                "inode": ino,
                "offset": start << PAGE_SHIFT,
                "size": end - start << PAGE_SHIFT,
                "reason": reason.lower(),
                "ranges": shown,
                "more": len(ranges) - len(shown),
            },
        )

    def pairing_lost(self, vm: str, ino: int, why: str) -> None:
        self._emit("PAIRING_LOST", {"vm": vm, "inode": ino, "why": why})

    def memory_error(self, vm: str, vcpu: int, fields: Mapping[str, int | str | bool], why: str) -> None:
        self._emit("MEMORY_ERROR", {"vm": vm, "cpu-index": vcpu, **fields, **({"why": why} if why else {})})

    def converted(self, vm: str, start: Gfn, end: Gfn, private: bool, held: Callable[[], tuple[int, int]]) -> None:
        size = end - start << PAGE_SHIFT
        self._emit("CONVERSION", {"vm": vm, "gpa": start << PAGE_SHIFT, "size": size, "private": private})
