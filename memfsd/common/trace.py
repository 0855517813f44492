"""Trace points: what happens in a store and in a VM, reported to whoever observes it.

An `Instrument` (after trio's) has a method for each point; `observed` attaches one to the store's points of this
process, to the VM's, or to both. Who observes today: the journal (common/journal.py), the trace (common/tracefile.py),
the monitor's events (kvmsim/instruments/monitor/events.py), and the race scheduler with the tests that kill a process
at a point (kvmsim/instruments/race/points.py).

Most points are a call at the place, behind one test of a variable of this module:

    if trace.vm is not None:
        trace.vm.bracket_opened(start, end)

Those on the path of a fault or of a guest's access are `hot`: declared at the method, which is the plain one until
somebody observes who wants them, as a static key patches the kernel's code. They cost nothing at all.

Packets have their points in common/packets.py: a socket is wrapped when it is made, if somebody observes then.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar, cast

from memfsd.uapi.units import Gfn, GfnRange, HostPfn, Pfn, Pgoff

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Connection:
    """What both channels of a pairing have in common, at either end.

    number: as the journal counts them. peer: the pid at the other end. vm and ino once a packet said so.
    """

    peer: int
    number: int = -1
    vm: str = ""
    ino: int = -1


Fields = Callable[[], Mapping[str, int | str]]
"""What kvm_run says of an exit, for those who want to know."""


class Instrument:
    """Every point, doing nothing: a subclass has those that it wants.

    Called on the thread that does it, with the locks held that are named: take none of ours, and raise nothing that the
    code should survive. A point is just before the step that it names; those that say "after" are not. Frame numbers
    are the store's, but for those of an EPT, which are the VM's. tlb and memory are there for their identity.
    """

    sees_packets = False
    """Packets, too: only then are the sockets of connections observed."""

    # -- packets, of both sides: down is the channel on which the VM asks, up that on which the store calls

    def connected(self, connection: Connection) -> None:
        """This end of a down channel exists."""

    def packet_sent(self, channel: str, connection: Connection, packet: bytes, fds: int) -> None:
        """Is about to be sent, so that an observer knows of it before the peer does. With so many descriptors."""

    def packet_unsent(self, channel: str, connection: Connection, why: str) -> None:
        """After that: it could not be."""

    def packet_received(self, channel: str, connection: Connection, packet: bytes, fds: int) -> None:
        """After it came."""

    def channel_closed(self, channel: str, connection: Connection) -> None:
        """After the other end was seen to have closed it."""

    # -- the store: steps of the core, each with Service.lock held

    def file_paired(self, ino: int, vm: str) -> None: ...
    def pages_bound(self, ino: int, slot: int, gfn: int, pgoff: int, page_count: int) -> None: ...
    def pages_unbound(self, ino: int, pgoff: int, page_count: int) -> None: ...

    def run_granted(self, ino: int, pgoff: int, max_pages: int) -> None:
        """GET_PFN, whether it is granted or refused. Hot."""

    def run_was_granted(self, ino: int, pgoff: int, pfn: int, page_count: int, frames: Sequence[int]) -> None:
        """After that, when it is granted. frames: of the pool, by state. Hot."""

    def invalidate_begin(self, ino: int, start: int, end: int, reason: int) -> None:
        """File pages [start, end) are being taken back; the file's invalidate_lock is held until `invalidate_end`."""

    def pages_unmapped(self, ino: int) -> None:
        """Acknowledged: the next part of the range leaves the file's page table."""

    def pages_converted(self, ino: int, start: int, end: int, shared: bool) -> None:
        """Before pages of a guest_memfd are shared, or private: acknowledged by their VM."""

    def invalidate_end(self, ino: int) -> None: ...

    def frames_quarantined(self, ino: int) -> None:
        """All frames of a VM that lives and does not answer."""

    def vm_released(self, ino: int) -> None:
        """All frames of a VM that has exited are taken out of the file."""

    def file_dropped(self, ino: int) -> None:
        """Nobody holds it any more: its frames are given back."""

    def frames_freed(self, window: int | None, runs: Sequence[tuple[int, int]]) -> None:
        """Scrubbed (first frame, frames) of a file's window can be granted again. None: of the ordinary files' pool."""

    def frames_counted(self, frames: Sequence[int]) -> None:
        """After frames were freed: how many of the pool are in each state."""

    def page_map_written(self, ino: int) -> None:
        """Words of the map that its VM reads without a lock. Hot."""

    # -- the store: its windows; no lock is held

    def frames_zeroed(self, window: int | None, runs: Sequence[tuple[int, int]]) -> None:
        """Scrub: these frames are punched out of a window (None: of the pool)."""

    def window_made(self, ino: int) -> None: ...
    def window_dropped(self, ino: int) -> None: ...

    # -- the store: the end of a VM; the file's invalidate_lock is held

    def vm_disconnected(self, ino: int, vm: str, why: str) -> None:
        """It lives and broke its word."""

    def vm_exited(self, ino: int, vm: str, pid: int, said_bye: bool) -> None:
        """It said BYE, or its death is proven: before anything is done because of it."""

    # -- a VM: its page tables and TLBs, with Mmu.lock held

    def bracket_opened(self, start: Gfn, end: Gfn) -> None:
        """An invalidation of GFNs [start, end), by the store or by KVM itself, begins."""

    def bracket_closed(self) -> None: ...

    def install_begun(self, gfn: Gfn, pfn: HostPfn, page_count: int) -> None:
        """The granted run comes back to the fault: is it stale? Hot."""

    def install_large_begun(self, gfn: Gfn, pfn: HostPfn, page_count: int, order: int) -> None:
        """Likewise, for leaves of this order."""

    def installed(self, vm: str, ino: int, conn: int, gfn: Gfn, pgoff: Pgoff, pfn: Pfn, page_count: int) -> None:
        """After a run of private pages was mapped; pfn is the store's. Hot."""

    def page_mapped(self, gfn: Gfn, pfn: HostPfn) -> None:
        """One page, as most faults do it. Hot."""

    def run_mapped(self, gfn: Gfn, pfn: HostPfn, page_count: int) -> None: ...
    def large_page_mapped(self, gfn: Gfn, pfn: HostPfn, order: int) -> None: ...

    def zap_begun(self, start: Gfn, end: Gfn, private: bool) -> None:
        """GFNs [start, end) lose their leaves in one EPT."""

    def zap_untouched_begun(self, start: Gfn, end: Gfn) -> None:
        """RECLAIM: only the leaves that no walk has marked accessed."""

    def flush_begun(self, vm: str) -> None:
        """The leaves are gone from the EPT, and leave the TLBs now."""

    def attributes_stored(self, vm: str, start: Gfn, end: Gfn, private: bool) -> None:
        """Before GFNs get KVM_SET_MEMORY_ATTRIBUTES' attribute, with Mmu.lock held."""

    def zapped(self, vm: str, start: Gfn, end: Gfn, kept: list[GfnRange]) -> None:
        """After private GFNs [start, end), but for those kept, left the EPT and every TLB."""

    def tlb_filled(self, tlb: object, key: int) -> None:
        """Hot."""

    def tlb_flushed(self, tlb: object) -> None:
        """Of all translations. Also without Mmu.lock: by the vCPU whose TLB is full."""

    def tlb_entries_flushed(self, tlb: object) -> None: ...

    # -- a VM: its vCPUs; no lock is held but where it is named

    def guest_entered(self, vm: str, vcpu: int) -> None:
        """After the vCPU is in guest mode, with its guest_lock. Hot."""

    def frames_found(self, vm: str, ino: int, conn: int, pgoff: Pgoff, pfn: Pfn, page_count: int, seq: int) -> None:
        """After the page map had them: a grant without a message. Hot."""

    def fault_begun(self, vm: str, vcpu: int, gfn: Gfn, offset: int, shared: bool, write: bool) -> None:
        """An EPT violation, or a page that an ioctl wants mapped. Hot."""

    def hypercall(self, vm: str, vcpu: int, nr: int, args: Sequence[int], is_tdcall: bool) -> None:
        """A guest calls KVM, the TDX way or its own."""

    def userspace_exit(self, vm: str, vcpu: int, reason: str, number: int, fields: Fields) -> None:
        """KVM_RUN is about to return with this exit, by its number, and what kvm_run says of it."""

    def mmio_read(self, vm: str, vcpu: int, gpa: int, data: bytes) -> None:
        """KVM_RUN again, with what user space answers."""

    def port_read(self, vm: str, vcpu: int, port: int, size: int, count: int, data: bytes) -> None:
        """Likewise, for `count` transfers of `size` bytes."""

    def run_done(self, vm: str, vcpu: int) -> None:
        """What the guest was doing is done: it would go on with something else."""

    def ioctl_begun(self, vm: str, vcpu: int) -> None:
        """Of a vCPU, other than KVM_RUN."""

    def ioctl_ended(self, vm: str, vcpu: int) -> None: ...

    def store_invalidates(self, vm: str, start: Gfn, end: Gfn) -> None:
        """The store takes back what shows at GFNs [start, end). With Mmu.lock held."""

    def fault_waited(self, gfn: Gfn) -> None:
        """After the wait for the end of an invalidation: the fault begins again."""

    def translating(self, tlb: object, gfn: Gfn, shared: bool) -> None:
        """In guest mode. Hot."""

    def guest_reads(self, memory: object, offset: int, length: int) -> None:
        """Bytes of a memory, by a guest with a translation in hand, or by the host. Hot."""

    def guest_writes(self, memory: object, offset: int, length: int) -> None:
        """Likewise."""

    def taken_back(self, vm: str, ino: int, start: Pgoff, end: Pgoff, reason: str, ranges: list[GfnRange]) -> None:
        """After file pages [start, end), at these GFNs, were unmapped for the store: before the acknowledgement."""

    def pairing_lost(self, vm: str, ino: int, why: str) -> None:
        """The store is gone, or has revoked the file."""

    def memory_error(self, vm: str, vcpu: int, fields: Mapping[str, int | str | bool], why: str) -> None:
        """KVM_EXIT_MEMORY_ERROR that user space does not repair; fields of kvm_run.memory_error."""

    def kicked_out(self, vm: str, since_ns: int) -> None:
        """After every vCPU was out of guest mode at some time since (CLOCK_MONOTONIC)."""

    def contents_destroyed(self, memory: object, frame: int, frame_count: int) -> None:
        """Private frames that are not mapped any more read as zeros."""

    def contents_moved(self, memory: object, source: int, target: int, frame_count: int) -> None:
        """What private frames that are not mapped any more hold is copied into others."""

    # -- user space of a VM

    def slot_changed(self, vm: str, private: bool, slot: int, segments: Callable[[], list[GfnRange]]) -> None:
        """After user space made, changed or deleted a slot: the GFNs that it shows now. GuestMemory.lock is held."""

    def converted(self, vm: str, start: Gfn, end: Gfn, private: bool, held: Callable[[], tuple[int, int]]) -> None:
        """After GFNs [start, end) were converted. held counts pages of shared memory, and of those that are held twice.
        With GuestMemory.lock held."""


