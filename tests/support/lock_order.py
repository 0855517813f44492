"""Which lock is taken while which is held, recorded over a test run and compared with docs/architecture.md.

`recorded()` makes the locks of a test report here; tests/test_lock_order.py, which runs last, compares. Where several
processes run the tests, it sees what its own recorded, and their controller compares the sum. After a run,
`python -m tests.support.lock_order` writes what was seen into the document.
"""

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmsim.instruments.race import points
from memfsd.common import sync

DOCUMENT = Path(__file__).parents[2] / "docs/architecture.md"
SEEN = Path(__file__).parents[2] / ".pytest_cache/lock-order.json"
_BEGIN, _END = "<!-- lock order: rendered -->\n```\n", "```\n<!-- end -->"

Order = dict[str, set[str]]
"""For each lock, those that were taken while it was held."""


SEVERAL = {"GmemFile.invalidate_lock"}
"""Held several at once, in the order of inode numbers, by memfs check alone."""
_SIDES = dict(points.LOCKS)
_TESTS = str(Path(__file__).parents[1])


class Recorder(sync.Makers):
    """Makes locks that report. Only a wait can be part of a deadlock, so a try is no edge.

    Both sides are in one process here: their locks never meet in one thread of the product, and so have no order. Nor
    do those that a test itself holds.
    """

    def __init__(self) -> None:
        self.order: Order = {}
        self._held = threading.local()

    def lock(self, name: str) -> threading.Lock:
        return _Lock(self, name)  # type: ignore[return-value]

    def held(self) -> list[str]:
        """Locks of this thread, in the order in which it took them."""
        if not hasattr(self._held, "names"):
            self._held.names = []
        names: list[str] = self._held.names
        return names

    def waits(self, name: str) -> None:
        self.order.setdefault(name, set())
        for held in self.held():
            if _SIDES.get(held) == _SIDES.get(name):
                self.order.setdefault(held, set()).add(name)


class _Lock:
    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder, self._name = recorder, name
        self._lock = threading.Lock()
        self.locked = self._lock.locked

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return self._take(blocking, timeout, sys._getframe(1).f_code.co_filename)

    def _take(self, blocking: bool, timeout: float, caller: str) -> bool:
        if blocking:
            self._recorder.waits(self._name)
        taken = self._lock.acquire(blocking, timeout)
        if taken and not caller.startswith(_TESTS):
            self._recorder.held().append(self._name)
        return taken

    def release(self) -> None:
        held = self._recorder.held()
        if self._name in held:  # else a test, or another thread, took it
            held.reverse()
            held.remove(self._name)
            held.reverse()
        self._lock.release()

    def __enter__(self) -> bool:
        return self._take(True, -1, sys._getframe(1).f_code.co_filename)

    def __exit__(self, *_: Any) -> None:
        self.release()


RECORDER = Recorder()
_depth = 0


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """Locks that are made in it report. May be nested."""
    global _depth  # noqa: PLW0603
    _depth += 1
    try:
        with sync.use(RECORDER) if _depth == 1 else contextlib.nullcontext():
            yield
    finally:
        _depth -= 1


def reachable(order: Order, start: str) -> set[str]:
    """Locks below this one, itself only where there is a ring."""
    found: set[str] = set()
    todo = list(order.get(start, ()))
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += order.get(name, ())
    return found


def rings(order: Order) -> list[str]:
    """Locks that wait for themselves, over whatever way."""
    return sorted(name for name in order if name in reachable(order, name))


def render(order: Order) -> str:
    """A line a lock, outer ones first: `outer > inner, ...`, without those that follow from other lines."""
    assert not rings(order), rings(order)
    below = {name: reachable(order, name) for name in order}
    lines = []
    for name in sorted(order, key=lambda name: (-len(below[name]), name)):
        direct = sorted(order[name] - {far for near in order[name] for far in below[near]})
        lines.append(f"{name} > {', '.join(direct)}\n" if direct else f"{name}\n")
    return "".join(lines)


def documented() -> Order:
    text = DOCUMENT.read_text()
    begin = text.index(_BEGIN) + len(_BEGIN)
    section = text[begin : text.index(_END, begin)]
    order: Order = {}
    for line in section.splitlines():
        name, _, inner = line.partition(" > ")
        order[name] = set(inner.split(", ")) if inner else set()
    return order


def save(order: Order) -> None:
    SEEN.parent.mkdir(exist_ok=True)
    SEEN.write_text(json.dumps({name: sorted(inner) for name, inner in order.items()}))


def check() -> None:
    """What the tests recorded so far agrees with the document."""
    seen: Order = {name: inner - ({name} & SEVERAL) for name, inner in RECORDER.order.items()}
    save(seen)
    assert not rings(seen), f"these wait for themselves: {', '.join(rings(seen))}"
    known = documented()
    unknown = [f"{outer} > {inner}" for outer, inners in seen.items() for inner in inners - reachable(known, outer)]
    report = "; ".join(sorted(unknown))
    assert not unknown, (
        f"not in docs/architecture.md: {report} (python -m tests.support.lock_order, and think about it)"
    )


def report() -> Order:
    return RECORDER.order


def hear(report: Order) -> None:
    for name, inner in report.items():
        RECORDER.order.setdefault(name, set()).update(inner)


def show(reporter: pytest.TerminalReporter) -> None:
    """Nothing: a wrong order is a failure."""


def main() -> None:
    """Write what the last test run saw into the document."""
    seen: Order = {name: set(inner) for name, inner in json.loads(SEEN.read_text()).items()}
    text = DOCUMENT.read_text()
    begin = text.index(_BEGIN) + len(_BEGIN)
    end = text.index(_END, begin)
    DOCUMENT.write_text(text[:begin] + render(seen) + text[end:])


if __name__ == "__main__":
    main()
