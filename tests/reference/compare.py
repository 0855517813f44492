"""The same operations on both, compared after each and at the end."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.reference import operations as op
from tests.reference.deviations import allowed_fields, allowed_result
from tests.reference.operations import Operation
from tests.reference.world import Outcome, Seen, World
from tests.support.threads import until

SHRINKING_S = 40.0


class Differs(AssertionError):
    """Tells what differs, and the operations up to there: as a script it can be run again (replay.py)."""

    def __init__(self, what: str, operations: Sequence[Operation]) -> None:
        super().__init__(f"{what}\n\n{script(operations)}")
        self.operations = list(operations)


def script(operations: Sequence[Operation]) -> str:
    return "".join(f"{operation}\n" for operation in operations)


class Reference:
    """A directory on memfsd and one on tmpfs."""

    def __init__(self, memfsd: Path, tmpfs: Path) -> None:
        self._places = memfsd, tmpfs
        self._free = [_free(place) for place in self._places]
        self._sequences = 0
        self.done: Counter[str] = Counter()
        """How often each operation was tried."""
        self.worked: Counter[str] = Counter()
        """How often it was not refused."""

    def compare(self, operations: Sequence[Operation]) -> None:
        """Differs at the first difference. Both places are as they were before when it returns."""
        self._sequences += 1
        worlds = [World(place / str(self._sequences)) for place in self._places]
        try:
            for number, operation in enumerate(operations, 1):
                self._step(worlds, operation, operations[:number])
            memfsd, tmpfs = (world.see_all() for world in worlds)
            _same(memfsd, tmpfs, "at the end", operations)
        finally:
            for world in worlds:
                world.close()
            # A RELEASE and a FORGET come after close(2) and unlink(2) have returned.
            until(self._is_free, f"all is free again:\n{script(operations)}")

    def _is_free(self) -> bool:
        return [_free(place) for place in self._places] == self._free

    def shrunk(self, differs: Differs) -> Differs:
        """The same difference or another one, with as few operations as can be found in a while."""
        deadline = time.monotonic() + SHRINKING_S
        part = len(differs.operations) // 2
        while part and time.monotonic() < deadline:
            start = 0
            while start < len(differs.operations) and time.monotonic() < deadline:
                try:
                    self.compare(differs.operations[:start] + differs.operations[start + part :])
                    start += part
                except Differs as smaller:
                    differs = smaller
            part //= 2
        return differs

    def _step(self, worlds: list[World], operation: Operation, so_far: Sequence[Operation]) -> None:
        memfsd, tmpfs = (world.apply(operation.run) for world in worlds)
        name = type(operation).__name__
        self.done[name] += 1
        self.worked[name] += not isinstance(tmpfs, str)
        ours, theirs = (_observe(w, operation, outcome) for w, outcome in zip(worlds, (memfsd, tmpfs), strict=True))
        if memfsd != tmpfs and not allowed_result(operation, memfsd, tmpfs, theirs.get("handle", {})):
            raise Differs(f"{operation}\nmemfsd: {_short(memfsd)}\ntmpfs:  {_short(tmpfs)}", so_far)
        _same(ours, theirs, "after the last operation", so_far)


def _observe(world: World, operation: Operation, outcome: Outcome) -> dict[str, Seen]:
    """What the operation may have changed, and what tells that it did not."""
    if isinstance(operation, op.As):
        operation = operation.operation
    atime = isinstance(operation, op.Utimens | op.Futimens) and outcome == 0 and operation.atime[1] != op.UTIME_OMIT
    seen: dict[str, Seen] = {}
    for field in ("name", "to"):
        name = getattr(operation, field, None)
        if name:
            seen[f"{field} {name!r}"] = world.see_path(name, atime=atime)
            above = os.path.dirname(name.rstrip(b"/")) or b"."
            seen[f"directory {above!r}"] = world.see_path(above)
    if hasattr(operation, "handle"):
        seen["handle"] = world.see_handle(operation.handle, atime=atime)
    if isinstance(operation, op.Open | op.Reopen):
        seen["opened"] = world.see_handle(-1)
    return seen


def _same(memfsd: dict[str, Seen], tmpfs: dict[str, Seen], when: str, so_far: Sequence[Operation]) -> None:
    if memfsd == tmpfs:
        return
    lines = []
    for place in {**memfsd, **tmpfs}:
        ours, theirs = memfsd.get(place, {"absent": True}), tmpfs.get(place, {"absent": True})
        allowed = allowed_fields(ours, theirs)
        lines += [
            f"{place}: {field}: memfsd {_short(ours.get(field))}, tmpfs {_short(theirs.get(field))}"
            for field in {**ours, **theirs}
            if ours.get(field) != theirs.get(field) and field not in allowed
        ]
    if lines:
        raise Differs("\n".join([when, *lines]), so_far)


def _short(value: Outcome) -> str:
    text = repr(value)
    return text if len(text) < 400 else f"{text[:200]} ... {text[-190:]} (of {len(text)})"


def _free(place: Path) -> tuple[int, int]:
    found = os.statvfs(place)
    return found.f_bfree, found.f_ffree