POINTS: tuple[str, ...] = tuple(
    name for name, value in vars(Instrument).items() if callable(value) and not name.startswith("_")
)


class Side(Enum):
    """Whose points."""

    STORE = "store"
    VM = "vm"


store: Instrument | None = None
"""Who observes the store's points of this process; None: nobody."""
vm: Instrument | None = None
"""Who observes the VM's."""

_observers: dict[Side, list[Instrument]] = {Side.STORE: [], Side.VM: []}


@contextlib.contextmanager
def observed(*, store: Instrument | None = None, vm: Instrument | None = None) -> Iterator[None]:
    """Until the end these observe; the last to attach is called first. Not for two threads at once."""
    wanted = [(side, one) for side, one in ((Side.STORE, store), (Side.VM, vm)) if one is not None]
    for side, one in wanted:
        _observers[side].insert(0, one)
        _switch(side)
    try:
        yield
    finally:
        for side, one in wanted:
            _observers[side].remove(one)
            _switch(side)


def _switch(side: Side) -> None:
    globals()[side.value] = _as_one(_observers[side]) if _observers[side] else None
    for method in _hot:
        if method.side is side:
            method.switch()


def _as_one(observers: list[Instrument]) -> Instrument:
    return observers[0] if len(observers) == 1 else _Several(observers)


