"""One VM at work: KVM's ioctls, the fault path, and the store's callbacks.

A fault, out and back: fault -> ticket (slot, page, seq) -> get_pfn -> install: stale? retry : mapped -> TLB.
A callback: begin -> zap and flush under Mmu.lock -> kick every vCPU -> acknowledge; end -> sequence moves.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from memfsd.uapi import messages as m
from memfsd.uapi import sync
from memfsd.uapi.errors import PeerLost, Refused, errno_name
from memfsd.uapi.limits import ACK_DEADLINE_S, ANSWER_DEADLINE_S, MAX_AHEAD_PAGES, MAX_RUNS_PER_REPORT
from memfsd.uapi.units import ORDER_2M, ORDER_4K, PAGE_SHIFT, PAGE_SIZE

from .core.ept import MAX_GFN_EPT, entry_pfn, entry_writable
from .core.exits import Exit, MemoryErrorExit
from .core.memslots import AddressSpaceId, Memslot, RegionChange, SlotFlag, check_addressable, check_region
from .core.mmu import Ticket
from .core.tlb import tlb_key
from .core.vcpu import Vcpu
from .core.vm import Vm
from .link import Callbacks, FileId, StoreLink, pair
from .memory import Memory

Translation = tuple[Memory, int, bool]
"""What a TLB entry holds: the memory, the byte offset of the page in it, writable."""
GuestVcpu = Vcpu[Translation]

Runs = list[tuple[int, int, int]]
"""Mapped pages: (gfn, host frame, pages)."""
_MAX_RETRIES = 1 << 16
_EVERY_PAGE = 0, (1 << 51) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Backing:
    """What a slot shows: frame numbers from base; link for private slots.

    owned: closed with the slot. sticky: made from an encrypted mapping, and so there until the VM ends.
    whole: the frame numbers are those of all of the memory, which other slots may show too.
    """

    memory: Memory
    base: int
    link: StoreLink | None = None
    owned: bool = False
    path: str = ""
    sticky: bool = False
    whole: bool = False

    @property
    def leaf_order(self) -> int:
        return self.memory.leaf_order if self.link is None else self.link.order


class Machine:
    """`slots_lock` serialises changes of slots and links; down-calls are made with it, never with Mmu.lock."""

    def __init__(self, vm: Vm[Memory, Translation], pair: Callable[[int, str, Callbacks], StoreLink] = pair) -> None:
        """pair makes the pairing with the file behind an fd."""
        self.vm = vm
        self._pair = pair
        self.slots_lock = sync.lock("Machine.slots_lock")
        self.links: dict[FileId, StoreLink] = {}
        self._open: dict[StoreLink, tuple[int, int]] = {}
        """GFN range of each link's open invalidation. Guarded by Mmu.lock."""
        self._retiring = False
        """Private GFNs have no slot any more and may still be mapped, or hold their contents. Guarded by Mmu.lock."""
        self._changing: dict[StoreLink, tuple[int, int]] = {}
        """File pages [start, end) of the slot that is being made or deleted: the store may not know yet what is shown,
        or what is not. Guarded by Mmu.lock."""

    # -- KVM_SET_USER_MEMORY_REGION

    def set_private_slot(
        self, id_: int, gpa: int, size: int, flags: int, path: str, offset: int, *, mapped_fd: int | None = None
    ) -> None:
        """Create a private slot (or with size 0 delete it): this is where pairing happens.

        KVM's checks in KVM's order, then the file's: ENOENT and other errors of open(2), EINVAL not sealed or
        past the end, EPERM another VM's, EEXIST bound already, EINVAL bound at another GFN before.
        The end of GPAs, KVM's last check, comes before pairing and binding: they can not be undone.
        mapped_fd: of the file behind an encrypted mapping, which the slot shows instead of the file at path.
        """
        with self.slots_lock:
            slots = self.vm.slots[True]
            existing = slots.get(id_)
            change = check_region(
                id_, AddressSpaceId.PRIVATE, flags, gpa, size, offset, self.vm.max_slots, existing, True
            )
            if change is RegionChange.DELETE:
                assert existing is not None
                _check_loose(existing)
                self._delete(id_, private=True)
                return
            gfn, page_count, pgoff = gpa >> PAGE_SHIFT, size >> PAGE_SHIFT, offset >> PAGE_SHIFT
            slots.check_free(gfn, gfn + page_count)
            fd = _open(path) if mapped_fd is None else os.dup(mapped_fd)
            try:
                check_addressable(gfn, page_count)
            except Refused:
                os.close(fd)
                raise
            backing = replace(self._link(fd, path, offset + size), sticky=mapped_fd is not None)
            assert backing.link is not None
            all_flags = SlotFlag(flags) | SlotFlag.GUEST_MEMFD
            slot = Memslot(
                id_,
                AddressSpaceId.PRIVATE,
                gfn,
                page_count,
                all_flags,
                backing,
                pgoff,
                backing.link,
                max_order=backing.leaf_order,
            )
            with self._change(slot):
                try:
                    backing.link.bind(id_, gfn, pgoff, page_count)
                except PeerLost as lost:
                    raise Refused(errno.EHOSTDOWN, str(lost)) from None
                with self.vm.mmu.lock:
                    slots.add(slot)

    def set_shared_slot(
        self,
        id_: int,
        gpa: int,
        size: int,
        flags: int,
        memory: Memory | None,
        offset: int,
        *,
        owned: bool,
        path: str = "",
    ) -> None:
        """Create, move, re-flag or (size 0) delete a shared slot over host memory. Takes an owned memory.

        KVM's checks in KVM's order. A slot that exists keeps its memory: name it again (or None), or EINVAL.
        """
        try:
            with self.slots_lock:
                self._set_shared(id_, gpa, size, flags, memory, offset, owned, path)
        except Refused:
            if owned and memory is not None:
                memory.close()
            raise

    def check_shared_slot(self, id_: int, gpa: int, size: int, flags: int, offset: int) -> None:
        """The refusals of `set_shared_slot` that need no memory: KVM makes them before it looks at any."""
        with self.slots_lock:
            slots = self.vm.slots[False]
            check_region(id_, AddressSpaceId.SHARED, flags, gpa, size, offset, self.vm.max_slots, slots.get(id_), False)
            if size and slots.get(id_) is None:
                slots.check_free(gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT)
                check_addressable(gpa >> PAGE_SHIFT, size >> PAGE_SHIFT)

    def _set_shared(
        self, id_: int, gpa: int, size: int, flags: int, memory: Memory | None, offset: int, owned: bool, path: str
    ) -> None:
        slots, mmu = self.vm.slots[False], self.vm.mmu
        existing = slots.get(id_)
        change = check_region(id_, AddressSpaceId.SHARED, flags, gpa, size, offset, self.vm.max_slots, existing, False)
        gfn, page_count, pgoff = gpa >> PAGE_SHIFT, size >> PAGE_SHIFT, offset >> PAGE_SHIFT
        if existing is not None and change is not RegionChange.DELETE:
            backing = backing_of(existing)
            if (memory is not None and memory is not backing.memory) or (path and path != backing.path):
                raise Refused(errno.EINVAL, f"{existing} shows other memory: delete the slot, then create it anew")
        if change is RegionChange.DELETE:
            self._delete(id_, private=False)
        elif change is RegionChange.CREATE:
            assert memory is not None
            slots.check_free(gfn, gfn + page_count)
            check_addressable(gfn, page_count)
            with mmu.lock:
                whole, end = memory.frame_count, pgoff + page_count
                if whole is not None and end <= whole:
                    base, is_whole = self.vm.physmap.share(memory, whole), True
                else:
                    base, is_whole = self.vm.physmap.add(memory, pgoff, end), False
                backing = Backing(memory, base, owned=owned, path=path, whole=is_whole)
                slots.add(
                    Memslot(
                        id_,
                        AddressSpaceId.SHARED,
                        gfn,
                        page_count,
                        SlotFlag(flags),
                        backing,
                        pgoff,
                        max_order=memory.leaf_order,
                    )
                )
            self._shade(gfn, gfn + page_count)
        elif change is not RegionChange.NONE:
            assert existing is not None
            with mmu.lock:
                slots.delete(id_)
                moved = Memslot(
                    id_,
                    AddressSpaceId.SHARED,
                    gfn,
                    page_count,
                    SlotFlag(flags),
                    existing.backing,
                    existing.pgoff,
                    max_order=backing_of(existing).leaf_order,
                )
                if moved.dirty is not None:
                    moved.dirty = existing.dirty or moved.dirty
                try:
                    slots.check_free(gfn, gfn + page_count)
                    check_addressable(gfn, page_count)
                    slots.add(moved)
                except Refused:
                    slots.add(existing)
                    raise
            self._zap_segments(existing.segments, private=False)
            self._shade(gfn, gfn + page_count)

    def _shade(self, start: int, end: int) -> None:
        """An ordinary slot lies over [start, end) now: under it, private pages are blocked where it is an overlay."""
        if self.vm.overlay:
            self._block([(start, end)])

    def _block(self, segments: list[tuple[int, int]]) -> Runs:
        """Private GFNs are unmapped and keep their contents: what is blocked there now."""
        runs: Runs = []
        if segments:
            with self._bracket(segments):
                runs += [run for start, end in segments for run in self.vm.mmu.block(start, end)]
        return runs

    def delete_slot(self, id_: int, *, private: bool) -> None:
        """EINVAL when there is none. A private slot's contents are destroyed, as TDX and SNP unmap."""
        with self.slots_lock:
            slot = self.vm.slots[private].get(id_)
            if slot is None:
                kind = "private" if private else "shared"
                raise Refused(errno.EINVAL, f"there is no {kind} slot {id_}: see 'info slots'")
            _check_loose(slot)
            self._delete(id_, private=private)

    def get_dirty_log(self, id_: int) -> list[tuple[int, int]]:
        """KVM_GET_DIRTY_LOG: GFN ranges of a shared slot that were written since the last time, and are logged anew.

        ENOENT where no slot logs. Writes that are reported have landed: every vCPU has left the guest since.
        """
        with self.slots_lock:
            slot = self.vm.slots[False].get(id_)
            if slot is None or slot.dirty is None:
                raise Refused(errno.ENOENT, f"no shared slot {id_} logs dirty pages: set it with flags=log_dirty")
            with self._bracket(slot.segments):
                dirty = [(slot.gfn + start, slot.gfn + end) for start, end in slot.dirty.take()]
                for start, end in dirty:
                    self.vm.mmu.protect(start, end)
            return dirty

    def mark_dirty(self, start: int, end: int) -> None:
        """GFNs [start, end) were written: into the logs of the slots that have one. With Mmu.lock held."""
        for slot, low, high in self.vm.slots[False].visible(start, end):
            if slot.dirty is not None:
                slot.dirty.mark(low - slot.gfn, high - slot.gfn)

    def log_write(self, start: int, end: int) -> None:
        """After a write out of guest mode, which a log that was taken meanwhile has not seen."""
        with self.vm.mmu.lock:
            self.mark_dirty(start, end)

    def punch_slot(self, id_: int, gpa: int, size: int) -> list[tuple[int, int]]:
        """The proposed ioctl: a hole in a private slot. Data around it survives; ranges (gfn, end) removed."""
        if (gpa | size) % PAGE_SIZE:
            raise Refused(errno.EINVAL, f"gpa {gpa:#x} and size {size:#x} must be multiples of 4096")
        start, end = gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT
        with self.slots_lock:
            slot = self.vm.slots[True].get(id_)
            if slot is None:
                raise Refused(errno.EINVAL, f"there is no private slot {id_}: see 'info slots'")
            _check_loose(slot)
            with self._change(slot):
                with self._retirement():
                    with self.vm.mmu.lock:
                        removed = self.vm.slots[True].punch(id_, start, end)
                    self._retire(slot, removed)
                self._forget(slot, removed)
            return removed

    def fill_slot(self, id_: int, start: int, end: int) -> None:
        """The inverse of a punch: GFNs [start, end) of a hole belong to the slot again. What `punch_slot` took is
        empty; what `hide` took has its contents."""
        with self.slots_lock:
            slots = self.vm.slots[True]
            slot = slots.get(id_)
            assert slot is not None
            with self._change(slot), self._faults_wait(start, end):
                with self.vm.mmu.lock:
                    slots.fill(id_, start, end)
                try:
                    self._bind(slot, [(start, end)])
                except Refused:
                    with self.vm.mmu.lock:
                        slots.punch(id_, start, end)
                    raise

    # -- steps of a conversion that can be taken back: contents stay in the window until `destroy`

    def hide(self, id_: int, start: int, end: int) -> Runs:
        """A punch that only blocks: GFNs [start, end) leave the slot. What was mapped there; undone by `fill_slot`."""
        with self.slots_lock:
            slots = self.vm.slots[True]
            slot = slots.get(id_)
            assert slot is not None
            _check_loose(slot)
            with self._change(slot):
                with self._retirement():
                    with self.vm.mmu.lock:
                        slots.punch(id_, start, end)
                    runs = self._block([(start, end)])
                try:
                    self._unbind(slot, [(start, end)])
                except Refused:
                    with self.vm.mmu.lock:
                        slots.fill(id_, start, end)
                    raise
            return runs

    def detach(self, id_: int) -> Runs:
        """Take a private slot out, and only block it. What was mapped; undone by `attach`."""
        with self.slots_lock:
            slot = self.vm.slots[True].get(id_)
            assert slot is not None
            _check_loose(slot)
            with self._change(slot):
                with self._retirement():
                    with self.vm.mmu.lock:
                        self.vm.slots[True].delete(id_)
                    runs = self._block(slot.segments)
                try:
                    self._unbind(slot, slot.segments)
                except Refused:
                    if not link_of(slot).lost:  # else its bindings are gone with the store
                        with self.vm.mmu.lock:
                            self.vm.slots[True].add(slot)
                        raise
            return runs

    def attach(self, slot: Memslot) -> None:
        """Put a slot back that `detach` took out."""
        with self.slots_lock, self._change(slot), self._faults_wait(slot.gfn, slot.end):
            with self.vm.mmu.lock:
                self.vm.slots[True].add(slot)
            self._bind(slot, slot.segments)

    def create_private(self, id_: int, start: int, end: int, like: Memslot) -> None:
        """A private slot over GFNs [start, end), of the file and at the place that `like` has them."""
        with self.slots_lock:
            slot = replace(
                like,
                id=id_,
                gfn=start,
                page_count=end - start,
                pgoff=like.pgoff_of(start),
                segments=[],
                max_order=backing_of(like).leaf_order,
            )
            with self._change(slot), self._faults_wait(start, end):
                with self.vm.mmu.lock:
                    self.vm.slots[True].add(slot)
                try:
                    self._bind(slot, slot.segments)
                except Refused:
                    with self.vm.mmu.lock:
                        self.vm.slots[True].delete(id_)
                    raise

    def destroy(self, slot: Memslot, runs: Runs) -> None:
        """Contents of frames that are not mapped any more: what a TDX or SNP unmap does. They read as zeros."""
        backing, link = backing_of(slot), link_of(slot)
        for _, pfn, count in runs:
            link.memory.scrub(pfn - backing.base, count)
        self.forget(runs)

    def forget(self, runs: Runs) -> None:
        """Pages that were blocked have no contents any more."""
        with self.vm.mmu.lock:
            for gfn, _, count in runs:
                self.vm.mmu.blocked.take(gfn, gfn + count)

    def mapped_private(self, start: int, end: int) -> Runs:
        """Private leaves of GFNs [start, end)."""
        with self.vm.mmu.lock:
            return list(self.vm.mmu.epts[True].runs(start, end))

    def held_private(self, start: int, end: int) -> int:
        """Private pages of GFNs [start, end) that hold memory, mapped or under an overlay."""
        with self.vm.mmu.lock:
            return self.vm.mmu.held_private(start, end)

    def set_overlay(self, on: bool) -> None:
        """From now on lookups see ordinary slots first, and a private page under one is not mapped; or no more."""
        with self.slots_lock:
            with self.vm.mmu.lock:
                self.vm.overlay = on
                under = [(start, end) for slot in self.vm.slots[False] for start, end in slot.segments]
            if on:
                self._block(under)

    def _bind(self, slot: Memslot, segments: list[tuple[int, int]]) -> None:
        """All of them, or Refused."""
        link, done = link_of(slot), list[tuple[int, int]]()
        try:
            for start, end in segments:
                link.bind(slot.id, start, slot.pgoff_of(start), end - start)
                done.append((start, end))
        except (PeerLost, Refused) as error:
            with contextlib.suppress(Refused):
                self._unbind(slot, done)
            if isinstance(error, Refused):
                raise
            raise Refused(errno.EHOSTDOWN, str(error)) from None

    def _unbind(self, slot: Memslot, segments: list[tuple[int, int]]) -> None:
        """All of them, or Refused."""
        link, done = link_of(slot), list[tuple[int, int]]()
        try:
            for start, end in segments:
                link.unbind(slot.pgoff_of(start), end - start)
                done.append((start, end))
        except (PeerLost, Refused) as error:
            with contextlib.suppress(Refused):
                self._bind(slot, done)
            if isinstance(error, Refused):
                raise
            raise Refused(errno.EHOSTDOWN, str(error)) from None

    @contextlib.contextmanager
    def _change(self, slot: Memslot) -> Iterator[None]:
        """A private slot changes, here and in the store; until both know, a report says so. One at a time."""
        link = link_of(slot)
        with self.vm.mmu.lock:
            self._changing[link] = slot.pgoff, slot.pgoff + slot.page_count
        try:
            yield
        finally:
            with self.vm.mmu.lock:
                del self._changing[link]

    def _delete(self, id_: int, *, private: bool) -> None:
        if private:
            doomed = self.vm.slots[True].get(id_)
            assert doomed is not None
            with self._change(doomed):
                with self._retirement():
                    with self.vm.mmu.lock:
                        self.vm.slots[True].delete(id_)
                    self._retire(doomed, doomed.segments)
                self._forget(doomed, doomed.segments)
            return
        with self.vm.mmu.lock:
            slot = self.vm.slots[False].delete(id_)
        self._zap_segments(slot.segments, private=False)
        backing = backing_of(slot)
        with self.vm.mmu.lock:
            if backing.whole:
                self.vm.physmap.unshare(backing.memory)
            else:
                self.vm.physmap.remove(backing.base + slot.pgoff)
        if backing.owned:
            backing.memory.close()

    def _retire(self, slot: Memslot, segments: list[tuple[int, int]]) -> None:
        """Private GFNs that no slot shows any more: zap, flush, destroy contents."""
        self.destroy(slot, self._zap_segments(segments, private=True))

    def _forget(self, slot: Memslot, segments: list[tuple[int, int]]) -> None:
        """Tell the store, if it is there, that these GFNs are not bound any more."""
        for start, end in segments:
            try:
                link_of(slot).unbind(slot.pgoff_of(start), end - start)
            except PeerLost:
                return

    @contextlib.contextmanager
    def _retirement(self) -> Iterator[None]:
        """Private GFNs lose their slot, are zapped, and perhaps destroyed: the store's BEGIN waits until it is done.

        Else it would find no slot, and be acknowledged while they are mapped; and contents would be destroyed in a
        frame that is another page's by then. No down-call in it: the store may be waiting for us.
        """
        mmu = self.vm.mmu
        with mmu.lock:
            self._retiring = True
        try:
            yield
        finally:
            with mmu.lock:
                self._retiring = False
                mmu.ended.notify_all()

    @contextlib.contextmanager
    def _faults_wait(self, start: int, end: int) -> Iterator[None]:
        """GFNs get a slot here and a binding in the store: a fault that sees one of both waits for the other."""
        mmu = self.vm.mmu
        with mmu.lock:
            mmu.invalidate_begin(start, end)
        try:
            yield
        finally:
            with mmu.lock:
                mmu.invalidate_end()

    def _zap_segments(self, segments: list[tuple[int, int]], *, private: bool) -> Runs:
        runs: Runs = []
        if segments:
            zap = self.vm.mmu.zap
            with self._bracket(segments):
                runs += [run for start, end in segments for run in zap(start, end, private=private)]
        return runs

    @contextlib.contextmanager
    def _bracket(self, segments: list[tuple[int, int]]) -> Iterator[None]:
        """An invalidation of our own, so that no fault under way maps it again. The body has Mmu.lock; then every vCPU
        leaves the guest, and the bracket closes."""
        mmu = self.vm.mmu
        with mmu.lock:
            mmu.invalidate_begin(min(start for start, _ in segments), max(end for _, end in segments))
            yield
        self._kick_all()
        with mmu.lock:
            mmu.invalidate_end()

    def _kick_all(self) -> None:
        for vcpu in list(self.vm.vcpus.values()):
            vcpu.kick()

    def _link(self, fd: int, path: str, end: int) -> Backing:
        """The pairing with this file, made when the VM has none yet; not for a range that ends past the file's end,
        since pairing is for life. Takes the fd."""
        status = os.fstat(fd)
        link = self.links.get(FileId(status.st_dev, status.st_ino))
        if link is not None:
            os.close(fd)
            if link.lost:
                raise Refused(errno.EHOSTDOWN, f"{path}: {link.lost}")
            return Backing(link.memory, link.base, link, path=path)
        if end > status.st_size:
            os.close(fd)
            raise Refused(errno.EINVAL, f"{path}: {end} bytes are past the end of the file ({status.st_size} bytes)")
        try:
            link = self._pair(fd, self.vm.name, self)
        except (OSError, PeerLost, Refused) as error:
            os.close(fd)
            if isinstance(error, Refused):
                raise Refused(error.errno, f"{path}: {error.reason}") from None
            raise Refused(getattr(error, "errno", None) or errno.EHOSTDOWN, f"{path}: {error}") from None
        with self.vm.mmu.lock:
            link.base = self.vm.physmap.add(link.memory, 0, link.frame_count)
        self.links[link.file] = link
        link.start()
        return Backing(link.memory, link.base, link, path=path)

    # -- faults

    def fault(
        self, vcpu: GuestVcpu, gfn: int, *, shared: bool, write: bool, want: int = 1, offset: int = 0, length: int = 1
    ) -> Exit | None:
        """Handle an EPT violation: None when the page is mapped, else the exit. The vCPU is out of the guest.

        want: shared pages worth mapping at once; private runs are the store's to choose.
        """
        vm, mmu = self.vm, self.vm.mmu
        lock = mmu.lock  # acquired by hand: `with` takes twice as long, and here that is felt
        ticket: Ticket | Exit
        for _ in range(_MAX_RETRIES):
            lock.acquire()
            try:
                ticket = vm.fault(gfn, private=not shared, write=write, offset=offset, length=length)
            finally:
                lock.release()
            if not isinstance(ticket, Ticket):
                return ticket
            backing = ticket.slot.backing
            assert isinstance(backing, Backing)
            order = ticket.order
            if backing.link is None:
                ahead = gfn & (1 << order) - 1
                pfn = backing.base + ticket.pgoff - ahead
                count = min(max(want + ahead, 1 << order), ticket.limit + ahead)
            else:
                try:
                    if order:
                        granted, order = _get_large(ticket, backing.link)
                    else:
                        most = ticket.limit if ticket.limit < MAX_AHEAD_PAGES else MAX_AHEAD_PAGES
                        granted = backing.link.get_pfn(ticket.pgoff, most)
                except Refused as refused:
                    with lock:
                        stale = mmu.is_stale(ticket, 1)  # a slot may have gone or come meanwhile
                    if (stale or refused.errno == errno.EAGAIN) and self._wait_end(ticket):
                        continue
                    return _failed(ticket, refused.errno, refused.reason)
                except PeerLost as lost:
                    return _failed(ticket, errno.EIO, str(lost))
                pfn, count = backing.base + granted.pfn, granted.page_count
            lock.acquire()
            try:
                if mmu.install_large(ticket, pfn, count, order) if order else mmu.install(ticket, pfn, count):
                    if order:
                        pfn += gfn & (1 << order) - 1
                    at = pfn - backing.base << PAGE_SHIFT
                    vcpu.tlb.insert(gfn if shared else ~gfn, (backing.memory, at, ticket.writable))
                    return None
            except Refused as refused:
                return _failed(ticket, refused.errno, refused.reason)
            finally:
                lock.release()
            if not self._wait_end(ticket):
                return _failed(ticket, errno.ETIMEDOUT, "an invalidation does not end")
        assert isinstance(ticket, Ticket)
        return _failed(ticket, errno.EAGAIN, f"{_MAX_RETRIES} retries without progress")

    def _wait_end(self, ticket: Ticket) -> bool:
        """Wait until no open invalidation covers the ticket; False at the deadline."""
        mmu = self.vm.mmu
        with mmu.lock:
            return mmu.ended.wait_for(
                lambda: not (mmu.in_progress and mmu.range_start <= ticket.gfn < mmu.range_end), ANSWER_DEADLINE_S
            )

    def translate(self, vcpu: GuestVcpu, gfn: int, *, shared: bool, write: bool) -> Translation | None:
        """TLB, then a walk that marks the leaf accessed and fills the TLB; None is an EPT violation. In guest mode."""
        found = vcpu.tlb.lookup(gfn if shared else ~gfn)  # tlb_key, without the call: every access comes here
        if found is None:
            mmu = self.vm.mmu
            with mmu.lock:
                entry = mmu.epts[not shared].walk(gfn)
                if not entry:
                    return None
                mmu.mark_accessed(gfn, private=not shared)
                memory, frame = self.vm.physmap.find(entry_pfn(entry))
                found = (memory, frame << PAGE_SHIFT, entry_writable(entry))
                vcpu.tlb.insert(tlb_key(gfn, shared), found)
        return found if found[2] or not write else None

    def writable_until(self, gfn: int, end: int) -> int:
        """The first GFN of [gfn, end) that a READONLY shared slot shows, or end. With Mmu.lock held."""
        for slot in self.vm.slots[False].overlaps(gfn, end):
            if slot.flags & SlotFlag.READONLY:
                return max(gfn, min((low for low, high in slot.segments if high > gfn), default=end))
        return end

    # -- the store's callbacks (link.Callbacks), on up threads

    def on_begin(self, link: StoreLink, begin: m.InvalidateBegin) -> list[tuple[int, int]]:
        mmu = self.vm.mmu
        kept: list[tuple[int, int]] = []
        with mmu.lock:
            if not mmu.ended.wait_for(lambda: not self._retiring, ACK_DEADLINE_S):
                raise PeerLost("a slot of this VM does not go away in time")
            ranges = self._gfn_ranges(link, begin.start, begin.end)
            if not ranges:
                return []
            low, high = min(gfn for gfn, _, _ in ranges), max(gfn + count for gfn, _, count in ranges)
            mmu.invalidate_begin(low, high)
            self._open[link] = low, high
            for gfn, pgoff, count in ranges:
                if begin.reason is m.Reason.RECLAIM:
                    touched = mmu.zap_untouched(gfn, gfn + count)
                    kept += [(pgoff + start - gfn, pgoff + end - gfn) for start, end in touched]
                else:
                    mmu.zap(gfn, gfn + count, private=True)
        self._kick_all()
        return _at_most(kept, MAX_RUNS_PER_REPORT)

    def on_end(self, link: StoreLink, end: m.InvalidateEnd) -> None:
        with self.vm.mmu.lock:
            if self._open.pop(link, None) is not None:
                self.vm.mmu.invalidate_end()
        link.seq = end.seq

    def on_report(self, link: StoreLink, cursor: int) -> m.ReportReply:
        slots: list[tuple[int, int, int, int]] = []
        mappings: list[tuple[int, int, int]] = []
        stop = MAX_GFN_EPT
        with self.vm.mmu.lock:
            changing = self._changing.get(link, (0, 0))
            for slot, start, end in self._segments(link):
                if end <= cursor:
                    continue
                if len(slots) >= MAX_RUNS_PER_REPORT:
                    stop = start
                    break
                start = max(start, cursor)
                slots.append((slot.id, start, slot.pgoff_of(start), end - start))
            # Also what no slot shows: it may not be there.
            for gfn, pfn, count in self.vm.mmu.epts[True].runs(min(cursor, stop), stop):
                if not link.base <= pfn < link.base + link.frame_count:
                    continue
                if len(mappings) >= MAX_RUNS_PER_REPORT:
                    stop = gfn
                    break
                mappings.append((gfn, pfn - link.base, count))
        slots = [slot for slot in slots if slot[1] < stop]
        return m.ReportReply(slots, mappings, link.seq, changing, stop if stop < MAX_GFN_EPT else -1)

    def on_lost(self, link: StoreLink, why: str) -> None:
        mmu = self.vm.mmu
        with mmu.lock:
            if self._open.pop(link, None) is not None:
                mmu.invalidate_end()
            segments = [(start, end) for _, start, end in self._segments(link)]
        if segments:
            self._zap_segments(segments, private=True)

    def _segments(self, link: StoreLink) -> list[tuple[Memslot, int, int]]:
        """Visible segments of the link's slots, by GFN."""
        return sorted(self.vm.slots[True].of_file(link), key=lambda segment: segment[1])

    def _gfn_ranges(self, link: StoreLink, start: int, end: int) -> list[tuple[int, int, int]]:
        """Where file pages [start, end) show: (gfn, pgoff, pages); nothing if a store that lies says end <= start."""
        if end <= start:
            return []
        return [
            (low, slot.pgoff_of(low), high - low) for slot, low, high in self.vm.slots[True].of_file(link, start, end)
        ]

    def close(self) -> None:
        """The VM ends: slots go, then every pairing with BYE."""
        with self.slots_lock:
            for vcpu in self.vm.vcpus.values():
                vcpu.kick()
            for slot in list(self.vm.slots[False]):
                self._delete(slot.id, private=False)
            for link in self.links.values():
                with self._retirement():
                    with self.vm.mmu.lock:
                        self._changing[link] = _EVERY_PAGE
                        segments = self._segments(link)
                        for id_ in {slot.id for slot, _, _ in segments}:
                            self.vm.slots[True].delete(id_)
                    self._zap_segments([(start, end) for _, start, end in segments], private=True)
                link.close()
            self.links.clear()


