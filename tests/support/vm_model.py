"""One VM's memory as plain dictionaries: what each alias of a page reads, or which exit must come.

A reference for `kvmsim`, as simple as it can be: a page at a time, no page tables, no TLB, no readahead, no store. It
knows the thread's table of requests, the designs of conversion, and KVM's checks of slots. What a guest does is a
program here too: a generator that yields the exits it must come to, and looks at memory again when it is run again.

    private[gfn]   the private slot that shows the page       secret[gfn]   its bytes; missing: zeros
    own[gfn]       the person's ordinary slot over it         (bytes in the slot, which may move)
    copied         pages that user space's shared copy shows  copy[gfn]     its bytes
"""

import errno
import hashlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from kvmsim.kvm import hypercalls as h
from kvmsim.shell.script import commands as c
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE

GPA_END = 1 << 48
PAGES = GPA_END // PAGE_SIZE
READONLY, MAX_SLOT_PAGES = 2, (1 << 31) - 1
EINTR = "EINTR"

Exit = tuple[str, dict[str, Any]]
"""Its reason without KVM_EXIT_, and its fields as a script shows them."""
Program = Generator[Exit | str, Any, Any]
"""Yields an exit, or EINTR; is sent the answer of user space; returns the result."""


@dataclass(eq=False)
class Private:
    """id None: one that user space made."""

    id: int | None
    gfn: int
    count: int


@dataclass(eq=False)
class Ordinary:
    gfn: int
    count: int
    flags: int
    pages: dict[int, bytearray] = field(default_factory=dict)


@dataclass(frozen=True)
class Home:
    """Page N of the file belongs at GFN gfn + N (fixed_gfn)."""

    file: str
    gfn: int
    count: int
    page_size: int = PAGE_SIZE


@dataclass
class VcpuModel:
    program: Program | None = None
    at: Exit | str | None = None
    kicked: bool = False


