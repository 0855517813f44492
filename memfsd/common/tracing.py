"""The observer of a trace: what happens at a trace point, as events.

The task of an event is the vCPU (VM/ID) or the VM, or memfsd. A vCPU is in the guest from kvm_entry to kvm_exit,
whatever it does there: an access that hits the TLB, or whose page is mapped, is no event, as on hardware.
"""

import contextlib
import errno
import time
from collections.abc import Callable, Mapping, Sequence

from memfsd.uapi.framing import HEADER_BYTES, BadBody, BadPacket, decode_header, decode_reply, decode_request
from memfsd.uapi.messages import Hello, Kind, PairReply
from memfsd.uapi.units import PAGE_SHIFT, Gfn, GfnRange, Pfn, Pgoff

from . import trace
from . import traceevents as e
from .quote import printable
from .ratelimit import Ratelimit
from .trace import Connection
from .traceevents import Event, Value
from .tracefile import TraceFile, word

_READ, _WRITE, _PRIVATE = 0x1_0000_0004, 0x1_0000_0002, 1 << 49
"""PFERR_ bits of a page fault: GUEST_FINAL with USER or WRITE, and PRIVATE_ACCESS."""
_EXITS = {
    "IO": "IO_INSTRUCTION",
    "HYPERCALL": "VMCALL",
    "HLT": "HLT",
    "SHUTDOWN": "TRIPLE_FAULT",
    "INTR": "EXTERNAL_INTERRUPT",
    "MACHINE_CHECK": "EXCEPTION_NMI",
}
"""Why the hardware leaves the guest for an exit to user space that no page fault came before; else EPT_VIOLATION."""


class _Task:
    """A vCPU. Used by the thread that runs it."""

    __slots__ = ("id", "in_guest", "in_ioctl", "name")

    def __init__(self, name: str, id_: int) -> None:
        self.name, self.id = name, id_
        self.in_guest = self.in_ioctl = False


