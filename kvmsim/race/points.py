"""The named points: every place where the two sides can interleave, or one of them can die.

Waits are points by themselves, through memfsd.common.sync: each lock taken, each packet sent and received, each event
and condition waited for. The rest is the table here: methods at which something becomes true for the other side, and
fields that are used without a lock. Nothing of it is in the code itself: `installed` wraps the methods for as long
as somebody looks.
"""

import contextlib
import functools
import importlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from memfsd.uapi import messages as m
from memfsd.uapi.framing import HEADER_BYTES
from memfsd.uapi.units import PAGE_SHIFT

from .accesses import Access, Kind

Touches = Callable[[str, tuple[Any, ...]], list[Access]]
"""What a call touches, by the process that makes it and its arguments (self first)."""


def _nothing(process: str, arguments: tuple[Any, ...]) -> list[Access]:
    return []


def _ept(kind: Kind) -> Touches:
    return lambda process, arguments: [(("ept", process), kind)]


def _tlb(kind: Kind) -> Touches:
    return lambda process, arguments: [(("tlb", labels.get(id(arguments[0]), process)), kind)]


def _translated(process: str, arguments: tuple[Any, ...]) -> list[Access]:
    return [(("tlb", labels.get(id(arguments[1].tlb), process)), Kind.READ)]


def _frames(window: object, runs: list[tuple[int, int]], kind: Kind) -> list[Access]:
    return [
        (("frame", f"{pfn:#x} of window {window}"), kind)
        for first, count in runs
        for pfn in range(first, first + count)
    ]


def _guest_access(kind: Kind) -> Touches:
    def touches(process: str, arguments: tuple[Any, ...]) -> list[Access]:
        memory, offset, data = arguments
        length = data if isinstance(data, int) else len(data)
        first, end = offset >> PAGE_SHIFT, -(-(offset + length) >> PAGE_SHIFT)
        return _frames(labels.get(id(memory), process), [(first, max(end - first, 1))], kind)

    return touches


def _zeroed(process: str, arguments: tuple[Any, ...]) -> list[Access]:
    return _frames(arguments[1], arguments[2], Kind.WRITE)


def _destroyed(process: str, arguments: tuple[Any, ...]) -> list[Access]:
    return _frames(labels.get(id(arguments[0]), process), [(arguments[1], arguments[2])], Kind.WRITE)


@dataclass(frozen=True, slots=True)
class Point:
    """A named place: just before a call of this method."""

    name: str
    where: str
    """module:Class.method"""
    side: str
    touches: Touches = _nothing


@dataclass(frozen=True, slots=True)
class Field:
    """A field that some use without a lock; each such use is a point."""

    where: str
    """module:Class.field"""
    side: str


POINTS: tuple[Point, ...] = (
    # memfsd: the core's steps, each under Service.lock
    Point("file paired", "memfsd.core.gmem:GuestMemory.pair", "store"),
    Point("pages bound", "memfsd.core.gmem:GuestMemory.bind", "store"),
    Point("pages unbound", "memfsd.core.gmem:GuestMemory.unbind", "store"),
    Point("run granted", "memfsd.core.gmem:GuestMemory.get_pfn", "store"),
    Point("range closing", "memfsd.core.gmem:GuestMemory.invalidate_begin", "store"),
    Point("pages unmapped", "memfsd.core.gmem:GuestMemory.unmap", "store"),
    Point("range open again", "memfsd.core.gmem:GuestMemory.invalidate_end", "store"),
    Point("VM cut off", "memfsd.core.gmem:GuestMemory.disconnect", "store"),
    Point("VM released", "memfsd.core.gmem:GuestMemory.release", "store"),
    Point("file dropped", "memfsd.core.gmem:GuestMemory.drop_all", "store"),
    Point("frames freed", "memfsd.core.service:Service.scrubbed", "store"),
    # memfsd: the world outside the core
    Point("frames zeroed", "memfsd.host.windows:Windows.punch", "store", _zeroed),
    Point("window made", "memfsd.host.windows:Windows.make_window", "store"),
    Point("window dropped", "memfsd.host.windows:Windows.drop_window", "store"),
    # kvmsim
    Point("staleness tested", "kvmsim.kvm.mmu.mmu:Mmu.install", "vm", _ept(Kind.READ)),
    Point("entry mapped", "kvmsim.kvm.mmu.ept:Ept.map_page", "vm", _ept(Kind.WRITE)),
    Point("staleness of a large page tested", "kvmsim.kvm.mmu.mmu:Mmu.install_large", "vm", _ept(Kind.READ)),
    Point("large page mapped", "kvmsim.kvm.mmu.ept:Ept.map_large", "vm", _ept(Kind.WRITE)),
    Point("run mapped", "kvmsim.kvm.mmu.ept:Ept.map_run", "vm", _ept(Kind.WRITE)),
    Point("range zapped", "kvmsim.kvm.mmu.mmu:Mmu._unmap", "vm", _ept(Kind.WRITE)),
    Point("untouched zapped", "kvmsim.kvm.mmu.mmu:Mmu.zap_untouched", "vm", _ept(Kind.WRITE)),
    Point("bracket opened", "kvmsim.kvm.mmu.mmu:Mmu.invalidate_begin", "vm", _ept(Kind.WRITE)),
    Point("bracket closed", "kvmsim.kvm.mmu.mmu:Mmu.invalidate_end", "vm", _ept(Kind.WRITE)),
    Point("TLB filled", "kvmsim.kvm.mmu.tlb:Tlb.insert", "vm", _tlb(Kind.WRITE)),
    Point("TLB flushed", "kvmsim.kvm.mmu.tlb:Tlb.flush", "vm", _tlb(Kind.WRITE)),
    Point("TLB entries flushed", "kvmsim.kvm.mmu.tlb:Tlb.flush_keys", "vm", _tlb(Kind.WRITE)),
    Point("TLB looked up", "kvmsim.kvm.faults:Faults.translate", "vm", _translated),
    Point("guest reads", "kvmsim.memory.memory:_Mapped.read", "vm", _guest_access(Kind.READ)),
    Point("guest writes", "kvmsim.memory.memory:_Mapped.write", "vm", _guest_access(Kind.WRITE)),
    Point("contents destroyed", "kvmsim.memory.memory:WindowMemory.scrub", "vm", _destroyed),
)

