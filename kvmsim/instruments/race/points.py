"""The named points: every place where the two sides can interleave, or one of them can die.

Waits are points by themselves, through memfsd.common.sync: each lock taken, each packet sent and received, each event
and condition waited for. Where something becomes true for the other side are trace points (memfsd.common.trace): the
table here gives each its name. What nobody but a scheduler wants to know has no trace point, and is watched from here
while `installed` lasts: fields that are used without a lock, and sections that only read.
"""

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kvmsim.kvm.faults import Faults
from kvmsim.kvm.mmu.mmu import Mmu
from kvmsim.kvm.vcpu import Vcpu
from kvmsim.kvm.vm import Vm
from kvmsim.store.link import StoreLink
from kvmsim.store.page_map import PageMap
from memfsd.common import trace
from memfsd.common.trace import Instrument
from memfsd.store.peer import Peer
from memfsd.uapi import messages as m
from memfsd.uapi.framing import HEADER_BYTES
from memfsd.uapi.units import PAGE_SHIFT

from .accesses import Access, Kind

Touches = Callable[..., list[Access]]
"""What a step from a point touches: of the process that makes it, and the point's arguments."""


def _nothing(process: str, *arguments: Any) -> list[Access]:
    return []


def _ept(kind: Kind) -> Touches:
    return lambda process, *_: [(("ept", process), kind)]


def _tlb(kind: Kind) -> Touches:
    return lambda process, tlb, *_: [(("tlb", labels.get(id(tlb), process)), kind)]


def _frames(window: object, runs: Iterable[tuple[int, int]], kind: Kind) -> list[Access]:
    return [
        (("frame", f"{pfn:#x} of window {window}"), kind)
        for first, count in runs
        for pfn in range(first, first + count)
    ]


def _guest_access(kind: Kind) -> Touches:
    def touches(process: str, memory: object, offset: int, length: int) -> list[Access]:
        first, end = offset >> PAGE_SHIFT, -(-(offset + length) >> PAGE_SHIFT)
        return _frames(labels.get(id(memory), process), [(first, max(end - first, 1))], kind)

    return touches


def _page_map_written(process: str, ino: int) -> list[Access]:
    """What the VM loads as a separate field."""
    return [(("field", f"{PAGE_MAP.shown} of {ino}"), Kind.WRITE)]


def _zeroed(process: str, window: int | None, runs: Iterable[tuple[int, int]]) -> list[Access]:
    return _frames(window, runs, Kind.WRITE)


def _destroyed(process: str, memory: object, frame: int, frame_count: int) -> list[Access]:
    return _frames(labels.get(id(memory), process), [(frame, frame_count)], Kind.WRITE)


def _moved(process: str, memory: object, source: int, target: int, frame_count: int) -> list[Access]:
    window = labels.get(id(memory), process)
    return [
        *_frames(window, [(source, frame_count)], Kind.READ),
        *_frames(window, [(target, frame_count)], Kind.WRITE),
    ]


@dataclass(frozen=True, slots=True)
class Point:
    """A trace point at which a thread may be left standing."""

    name: str
    at: Callable[..., None]
    """The method of Instrument."""
    side: str
    touches: Touches = _nothing


@dataclass(frozen=True, slots=True)
class Field:
    """A field that some use without a lock; each such use is a point."""

    owner: type
    name: str
    side: str

    @property
    def shown(self) -> str:
        return f"{self.owner.__name__}.{self.name}"


POINTS: tuple[Point, ...] = (
    # memfsd: the core's steps, each under Service.lock
    Point("file paired", Instrument.file_paired, "store"),
    Point("pages bound", Instrument.pages_bound, "store"),
    Point("pages unbound", Instrument.pages_unbound, "store"),
    Point("run granted", Instrument.run_granted, "store"),
    Point("range closing", Instrument.invalidate_begin, "store"),
    Point("pages unmapped", Instrument.pages_unmapped, "store"),
    Point("pages converted", Instrument.pages_converted, "store"),
    Point("range open again", Instrument.invalidate_end, "store"),
    Point("VM cut off", Instrument.frames_quarantined, "store"),
    Point("VM released", Instrument.vm_released, "store"),
    Point("file dropped", Instrument.file_dropped, "store"),
    Point("frames freed", Instrument.frames_freed, "store"),
    Point("page map written", Instrument.page_map_written, "store", _page_map_written),
    # memfsd: the world outside the core
    Point("frames zeroed", Instrument.frames_zeroed, "store", _zeroed),
    Point("window made", Instrument.window_made, "store"),
    Point("window dropped", Instrument.window_dropped, "store"),
    # kvmsim
    Point("staleness tested", Instrument.install_begun, "vm", _ept(Kind.READ)),
    Point("entry mapped", Instrument.page_mapped, "vm", _ept(Kind.WRITE)),
    Point("staleness of a large page tested", Instrument.install_large_begun, "vm", _ept(Kind.READ)),
    Point("large page mapped", Instrument.large_page_mapped, "vm", _ept(Kind.WRITE)),
    Point("run mapped", Instrument.run_mapped, "vm", _ept(Kind.WRITE)),
    Point("range zapped", Instrument.zap_begun, "vm", _ept(Kind.WRITE)),
    Point("untouched zapped", Instrument.zap_untouched_begun, "vm", _ept(Kind.WRITE)),
    Point("attributes stored", Instrument.attributes_stored, "vm", _ept(Kind.WRITE)),
    Point("bracket opened", Instrument.bracket_opened, "vm", _ept(Kind.WRITE)),
    Point("bracket closed", Instrument.bracket_closed, "vm", _ept(Kind.WRITE)),
    Point("TLB filled", Instrument.tlb_filled, "vm", _tlb(Kind.WRITE)),
    Point("TLB flushed", Instrument.tlb_flushed, "vm", _tlb(Kind.WRITE)),
    Point("TLB entries flushed", Instrument.tlb_entries_flushed, "vm", _tlb(Kind.WRITE)),
    Point("TLB looked up", Instrument.translating, "vm", _tlb(Kind.READ)),
    Point("guest reads", Instrument.guest_reads, "vm", _guest_access(Kind.READ)),
    Point("guest writes", Instrument.guest_writes, "vm", _guest_access(Kind.WRITE)),
    Point("contents destroyed", Instrument.contents_destroyed, "vm", _destroyed),
    Point("contents moved", Instrument.contents_moved, "vm", _moved),
)