class Tracing(trace.Instrument):
    """side: memfsd or kvmsim."""

    def __init__(self, file: TraceFile, side: str) -> None:
        self._put = file.put
        self._task = "memfsd" if side == "memfsd" else ""
        """Of its packets; a VM's are their VM's."""
        self._send, self._receive = e.EVENTS[f"{side}_send"], e.EVENTS[f"{side}_receive"]
        self._wanted = file.wanted
        self.sees_packets = not self._wanted.isdisjoint((self._send, self._receive))
        self._counting = Ratelimit()
        self._tasks: dict[tuple[str, int], _Task] = {}
        self.close = file.close

    def switch(self, pattern: str, *, on: bool) -> None:
        """Events on or off, from any thread. EINVAL (Refused) when the pattern names none."""
        events = e.chosen(pattern)
        if on:
            self._wanted.update(events)
        else:
            self._wanted.difference_update(events)
        self.sees_packets = not self._wanted.isdisjoint((self._send, self._receive))

    # -- of any side: packets

    def packet_sent(self, channel: str, connection: Connection, packet: bytes, fds: int) -> None:
        self._message(self._send, channel, connection, packet, fds)

    def packet_received(self, channel: str, connection: Connection, packet: bytes, fds: int) -> None:
        self._message(self._receive, channel, connection, packet, fds)

    # -- the store

    def file_paired(self, ino: int, vm: str) -> None:
        self._put(
            e.PAIRED,
            "memfsd",
            (
                ino,
                word(vm),
            ),
        )

    def pages_bound(self, ino: int, slot: int, gfn: int, pgoff: int, page_count: int) -> None:
        self._put(
            e.BOUND,
            "memfsd",
            (
                ino,
                slot,
                gfn,
                pgoff,
                page_count,
            ),
        )

    def pages_unbound(self, ino: int, pgoff: int, page_count: int) -> None:
        self._put(
            e.UNBOUND,
            "memfsd",
            (
                ino,
                pgoff,
                page_count,
            ),
        )

    def run_granted(self, ino: int, pgoff: int, max_pages: int) -> None:
        self._put(
            e.GET_PFN,
            "memfsd",
            (
                ino,
                pgoff,
                max_pages,
            ),
        )

    def run_was_granted(self, ino: int, pgoff: int, pfn: int, page_count: int, frames: Sequence[int]) -> None:
        self._put(
            e.GRANTED,
            "memfsd",
            (
                ino,
                pgoff,
                pfn,
                page_count,
            ),
        )
        self._put(e.POOL, "memfsd", tuple(frames))

    def frames_counted(self, frames: Sequence[int]) -> None:
        self._put(e.POOL, "memfsd", tuple(frames))

    def invalidate_begin(self, ino: int, start: int, end: int, reason: int) -> None:
        self._put(
            e.INVALIDATE_BEGIN,
            "memfsd",
            (
                ino,
                start,
                end,
                int(reason),
            ),
        )

    def pages_unmapped(self, ino: int) -> None:
        self._put(e.UNMAPPED, "memfsd", (ino,))

    def invalidate_end(self, ino: int) -> None:
        self._put(e.INVALIDATE_END, "memfsd", (ino,))

    def frames_quarantined(self, ino: int) -> None:
        self._put(e.QUARANTINED, "memfsd", (ino,))

    def frames_freed(self, window: int | None, runs: Sequence[tuple[int, int]]) -> None:
        self._put(
            e.FREED,
            "memfsd",
            (
                -1 if window is None else window,
                sum(count for _, count in runs),
            ),
        )

    def vm_disconnected(self, ino: int, vm: str, why: str) -> None:
        self._put(
            e.DISCONNECTED,
            "memfsd",
            (
                ino,
                word(vm),
                printable(why),
            ),
        )

    def vm_exited(self, ino: int, vm: str, pid: int, said_bye: bool) -> None:
        self._put(
            e.EXITED,
            "memfsd",
            (
                ino,
                word(vm),
                pid,
                int(said_bye),
            ),
        )

    # -- a VM

    def installed(self, vm: str, ino: int, conn: int, gfn: Gfn, pgoff: Pgoff, pfn: Pfn, page_count: int) -> None:
        self._put(
            e.INSTALLED,
            vm,
            (
                ino,
                gfn,
                pgoff,
                pfn,
                page_count,
            ),
        )

    def zapped(self, vm: str, start: Gfn, end: Gfn, kept: list[GfnRange]) -> None:
        self._put(
            e.ZAPPED,
            vm,
            (
                start,
                end,
                sum(high - low for low, high in kept),
            ),
        )

    def kicked_out(self, vm: str, since_ns: int) -> None:
        self._put(e.KICKED, vm, (time.monotonic_ns() - since_ns,))

    def store_invalidates(self, vm: str, start: Gfn, end: Gfn) -> None:
        self._put(
            e.UNMAP,
            vm,
            (
                start << PAGE_SHIFT,
                end << PAGE_SHIFT,
            ),
        )

    def fault_waited(self, gfn: Gfn) -> None:
        self._put(e.FAULT_WAITED, "kvmsim", (gfn,))

    def converted(self, vm: str, start: Gfn, end: Gfn, private: bool, held: Callable[[], tuple[int, int]]) -> None:
        way = "shared_to_private" if private else "private_to_shared"
        self._put(
            e.CONVERT,
            vm,
            (
                start << PAGE_SHIFT,
                (end - start) << PAGE_SHIFT,
                way,
            ),
        )
        now = time.monotonic_ns()
        if e.MEMORY in self._wanted and self._counting.allows(now):
            self._put(e.MEMORY, vm, held())
            self._counting.spent(time.monotonic_ns() - now)

    # -- its vCPUs

    def guest_entered(self, vm: str, vcpu: int) -> None:
        task = self._tasks.get((vm, vcpu)) or self._new_task(vm, vcpu)
        if not (task.in_guest or task.in_ioctl):
            task.in_guest = True
            self._put(e.ENTRY, task.name, (vcpu, 0))

    run_done = guest_entered

    def fault_begun(self, vm: str, vcpu: int, gfn: Gfn, offset: int, shared: bool, write: bool) -> None:
        task = self._tasks.get((vm, vcpu)) or self._new_task(vm, vcpu)
        if task.in_ioctl:
            return
        if task.in_guest:
            self._left(task, "EPT_VIOLATION", 1 << write)
        error = (_WRITE if write else _READ) | (0 if shared else _PRIVATE)
        self._put(e.PAGE_FAULT, task.name, (vcpu, 0, (gfn << PAGE_SHIFT) + offset, error))

    def hypercall(self, vm: str, vcpu: int, nr: int, args: Sequence[int], is_tdcall: bool) -> None:
        self.guest_entered(vm, vcpu)  # when what it did before was abandoned at an exit
        task = self._tasks[vm, vcpu]
        self._left(task, "TDCALL" if is_tdcall else "VMCALL")
        self._put(e.HYPERCALL, task.name, (nr, *[*args, 0, 0, 0, 0][:4]))

    def userspace_exit(self, vm: str, vcpu: int, reason: str, number: int, fields: trace.Fields) -> None:
        task = self._tasks.get((vm, vcpu)) or self._new_task(vm, vcpu)
        said = fields() if reason in ("MMIO", "IO") else {}
        self._left(task, _EXITS.get(reason, "EPT_VIOLATION"), _io_qualification(said) if reason == "IO" else 0)
        if reason == "MMIO":
            data = int.from_bytes(bytes.fromhex(str(said.get("data", ""))), "little")
            way = "write" if said["is_write"] else "unsatisfied-read"
            self._put(e.MMIO, task.name, (way, said["len"], said["phys_addr"], data))
        elif reason == "IO" and "data" in said:
            port, size, count = int(said["port"]), int(said["size"]), int(said["count"])
            self._pio(task.name, "write", port, size, count, bytes.fromhex(str(said["data"])))
        shown = ("restart", errno.EINTR) if reason == "INTR" else (f"KVM_EXIT_{reason}", number)
        self._put(e.USERSPACE_EXIT, task.name, shown)

    def mmio_read(self, vm: str, vcpu: int, gpa: int, data: bytes) -> None:
        self._put(e.MMIO, f"{vm}/{vcpu}", ("read", len(data), gpa, int.from_bytes(data, "little")))

    def port_read(self, vm: str, vcpu: int, port: int, size: int, count: int, data: bytes) -> None:
        self._pio(f"{vm}/{vcpu}", "read", port, size, count, data)

    def ioctl_begun(self, vm: str, vcpu: int) -> None:
        """On hardware it is out of the guest; where from, no event says."""
        self._new_task(vm, vcpu).in_ioctl = True

    def ioctl_ended(self, vm: str, vcpu: int) -> None:
        self._new_task(vm, vcpu)

    def _pio(self, task: str, way: str, port: int, size: int, count: int, data: bytes) -> None:
        """As the kernel: the first item of several."""
        value = int.from_bytes(data[:size], "little")
        self._put(e.PIO, task, (way, port, size, count, value, "(...)" if count > 1 else ""))

    def _new_task(self, vm: str, vcpu: int) -> _Task:
        """It, as if it had not entered the guest."""
        task = self._tasks[vm, vcpu] = _Task(f"{vm}/{vcpu}", vcpu)
        return task

    def _left(self, task: _Task, reason: str, info1: int = 0) -> None:
        if task.in_guest:
            task.in_guest = False
            self._put(e.EXIT, task.name, (task.id, reason, 0, info1, 0, 0, 0))

    def _message(self, event: Event, channel: str, connection: Connection, packet: bytes, fds: int) -> None:
        if connection.ino < 0:
            _learn(connection, packet)
        vm, ino, peer = connection.vm, connection.ino, connection.peer
        self._put(event, self._task or vm or "kvmsim", (channel, packet[:HEADER_BYTES], vm, ino, peer, fds))


def _io_qualification(fields: Mapping[str, Value]) -> int:
    """Exit qualification of I/O instructions (SDM, table 27-5), as far as kvm_run has it."""
    return int(fields["size"]) - 1 | (not fields["direction"]) << 3 | int(fields["port"]) << 16


def _learn(connection: Connection, packet: bytes) -> None:
    """As the journal does, which may not be there."""
    with contextlib.suppress(BadPacket, BadBody):
        header = decode_header(packet)
        if header.kind is Kind.HELLO and not header.is_reply:
            body = decode_request(header.kind, packet)
            connection.vm = body.vm if isinstance(body, Hello) else ""
        elif header.kind is Kind.PAIR and header.is_reply and not header.errno:
            reply = decode_reply(header.kind, packet)
            connection.ino = reply.ino if isinstance(reply, PairReply) else -1
