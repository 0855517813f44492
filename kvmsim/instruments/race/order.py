"""Happens-before: the order of dependent steps of a run, which distinguishes equivalent schedules from others."""

import functools
import hashlib
from collections.abc import Container, Iterable

from .accesses import Access, Key, Kind, can_race, commute
from .scheduler import Step

Accesses = dict[Access, None]
MASK = (1 << 64) - 1

Clock = dict[str, int]
_NOTHING: dict[Kind, dict[str, tuple[int, Clock]]] = {}


class Order:
    """Happens-before of one run: for each step what came before it in every equivalent schedule."""

    def __init__(self) -> None:
        self._tasks: dict[str, Clock] = {}
        self._last: dict[Key, dict[Kind, dict[str, tuple[int, Clock]]]] = {}
        """By task the last step that did this, and its clock; one task where all before are ordered before it."""
        self._sent: dict[Key, list[tuple[int, Clock]]] = {}
        self._cleared: dict[Key, int] = {}
        self._received: dict[Key, int] = {}
        self._racing: dict[Key, list[tuple[int, str, Kind]]] = {}
        self._numbers: list[int] = []
        """Of each step: the how many-th of its task it is."""
        self._counts: dict[str, int] = {}
        self.state = 0
        """The same after all schedules of the same steps in the same order of the dependent ones."""

    def clock_of(self, name: str) -> Clock:
        """Of each task, the last step that is before whatever this one does next."""
        return self._tasks.get(name, {})

    def races_with(self, name: str, accesses: Accesses) -> set[int]:
        """Steps that are dependent, could have come after this one, and are not ordered before its task."""
        clock = self.clock_of(name)
        found = set()
        for key, kind in accesses:
            for index, other, other_kind in reversed(self._racing.get(key, [])):
                if other == name:
                    continue
                if can_race(other_kind, kind):
                    if clock.get(other, -1) < index:
                        found.add(index)
                    if other_kind is Kind.TAKE:
                        break  # all that took it before are ordered before this one
        return found

    def _join_sender(self, clock: Clock, key: Key, began: int) -> None:
        """Before what is received is what was sent: that packet, or the first notice since the wait began."""
        sent = self._sent.get(key, [])
        if key[0] == "queue":
            number = self._received.get(key, 0)
            if number < len(sent):
                join(clock, sent[number][1])
            return
        since = self._cleared.get(key, began)
        for at, other in sent:
            if at > since:
                join(clock, other)
                return
        if sent and key[0] != "event":
            join(clock, sent[0][1])

    def _join_dependent(self, clock: Clock, key: Key, kind: Kind) -> None:
        for other_kind, latest in self._last.get(key, _NOTHING).items():
            if not commute(other_kind, kind):
                for task, (at, other) in latest.items():
                    if clock.get(task, -1) < at:  # else all that was before that step is in it
                        join(clock, other)

    def add(self, index: int, step: Step) -> Clock:
        """The step's clock: for each task, its last step that is before this one (its own: itself)."""
        name = step.task.name
        clock = dict(self._tasks.get(name, {}))
        if step.fired:
            for other in self._tasks.values():
                join(clock, other)
        for key, kind in step.accesses:
            self._join_dependent(clock, key, kind)
            if kind is Kind.RECEIVE:
                self._join_sender(clock, key, clock.get(name, -1))
        clock[name] = index
        for key, kind in step.accesses:
            if kind is Kind.SEND:
                self._sent.setdefault(key, []).append((index, clock))
            elif kind is Kind.SHUT:
                self._cleared[key] = index
            elif kind is Kind.RECEIVE:
                self._received[key] = self._received.get(key, 0) + 1
            kinds = self._last.setdefault(key, {})
            if commute(kind, kind):
                kinds.setdefault(kind, {})[name] = index, clock
            else:
                kinds[kind] = {name: (index, clock)}
            if kind not in (Kind.RELEASE, Kind.UNLOOK):
                self._racing.setdefault(key, []).append((index, name, kind))
        self._tasks[name] = clock
        number = self._counts[name] = self._counts.get(name, 0) + 1
        self._numbers.append(number)
        self.state = (self.state + part_of(step, self.numbered(clock))) & MASK
        return clock

    def numbered(self, clock: Clock) -> list[tuple[str, int]]:
        """A clock by the how many-th of its task each step is: the same in every schedule that has them."""
        numbers = self._numbers
        return [(task, numbers[at]) for task, at in clock.items()]


def part_of(step: Step, past: Iterable[tuple[str, int]]) -> int:
    """What a step adds to its run's state."""
    before = frozenset([(number_of_name(name), number) for name, number in past])
    return hash((number_of_name(step.task.name), number_of_name(step.name), number_of(step.said), before))


@functools.lru_cache(1 << 14)
def number_of_name(name: str) -> int:
    return number_of(name.encode())


@functools.lru_cache(1 << 14)
def number_of(data: bytes) -> int:
    """The same in every process, as a hash of bytes is not."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=7).digest())


def as_seen(step: Step, dead: Container[str]) -> Step | None:
    """The step, or what others could see of it before its process died."""
    if step.task.process not in dead:
        return step
    return step.as_seen() if step.is_seen else None


def class_of(steps: list[Step]) -> int:
    """The same number for equivalent schedules, in every process.

    They are equivalent too when they differ only in what a process did that was killed, and nobody saw.
    """
    dead = {step.killed for step in steps if step.killed}
    order = Order()
    for index, step in enumerate(seen for step in steps if (seen := as_seen(step, dead)) is not None):
        order.add(index, step)
    return order.state


def join(clock: Clock, other: Clock) -> None:
    for name, index in other.items():
        if clock.get(name, -1) < index:
            clock[name] = index