RETRY = Point("fault retried", Instrument.fault_waited, "vm")
"""A fault asks again only when another thread was in a section that may change the answer."""

MACHINE_CODE = "machine code runs"
"""In guest mode, before a slice of it (slices.SlicedEngine)."""

LOOKS: tuple[tuple[type, Callable[..., object]], ...] = ((Faults, Faults.translate), (Vm, Vm.fault))
"""Sections under Mmu.lock that only read (an accessed bit is set by all alike): two of them need no order. Of (class,
method)."""

PAGE_MAP = Field(PageMap, "words", "vm")
FIELDS: tuple[Field, ...] = (
    PAGE_MAP,
    Field(Peer, "said_bye", "store"),
    Field(Vcpu, "_kickers", "vm"),
    Field(StoreLink, "lost", "vm"),
    Field(StoreLink, "seq", "vm"),
    Field(Mmu, "invalidate_seq", "vm"),
    Field(Mmu, "in_progress", "vm"),
)

LOCKS: tuple[tuple[str, str], ...] = (
    ("Service.lock", "store"),
    ("GmemFile.invalidate_lock", "store"),
    ("UpChannel.lock", "store"),
    ("Windows.lock", "store"),
    ("GuestServer.lock", "store"),
    ("Checker.turn", "store"),
    ("Questions.lock", "store"),
    ("Swapper.turn", "store"),
    ("Recording.lock", "store"),
    ("Kvm.slots_lock", "vm"),
    ("StoreLink.lock", "vm"),
    ("Mmu.lock", "vm"),
    ("Vcpu.mutex", "vm"),
    ("Vcpu.guest_lock", "vm"),
    ("Vcpu.kick_lock", "vm"),
    ("Inhibitor.lock", "vm"),
    ("GuestMemory.lock", "vm"),
    ("EncryptedMemory.lock", "vm"),
    ("FileMemory.using", "vm"),
    ("Turns.lock", "vm"),
    ("Debugger.lock", "vm"),
    ("VirtualMachine.cpus", "vm"),
    ("VCPU.running", "vm"),
    ("VM.names", "vm"),
)
WAITS: tuple[tuple[str, str], ...] = (
    ("Questions.answered waited for", "store"),
    ("Mmu.ended waited for", "vm"),
    ("Vcpu.go_on waited for", "vm"),
    ("Inhibitor.changed waited for", "vm"),
    ("Turns.changed waited for", "vm"),
    ("Debugger.changed waited for", "vm"),
    ("PeerProcess.wait_dead", "store"),
)


def message_points() -> list[tuple[str, str]]:
    """Each message of a pairing: sent, received, and acknowledged, at both ends. (name, side)."""
    found = []
    for kinds, channel, asks, answers in (
        (sorted(m.STORE_OPERATIONS - m.WITHOUT_MESSAGE | {m.Kind.HELLO}), "down", "vm", "store"),
        (sorted(m.KVM_OPERATIONS - m.WITHOUT_MESSAGE), "up", "store", "vm"),
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
    names.append((MACHINE_CODE, "vm"))
    for field in FIELDS:
        names += [(f"{field.shown} read", field.side), (f"{field.shown} written", field.side)]
    return names


labels: dict[int, str] = {}
"""Names of TLBs and windows in this run, by id()."""

Watcher = Callable[[str, tuple[Any, ...], Callable[[str], list[Access]]], None]
"""Called at a point with its name, its arguments, and what a step from there touches, by its process."""


class _Watching(Instrument):
    """Each point of the table, by its name."""

    def __init__(self, watch: Watcher, retried: Callable[[], None]) -> None:
        for point in POINTS:
            vars(self)[point.at.__name__] = _watching(point, watch)
        vars(self)[RETRY.at.__name__] = lambda *_: retried()


def _watching(point: Point, watch: Watcher) -> Callable[..., None]:
    def at(*arguments: Any) -> None:
        watch(point.name, arguments, lambda process: point.touches(process, *arguments))

    return at


@contextlib.contextmanager
def installed(
    watch: Watcher, retried: Callable[[], None], looking: Callable[[], contextlib.AbstractContextManager[None]]
) -> Iterator[None]:
    """Call `watch` at each point of the table, and `retried` after each wait of a fault, until the end; LOOKS are
    called within `looking`."""
    watching = _Watching(watch, retried)
    undo: list[tuple[type, str, Any]] = []
    with trace.observed(store=watching, vm=watching):
        try:
            for owner, method in LOOKS:
                name = method.__name__
                undo.append((owner, name, vars(owner)[name]))
                setattr(owner, name, _within(vars(owner)[name], looking))
            for field in FIELDS:
                slot = vars(field.owner).get(field.name)
                undo.append((field.owner, field.name, slot))
                setattr(field.owner, field.name, _Watched(field.shown, field.name, slot, watch))
            yield
        finally:
            for owner, name, original in reversed(undo):
                if original is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)


def _within(method: Callable[..., Any], looking: Callable[[], contextlib.AbstractContextManager[None]]) -> Any:
    def watched(*arguments: Any, **named: Any) -> Any:
        with looking():
            return method(*arguments, **named)

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