RETRY = Point("fault retried", "kvmsim.kvm.faults:Faults._wait_end", "vm")
"""After the wait. A fault asks again only when another thread was in a section that may change the answer."""

LOOKS = ("kvmsim.kvm.faults:Faults.translate", "kvmsim.kvm.vm:Vm.fault")
"""Sections under Mmu.lock that only read (an accessed bit is set by all alike): two of them need no order."""

FIELDS: tuple[Field, ...] = (
    Field("memfsd.store.peer:Peer.said_bye", "store"),
    Field("kvmsim.kvm.vcpu:Vcpu._kickers", "vm"),
    Field("kvmsim.store.link:StoreLink.lost", "vm"),
    Field("kvmsim.store.link:StoreLink.seq", "vm"),
    Field("kvmsim.kvm.mmu.mmu:Mmu.invalidate_seq", "vm"),
    Field("kvmsim.kvm.mmu.mmu:Mmu.in_progress", "vm"),
)

LOCKS: tuple[tuple[str, str], ...] = (
    ("Service.lock", "store"),
    ("Guest.invalidate_lock", "store"),
    ("UpChannel.lock", "store"),
    ("Windows.lock", "store"),
    ("GuestServer.lock", "store"),
    ("Checker.turn", "store"),
    ("Reclaimer.lock", "store"),
    ("Recording.lock", "store"),
    ("Kvm.slots_lock", "vm"),
    ("StoreLink.lock", "vm"),
    ("Mmu.lock", "vm"),
    ("Vcpu.mutex", "vm"),
    ("Vcpu.guest_lock", "vm"),
    ("Vcpu.kick_lock", "vm"),
    ("Inhibitor.lock", "vm"),
    ("GuestMemory.lock", "vm"),
    ("FileMemory.using", "vm"),
)
WAITS: tuple[tuple[str, str], ...] = (
    ("Reclaimer.progress waited for", "store"),
    ("Mmu.ended waited for", "vm"),
    ("Vcpu.go_on waited for", "vm"),
    ("Inhibitor.changed waited for", "vm"),
    ("PeerProcess.wait_dead", "store"),
)


def message_points() -> list[tuple[str, str]]:
    """Each message of a pairing: sent, received, and acknowledged, at both ends. (name, side)."""
    found = []
    for kinds, channel, asks, answers in (
        (sorted(m.STORE_OPERATIONS | {m.Kind.HELLO}), "down", "vm", "store"),
        (sorted(m.KVM_OPERATIONS), "up", "store", "vm"),
    ):
        for kind in kinds:
            name = m.Kind(kind).name
            found += [
                (f"{asks} {channel} send {name}", asks),
                (f"{answers} {channel} receive {name}", answers),
                (f"{answers} {channel} send answer to {name}", answers),
                (f"{asks} {channel} receive answer to {name}", asks),
            ]
    return found