def _sees(observer: Instrument, point: Callable[..., None]) -> bool:
    """It has a method for the point, and not Instrument's that does nothing."""
    return getattr(getattr(observer, point.__name__), "__func__", None) is not point


class _Several(Instrument):
    def __init__(self, instruments: list[Instrument]) -> None:
        self._instruments = list(instruments)
        for name in POINTS:
            seeing = [one for one in instruments if _sees(one, getattr(Instrument, name))]
            vars(self)[name] = _each([getattr(one, name) for one in seeing])

    @property
    def sees_packets(self) -> bool:  # type: ignore[override]
        """Asked each time: a trace can switch its packet events on and off."""
        return any(one.sees_packets for one in self._instruments)


def _each(calls: list[Callable[..., None]]) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        for one in calls:
            one(*arguments)

    return call


HotPoint = tuple[Callable[..., None], Callable[..., None]]
"""A method of Instrument, and what calls it."""


def hot(side: Side, *, before: HotPoint | None = None, after: HotPoint | None = None) -> Callable[[F], F]:
    """The decorated method has points that cost nothing while nobody observes, or who does has no method for them.

    before's function gets the instrument and the method's arguments, self first; after's gets the instrument, the
    result and those.
    """

    def mark(method: F) -> F:
        return cast(F, _Hot(method, side, before, after))

    return mark