class VmModel:
    def __init__(self, homes: list[Home], max_slots: int, others: Iterable[Home] = ()) -> None:
        self.homes = {home.file: home for home in homes}
        self._others = {home.file: home for home in others}
        self._max_slots = max_slots
        self.private: dict[int, Private] = {}
        self.private_ids: dict[int, Private] = {}
        self.pieces: set[Private] = set()
        """Those that user space made: every one shows something."""
        self.secret: dict[int, bytearray] = {}
        self.touched: set[int] = set()
        """Private pages that the guest has used and nobody has destroyed since: they hold memory."""
        self.own: dict[int, Ordinary] = {}
        self.own_ids: dict[int, Ordinary] = {}
        self.copied: set[int] = set()
        self.copy: dict[int, bytearray] = {}
        self.recreated: list[tuple[int, int]] = []
        """Ranges that policy `recreate` has made shared: those it can make private."""
        self.policy, self.under = "none", "kept"
        self.exit_hypercalls = 0
        self.vcpus: dict[int, VcpuModel] = {0: VcpuModel()}
        self.full: int | None = None
        """GPA of the page for which the store had no frame: the one thing that is not known here."""
        self.full_explicit = False

    # -- what shows a page

    def is_shared(self, gfn: int) -> bool:
        return gfn in self.own or gfn in self.copied

    def shared_pages(self) -> list[int]:
        return [*self.own, *self.copied]

    def is_shaded(self, gfn: int) -> bool:
        return self.policy == "overlay" and self.is_shared(gfn)

    def shows_private(self, gfn: int) -> bool:
        return gfn in self.private and not self.is_shaded(gfn)

    def covers(self, start: int, end: int, private: bool) -> bool:
        """One slot shows all of it."""

        def slot(gfn: int) -> object:
            if private:
                return None if self.is_shaded(gfn) else self.private.get(gfn)
            return "copy" if gfn in self.copied else self.own.get(gfn)

        first = slot(start)
        return first is not None and all(slot(gfn) is first for gfn in range(start, end))

    def is_hole(self, start: int, end: int) -> bool:
        return not any(start <= gfn < end for gfn in [*self.private, *self.shared_pages()])

    def _bytes(self, gfn: int, shared: bool) -> bytes:
        return bytes(self._page(gfn, shared, False) or bytes(PAGE_SIZE))

    def _page(self, gfn: int, shared: bool, make: bool) -> bytearray | None:
        if not shared:
            pages, at = self.secret, gfn
        elif gfn in self.copied:
            pages, at = self.copy, gfn
        else:
            slot = self.own[gfn]
            pages, at = slot.pages, gfn - slot.gfn
        return pages.setdefault(at, bytearray(PAGE_SIZE)) if make else pages.get(at)

    def _destroy(self, gfns: Iterable[int]) -> None:
        for gfn in gfns:
            self.secret.pop(gfn, None)
            self.touched.discard(gfn)

    # -- accesses

    def obstacle(self, gpa: int, length: int, shared: bool, write: bool) -> Exit | None:
        """What stops an access at this byte, by the table of the thread."""
        gfn, private = gpa // PAGE_SIZE, not shared
        if private and self.shows_private(gfn):
            if self.full == gfn * PAGE_SIZE:
                self.full = None
                return memory_error(gfn, private, errno=errno.ENOSPC)
            self.touched.add(gfn)
            return None
        if shared and self.is_shared(gfn):
            if not (write and gfn in self.own and self.own[gfn].flags & READONLY):
                return None
        elif private or gfn in self.private:
            return memory_error(gfn, private)
        return mmio(gpa, min(length, 8, PAGE_SIZE - gpa % PAGE_SIZE), write)

    def read(self, vcpu: VcpuModel, gpa: int, length: int, shared: bool) -> Program:
        buffer, at = bytearray(), gpa
        while at < gpa + length:
            yield from entry(vcpu)
            size = min(gpa + length - at, PAGE_SIZE - at % PAGE_SIZE)
            stop = self.obstacle(at, gpa + length - at, shared, False)
            if stop is None:
                buffer += self._bytes(at // PAGE_SIZE, shared)[at % PAGE_SIZE :][:size]
            elif stop[0] == "MMIO":
                size = stop[1]["len"]
                buffer += (yield stop) or bytes(size)
            else:
                yield stop
                continue
            at += size
        return bytes(buffer)

    def write(self, vcpu: VcpuModel, gpa: int, data: bytes, shared: bool) -> Program:
        at, end = gpa, gpa + len(data)
        while at < end:
            yield from entry(vcpu)
            size = min(end - at, PAGE_SIZE - at % PAGE_SIZE)
            stop = self.obstacle(at, end - at, shared, True)
            if stop is None:
                self._put(at, data[at - gpa :][:size], shared)
            elif stop[0] == "MMIO":
                size = stop[1]["len"]
                yield mmio(at, size, True, data[at - gpa :][:size])
            else:
                yield stop
                continue
            at += size

    def _put(self, gpa: int, data: bytes, shared: bool) -> None:
        page = self._page(gpa // PAGE_SIZE, shared, True)
        assert page is not None
        page[gpa % PAGE_SIZE : gpa % PAGE_SIZE + len(data)] = data

    def touch(self, vcpu: VcpuModel, gpa: int, size: int, shared: bool) -> Program:
        for gfn in range(gpa // PAGE_SIZE, -(-(gpa + size) // PAGE_SIZE)):
            while True:
                yield from entry(vcpu)
                stop = self.obstacle(gfn * PAGE_SIZE, PAGE_SIZE, shared, True)
                if stop is None:
                    self._page(gfn, shared, True)
                    break
                if stop[0] == "MMIO":
                    byte = yield from self.read(vcpu, gfn * PAGE_SIZE, 1, shared)
                    yield mmio(gfn * PAGE_SIZE, 1, True, byte)
                    break
                yield stop

    def sha256(self, vcpu: VcpuModel, gpa: int, length: int, shared: bool) -> Program:
        digest, at = hashlib.sha256(), gpa
        while at < gpa + length:
            yield from entry(vcpu)
            stop = self.obstacle(at, gpa + length - at, shared, False)
            if stop is not None:
                if stop[0] == "MMIO":
                    stop = "INTERNAL_ERROR", {"suberror": 1, "insn": "0f38cc06", "gpa": at}
                yield stop
                continue
            size = min(gpa + length - at, PAGE_SIZE - at % PAGE_SIZE)
            digest.update(self._bytes(at // PAGE_SIZE, shared)[at % PAGE_SIZE :][:size])
            at += size
        return digest.digest()

    def host(self, gpa: int, length: int, data: bytes | None) -> Exit | bytes:
        """KVM's own access: ordinary slots only."""
        gpa, _ = alias(gpa, length, True)
        out, at = b"", gpa
        while at < gpa + length:
            gfn, size = at // PAGE_SIZE, min(gpa + length - at, PAGE_SIZE - at % PAGE_SIZE)
            if not self.is_shared(gfn):
                if gfn in self.private:
                    return memory_error(gfn, True, illegal=True)
                raise Refused(errno.EFAULT, "no slot")
            if data is None:
                out += self._bytes(gfn, True)[at % PAGE_SIZE :][:size]
            elif gfn in self.own and self.own[gfn].flags & READONLY:
                raise Refused(errno.EFAULT, "readonly")
            else:
                self._put(at, data[at - gpa :][:size], True)
            at += size
        return out

    # -- calls

    def tdvmcall(self, vcpu: VcpuModel, r11: int, r12: int, r13: int) -> Program:
        """R10 and R11."""
        yield from entry(vcpu)
        if r11 != h.MAP_GPA:
            return h.SUBFUNC_UNSUPPORTED, r11
        bit, gpa = r12 & h.SHARED_BIT, r12 & ~h.SHARED_BIT
        if not r13 or gpa + r13 > GPA_END:
            return h.INVALID_OPERAND, r12
        if gpa % PAGE_SIZE or r13 % PAGE_SIZE:
            return h.ALIGN_ERROR, r12
        if self.exit_hypercalls >> h.KVM_HC_MAP_GPA_RANGE & 1:
            status, at = yield from self._ask(vcpu, gpa, gpa + r13, not bit)
        else:
            status, at = yield from self._map(vcpu, gpa, gpa + r13, not bit)
        return status, at | bit

    def _map(self, vcpu: VcpuModel, start: int, end: int, private: bool) -> Program:
        """A kick is seen at an entry alone: nothing runs between two chunks of a covered range."""
        for at in range(start, end, h.CHUNK_BYTES):
            if (yield from self._refused_until_covered(vcpu, at, end, private)):
                return h.SUCCESS, end
            # Not explicit: it is mapped, and taken back before the guest accepts it, since it has not been touched.
            stop = min(at + h.CHUNK_BYTES, end)
            while private and self.full_explicit and self.full is not None and at <= self.full < stop:
                gfn, self.full = self.full // PAGE_SIZE, None
                yield memory_error(gfn, private, explicit=True, errno=errno.ENOSPC)
                yield from entry(vcpu)
                if (yield from self._refused_until_covered(vcpu, at, end, private)):
                    return h.SUCCESS, end
        return h.SUCCESS, end

    def _refused_until_covered(self, vcpu: VcpuModel, at: int, end: int, private: bool) -> Program:
        """Whether user space has answered for the range."""
        while not self.covers(at // PAGE_SIZE, end // PAGE_SIZE, private):
            if (yield memory_error(at // PAGE_SIZE, private, end - at, explicit=True)) == 0:
                return True
            yield from entry(vcpu)
        return False

    def _ask(self, vcpu: VcpuModel, start: int, end: int, private: bool) -> Program:
        at = start
        while at < end:
            stop = min(at + h.CHUNK_BYTES, end)
            flags = h.MAP_GPA_RANGE_ENCRYPTED if private else 0
            answer = yield hypercall(h.KVM_HC_MAP_GPA_RANGE, at, (stop - at) // PAGE_SIZE, flags)
            if answer:
                return (h.RETRY if answer == errno.EAGAIN else h.INVALID_OPERAND), at
            at = stop
            if at < end and vcpu.kicked:
                return h.RETRY, at
        return h.SUCCESS, end

    def map(self, vcpu: VcpuModel, gpa: int, size: int, private: bool) -> Program:
        """A guest kernel: three retries without progress, and what becomes private is accepted."""
        gpa &= ~h.SHARED_BIT
        at, end, retries = gpa, gpa + size, 0
        bit = 0 if private else h.SHARED_BIT
        while True:
            status, stopped = yield from self.tdvmcall(vcpu, h.MAP_GPA, at | bit, end - at)
            if status == h.SUCCESS:
                break
            if status != h.RETRY:
                raise Refused(errno.EINVAL, "status")
            stopped &= ~h.SHARED_BIT
            retries = retries + 1 if stopped == at else 0
            at = stopped
            if retries == 3:
                raise Refused(errno.EIO, "retries")
        if not private:
            return
        for gfn in range(gpa // PAGE_SIZE, end // PAGE_SIZE):
            while True:
                if self.shows_private(gfn) and self.full != gfn * PAGE_SIZE:
                    break
                self.full = None if self.shows_private(gfn) else self.full
                no_frame = errno.ENOSPC if self.shows_private(gfn) else 0
                yield memory_error(gfn, True, errno=no_frame)
                yield from entry(vcpu)

    def hypercall(self, vcpu: VcpuModel, nr: int, args: list[int]) -> Program:
        yield from entry(vcpu)
        if nr >= 64 or not self.exit_hypercalls >> nr & 1:
            return -1000 % (1 << 64)
        gpa, count = args[0], args[1]
        if nr == h.KVM_HC_MAP_GPA_RANGE and (gpa % PAGE_SIZE or not count or gpa // PAGE_SIZE + count >= 1 << 64):
            return -errno.EINVAL % (1 << 64)
        return (yield hypercall(nr, *args)) or 0

    @staticmethod
    def hlt(vcpu: VcpuModel) -> Program:
        yield from entry(vcpu)
        yield "HLT", {}

    @staticmethod
    def shutdown(vcpu: VcpuModel) -> Program:
        while True:
            yield from entry(vcpu)
            yield "SHUTDOWN", {}

    # -- KVM_RUN, and user space around it

    def begin(self, command: c.GuestCommand) -> Program:
        """EFAULT: then nothing has begun."""
        vcpu = self.vcpus[command.vcpu]
        match command:
            case c.Read():
                gpa, shared = alias(command.gpa, command.length, command.shared)
                return self.read(vcpu, gpa, command.length, shared)
            case c.Write():
                gpa, shared = alias(command.gpa, len(command.data), command.shared)
                return self.write(vcpu, gpa, command.data, shared)
            case c.Touch():
                gpa, shared = alias(command.gpa, command.size, command.shared)
                return self.touch(vcpu, gpa, command.size, shared)
            case c.Sha256():
                gpa, shared = alias(command.gpa, command.length, False)
                return self.sha256(vcpu, gpa, command.length, shared)
            case c.MapRange():
                return self.map(vcpu, command.gpa, command.size, command.private)
            case c.Tdvmcall():
                return self.tdvmcall(vcpu, command.r11, command.r12, command.r13)
            case c.Hypercall():
                args = [command.a0, command.a1, command.a2, command.a3, command.a4, command.a5]
                return self.hypercall(vcpu, command.nr, args)
            case c.Hlt():
                return self.hlt(vcpu)
            case c.Shutdown():
                return self.shutdown(vcpu)
        raise AssertionError(command)

    def resume(self, command: c.Resume) -> bytes | int | None:
        """The answer. EINVAL for one that the exit does not ask for, or when nothing is under way."""
        vcpu = self.vcpus[command.vcpu]
        reason, fields = vcpu.at if isinstance(vcpu.at, tuple) else (None, {})
        data = command.data
        if data is not None and (reason != "MMIO" or fields["is_write"] or len(data) != fields["len"]):
            raise Refused(errno.EINVAL, "data")
        if command.ret is not None and reason != "HYPERCALL":
            explicit = reason == "MEMORY_ERROR" and fields["explicit"] and "errno" not in fields
            if not explicit or command.ret:
                raise Refused(errno.EINVAL, "ret")
        if vcpu.program is None:
            raise Refused(errno.EINVAL, "nothing is under way")
        return command.ret if data is None else data

    def run(self, vcpu: VcpuModel, answer: object = None) -> Exit | Any:
        """KVM_RUN until the result, or an exit that the policy leaves."""
        last: Exit | None = None
        while True:
            program = vcpu.program
            assert program is not None
            try:
                came_to = next(program) if vcpu.at is None else program.send(answer)
            except (StopIteration, Refused) as end:
                vcpu.program = vcpu.at = None
                if isinstance(end, Refused):
                    raise
                return end.value
            answer, vcpu.at = None, came_to
            if isinstance(came_to, str):
                vcpu.kicked = False
                raise Refused(errno.EINTR, "kicked")
            if self.policy == "none" or came_to == last:
                return Stopped(*came_to)
            wanted = wanted_by(*came_to)
            if wanted is None:
                return Stopped(*came_to)
            if wanted.explicit and not wanted.private and self.is_hole(wanted.start, wanted.end):
                answer = 0
            elif not self._convert(wanted):
                return Stopped(*came_to)
            elif wanted.explicit and not self.covers(wanted.start, wanted.end, wanted.private):
                answer = 0
            last = came_to if came_to[0] == "MEMORY_ERROR" else None

    # -- conversions

    def _convert(self, wanted: "Wanted") -> bool:
        """All of it, or nothing."""
        start, end = wanted.start, wanted.end
        shown = sum(start <= gfn < end for gfn in {*self.private, *self.shared_pages()})
        if shown < end - start:
            return False
        can = {"punch": self._punch_can, "overlay": self._overlay_can, "recreate": self._recreate_can}[self.policy]
        if wanted.private and not all(can(gfn) for gfn in range(start, end)):
            return False
        to: dict[str, tuple[Callable[[int, int], None], Callable[[int, int], None]]] = {
            "punch": (self._punch_to_shared, self._punch_to_private),
            "overlay": (self._overlay_to_shared, self._overlay_to_private),
            "recreate": (self._recreate_to_shared, self._recreate_to_private),
        }
        to[self.policy][wanted.private](start, end)
        return True

    def _punch_can(self, gfn: int) -> bool:
        return gfn in self.private or any(slot.gfn <= gfn < slot.gfn + slot.count for slot in self._all_private())

    def _overlay_can(self, gfn: int) -> bool:
        return gfn in self.private and gfn not in self.own

    def _recreate_can(self, gfn: int) -> bool:
        return gfn in self.private or (gfn in self.copied and any(low <= gfn < high for low, high in self.recreated))

    def _share(self, start: int, end: int) -> list[int]:
        """Private pages of the range; those that no ordinary slot shows get one."""
        gfns = [gfn for gfn in range(start, end) if gfn in self.private]
        self.copied.update(gfn for gfn in gfns if not self.is_shared(gfn))
        return gfns

    def _unshare(self, gfns: Iterable[int]) -> None:
        for gfn in gfns:
            self.copied.discard(gfn)
            self.copy.pop(gfn, None)

    def _hide(self, gfns: Iterable[int]) -> None:
        gfns = list(gfns)
        for gfn in gfns:
            self.private.pop(gfn)
        self._destroy(gfns)

    def _punch_to_shared(self, start: int, end: int) -> None:
        self._hide(self._share(start, end))

    def _punch_to_private(self, start: int, end: int) -> None:
        filled: dict[int, Private] = {}
        for slot in self._all_private():
            for gfn in range(max(start, slot.gfn), min(end, slot.gfn + slot.count)):
                if gfn not in self.private:
                    if gfn in filled:
                        raise Refused(errno.EEXIST, "two slots have a hole here")
                    filled[gfn] = slot
        self.private |= filled
        self._unshare(gfn for gfn in filled if gfn in self.copied)

    def _overlay_to_shared(self, start: int, end: int) -> None:
        gfns = [gfn for gfn in range(start, end) if gfn in self.private and not self.is_shared(gfn)]
        self.copied.update(gfns)
        if self.under == "freed":
            self._destroy(gfns)

    def _overlay_to_private(self, start: int, end: int) -> None:
        self._unshare([gfn for gfn in range(start, end) if gfn in self.copied])

    def _recreate_to_shared(self, start: int, end: int) -> None:
        gfns = self._share(start, end)
        for slot in {self.private[gfn] for gfn in gfns}:
            rest = [gfn for gfn in sorted(self.private) if self.private[gfn] is slot]
            self._destroy(rest)
            converted = [gfn for gfn in rest if start <= gfn < end]
            runs = runs_of(gfn for gfn in rest if not start <= gfn < end)
            for gfn in rest:
                del self.private[gfn]
            self._forget(slot)
            for number, (low, high) in enumerate(runs):
                self._make_private(slot.id if number == 0 else None, low, high)
            # A piece of its own for each segment of each slot that was converted.
            for low, high in runs_of(converted):
                self.recreated = cut(self.recreated, low, high)
                self.recreated.append((low, high))

    def _recreate_to_private(self, start: int, end: int) -> None:
        made = []
        for first, last in sorted(self.recreated):
            pages = range(max(first, start), min(last, end))
            made += runs_of(gfn for gfn in pages if gfn in self.copied and gfn not in self.private)
        for low, high in made:
            self._make_private(None, low, high)
            self._unshare(range(low, high))
        self.recreated = cut(self.recreated, start, end)

    # -- slots

    def _all_private(self) -> list[Private]:
        return [*self.private_ids.values(), *self.pieces]

    def _make_private(self, id_: int | None, start: int, end: int) -> None:
        slot = Private(id_, start, end - start)
        if id_ is None:
            self.pieces.add(slot)
        else:
            self.private_ids[id_] = slot
        self.private |= dict.fromkeys(range(start, end), slot)

    def _forget(self, slot: Private) -> None:
        self.pieces.discard(slot)
        if slot.id is not None:
            self.private_ids.pop(slot.id, None)

    def set_slot(self, command: c.SlotSet, file: str | None) -> None:
        id_, gpa, size, offset, flags = command.id, command.gpa, command.size, command.offset, command.flags
        gfn, count, pgoff = gpa // PAGE_SIZE, size // PAGE_SIZE, offset // PAGE_SIZE
        for_guest = command.private if size else bool(flags & 4)
        bad = flags & ~(4 if for_guest else 3) or (gpa | size) % PAGE_SIZE or id_ >= self._max_slots
        wraps = gpa + size >= 1 << 64 or (for_guest and offset + size >= 1 << 64)
        if bad or wraps or count > MAX_SLOT_PAGES or (for_guest and offset % PAGE_SIZE):
            raise Refused(errno.EINVAL, "malformed")
        if not size:
            self.delete_slot(id_, command.private)
        elif command.private:
            self._set_private(id_, gfn, count, pgoff, file)
        else:
            self._set_ordinary(id_, gfn, count, flags)

    def _set_private(self, id_: int, gfn: int, count: int, pgoff: int, file: str | None) -> None:
        if id_ in self.private_ids:
            raise Refused(errno.EINVAL, "immutable")
        span = range(gfn, gfn + count)
        if any(at in span for at in self.private):
            raise Refused(errno.EEXIST, "overlap")
        if span.stop > PAGES:
            raise Refused(errno.EINVAL, "past the end")
        assert file is not None
        home = self.homes.get(file) or self._others[file]
        if pgoff + count > home.count:
            raise Refused(errno.EINVAL, "past the end of the file")
        if file in self._others:
            raise Refused(errno.EPERM, "another VM's")
        if any(pgoff <= at - home.gfn < pgoff + count for at in self.private):
            raise Refused(errno.EEXIST, "bound")
        if gfn != home.gfn + pgoff:
            raise Refused(errno.EINVAL, "another GFN")
        self._make_private(id_, gfn, gfn + count)

    def _set_ordinary(self, id_: int, gfn: int, count: int, flags: int) -> None:
        slot = self.own_ids.get(id_)
        if slot is not None and (count != slot.count or (flags ^ slot.flags) & READONLY):
            raise Refused(errno.EINVAL, "size or READONLY")
        span = range(gfn, gfn + count)
        if slot is None or gfn != slot.gfn:
            if any(at in span and self.own.get(at) is not slot for at in self.own) or any(
                at in span for at in self.copied
            ):
                raise Refused(errno.EEXIST, "overlap")
            if span.stop > PAGES:
                raise Refused(errno.EINVAL, "past the end")
        if slot is None:
            slot = self.own_ids[id_] = Ordinary(gfn, count, flags)
        for at in range(slot.gfn, slot.gfn + slot.count):
            self.own.pop(at, None)
        slot.gfn, slot.flags = gfn, flags
        self.own |= dict.fromkeys(span, slot)

    def delete_slot(self, id_: int, private: bool) -> None:
        found = self.private_ids.get(id_) if private else self.own_ids.get(id_)
        if found is None:
            raise Refused(errno.EINVAL, "there is none")
        if isinstance(found, Private):
            self.delete_private(found)
        else:
            del self.own_ids[id_]
            for gfn in range(found.gfn, found.gfn + found.count):
                del self.own[gfn]

    def delete_private(self, slot: Private) -> None:
        self._hide(gfn for gfn, at in list(self.private.items()) if at is slot)
        self._forget(slot)

    def punch_slot(self, id_: int, gpa: int, size: int) -> None:
        slot = self.private_ids.get(id_)
        gfns = range(gpa // PAGE_SIZE, (gpa + size) // PAGE_SIZE)
        if (
            (gpa | size) % PAGE_SIZE
            or slot is None
            or not gfns
            or any(self.private.get(gfn) is not slot for gfn in gfns)
        ):
            raise Refused(errno.EINVAL, "not all visible")
        self._hide(gfns)

    # -- the store's side

    def file_punched(self, file: str, pgoff: int, count: int) -> None:
        home = self.homes[file]
        self._destroy(range(home.gfn + pgoff, home.gfn + min(pgoff + count, home.count)))


@dataclass(frozen=True)
class Wanted:
    """What a guest asks user space for."""

    start: int
    end: int
    private: bool
    explicit: bool


def wanted_by(reason: str, fields: dict[str, Any]) -> Wanted | None:
    if reason == "MEMORY_ERROR" and not fields["illegal"] and "errno" not in fields:
        start, end = fields["gpa"] // PAGE_SIZE, (fields["gpa"] + fields["size"]) // PAGE_SIZE
        return Wanted(start, end, fields["private"], fields["explicit"])
    if reason == "HYPERCALL" and fields["nr"] == h.KVM_HC_MAP_GPA_RANGE:
        start = fields["a0"] // PAGE_SIZE
        private = bool(fields["a2"] & h.MAP_GPA_RANGE_ENCRYPTED)
        return Wanted(start, start + fields["a1"], private, True)
    return None


@dataclass(frozen=True)
class Stopped:
    """An exit that user space sees."""

    reason: str
    fields: dict[str, Any]


def entry(vcpu: VcpuModel) -> Program:
    while vcpu.kicked:
        yield EINTR


def alias(gpa: int, length: int, shared: bool) -> tuple[int, bool]:
    shared = shared or bool(gpa & h.SHARED_BIT)
    gpa &= ~h.SHARED_BIT
    if gpa + length > GPA_END:
        raise Refused(errno.EFAULT, "no such address")
    return gpa, shared


def memory_error(
    gfn: int, private: bool, size: int = PAGE_SIZE, *, explicit: bool = False, illegal: bool = False, errno: int = 0
) -> Exit:
    fields = {"gpa": gfn * PAGE_SIZE, "size": size, "private": private, "explicit": explicit, "illegal": illegal}
    return "MEMORY_ERROR", fields | ({"errno": errno} if errno else {})


def mmio(gpa: int, length: int, write: bool, data: bytes = b"") -> Exit:
    fields = {"phys_addr": gpa, "len": length, "is_write": write}
    return "MMIO", fields | ({"data": data.hex()} if write else {})


def hypercall(nr: int, *args: int) -> Exit:
    return "HYPERCALL", {"nr": nr} | {f"a{at}": args[at] if at < len(args) else 0 for at in range(6)}


def runs_of(gfns: Iterable[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for gfn in sorted(gfns):
        if runs and runs[-1][1] == gfn:
            runs[-1] = runs[-1][0], gfn + 1
        else:
            runs.append((gfn, gfn + 1))
    return runs


def cut(ranges: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    parts = [part for low, high in ranges for part in ((low, min(high, start)), (max(low, end), high))]
    return [(low, high) for low, high in parts if low < high]