def _get_large(ticket: Ticket, link: StoreLink) -> tuple[m.GetPfnReply, int]:
    """The run from the first page of the leaf around the ticket's page, and the leaf's order. If the store does not
    grant the leaf whole, in one frame of that size: the run from the page itself, and order 0."""
    order = ticket.order
    ahead = ticket.gfn & (1 << order) - 1
    try:
        granted = link.get_pfn(ticket.pgoff - ahead, max(1 << order, min(ticket.limit + ahead, MAX_AHEAD_PAGES)))
        if granted.order >= order and granted.page_count >> order and granted.pfn % (1 << order) == 0:
            return granted, order
    except Refused as refused:
        if refused.errno != errno.EFAULT:
            raise
        # A hole at the beginning of the leaf has been filled and is not bound yet: not the page that is wanted.
    small = (1 << ORDER_2M) - (ticket.gfn & (1 << ORDER_2M) - 1)
    return link.get_pfn(ticket.pgoff, min(ticket.limit, small)), ORDER_4K


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"{path}: {error.strerror}") from None


def backing_of(slot: Memslot) -> Backing:
    assert isinstance(slot.backing, Backing)
    return slot.backing


def _check_loose(slot: Memslot) -> None:
    if backing_of(slot).sticky:
        raise Refused(errno.EPERM, f"{slot} shows an encrypted mapping: it stays until the VM ends: lay a slot over it")


def link_of(slot: Memslot) -> StoreLink:
    link = backing_of(slot).link
    assert link is not None
    return link


def _failed(ticket: Ticket, number: int, why: str) -> MemoryErrorExit:
    return MemoryErrorExit(
        ticket.gfn << PAGE_SHIFT, PAGE_SIZE, ticket.private, errno=number, why=f"{errno_name(number)}: {why}"
    )


def _at_most(ranges: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Keeping too much is safe, so the last range may widen to cover what does not fit in a packet."""
    if len(ranges) <= count:
        return ranges
    return [*ranges[: count - 1], (ranges[count - 1][0], ranges[-1][1])]