def of_packet(where: str, verb: str, packet: Any, *, tell_refusals: bool = False) -> str:
    """The point of a packet that is sent or received at one end of a channel. A refusal is an answer, unless it is to
    be told."""
    if len(packet) < HEADER_BYTES:
        return f"{where} {verb} end of file"
    _, word, number = struct.unpack_from("<IHH", packet)
    try:
        kind = m.Kind(word & ~m.REPLY).name
    except ValueError:
        kind = f"message {word}"
    if not word & m.REPLY:
        return f"{where} {verb} {kind}"
    return f"{where} {verb} {'refusal of' if number and tell_refusals else 'answer to'} {kind}"


def all_names() -> list[tuple[str, str]]:
    """(name, side) of every point, for `kvmsim race --points`."""
    names = message_points()
    for side in ("store", "vm"):
        for channel in ("down", "up"):
            names += [
                (f"{side} {channel} {what}", side)
                for what in ("receive end of file", "receive nothing in time", "shut", "closed")
            ]
    names += [(f"{lock} taken", side) for lock, side in LOCKS]
    names += WAITS
    names += [(point.name, point.side) for point in (*POINTS, RETRY)]
    for field in FIELDS:
        short = field.where.rpartition(":")[2]
        names += [(f"{short} read", field.side), (f"{short} written", field.side)]
    return names


labels: dict[int, str] = {}
"""Names of TLBs and windows in this run, by id()."""

Watcher = Callable[[str, tuple[Any, ...], Callable[[str], list[Access]]], None]
"""Called at a point with its name, the call's arguments, and what a step from there touches, by its process."""


@functools.cache
def resolve(where: str) -> tuple[type, str]:
    """The class and the attribute's name. Fails when the code has no such thing."""
    module, _, path = where.partition(":")
    class_name, _, attribute = path.partition(".")
    return getattr(importlib.import_module(module), class_name), attribute


@contextlib.contextmanager
def installed(
    watch: Watcher, retried: Callable[[], None], looking: Callable[[], contextlib.AbstractContextManager[None]]
) -> Iterator[None]:
    """Call `watch` at each point of the table, and `retried` after each wait of a fault, until the end; LOOKS are
    called within `looking`."""
    undo: list[tuple[type, str, Any]] = []
    try:
        for point in POINTS:
            owner, name = resolve(point.where)
            undo.append((owner, name, owner.__dict__[name]))
            setattr(owner, name, _before(owner.__dict__[name], point, watch))
        for where in LOOKS:
            owner, name = resolve(where)
            undo.append((owner, name, owner.__dict__[name]))
            setattr(owner, name, _within(owner.__dict__[name], looking))
        owner, name = resolve(RETRY.where)
        undo.append((owner, name, owner.__dict__[name]))
        setattr(owner, name, _after(owner.__dict__[name], retried))
        for field in FIELDS:
            owner, name = resolve(field.where)
            undo.append((owner, name, owner.__dict__.get(name)))
            setattr(owner, name, _Watched(f"{owner.__name__}.{name}", name, owner.__dict__.get(name), watch))
        yield
    finally:
        for owner, name, original in reversed(undo):
            if original is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)


def _before(method: Callable[..., Any], point: Point, watch: Watcher) -> Callable[..., Any]:
    def watched(*arguments: Any, **named: Any) -> Any:
        watch(point.name, arguments, lambda process: point.touches(process, arguments))
        return method(*arguments, **named)

    return watched


def _within(method: Callable[..., Any], looking: Callable[[], contextlib.AbstractContextManager[None]]) -> Any:
    def watched(*arguments: Any, **named: Any) -> Any:
        with looking():
            return method(*arguments, **named)

    return watched


def _after(method: Callable[..., Any], call: Callable[[], None]) -> Callable[..., Any]:
    def watched(*arguments: Any, **named: Any) -> Any:
        result = method(*arguments, **named)
        call()
        return result

    return watched


class _Watched:
    """A field of a class whose every use is a point."""

    def __init__(self, shown: str, name: str, slot: Any, watch: Watcher) -> None:
        self._shown = shown
        self._name = name
        self._slot = slot
        self._watch = watch

    def __get__(self, owner: Any, _: type | None = None) -> Any:
        self._at("read", owner, Kind.READ)
        if self._slot is not None:
            return self._slot.__get__(owner)
        try:
            return owner.__dict__[self._name]
        except KeyError:
            raise AttributeError(self._name) from None

    def __set__(self, owner: Any, value: Any) -> None:
        self._at("written", owner, Kind.WRITE)
        if self._slot is not None:
            self._slot.__set__(owner, value)
        else:
            owner.__dict__[self._name] = value

    def _at(self, verb: str, owner: Any, kind: Kind) -> None:
        self._watch(
            f"{self._shown} {verb}",
            (owner,),
            lambda process: [(("field", f"{self._shown} of {labels.get(id(owner), process)}"), kind)],
        )