class _Hot:
    """In place of the method until its class is made."""

    def __init__(self, method: Callable[..., Any], side: Side, before: HotPoint | None, after: HotPoint | None) -> None:
        self.side = side
        self._plain = method
        self._points = before, after
        self._seeing: tuple[list[Instrument], list[Instrument]] = [], []

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name
        setattr(owner, name, self._plain)
        _hot.append(self)
        self.switch()

    def switch(self) -> None:
        """For those who observe now: the method as it is, unless one of them sees a point of it."""
        before, after = self._points
        seeing = self._who_sees(before), self._who_sees(after)
        if seeing == self._seeing:
            return
        if self._seeing == ([], []):
            self._plain = vars(self._owner)[self._name]
        self._seeing = seeing
        method = self._plain
        if after is not None and seeing[1]:
            method = _followed(method, after[1], _as_one(seeing[1]))
        if before is not None and seeing[0]:
            method = _preceded(method, before[1], _as_one(seeing[0]))
        setattr(self._owner, self._name, method)

    def _who_sees(self, point: HotPoint | None) -> list[Instrument]:
        return [] if point is None else [one for one in _observers[self.side] if _sees(one, point[0])]


def _preceded(method: Callable[..., Any], say: Callable[..., None], to: Instrument) -> Callable[..., Any]:
    def traced(*arguments: Any, **named: Any) -> Any:
        say(to, *arguments, **named)
        return method(*arguments, **named)

    return traced


def _followed(method: Callable[..., Any], say: Callable[..., None], to: Instrument) -> Callable[..., Any]:
    def traced(*arguments: Any, **named: Any) -> Any:
        result = method(*arguments, **named)
        say(to, result, *arguments, **named)
        return result

    return traced


_hot: list[_Hot] = []
