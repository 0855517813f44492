"""Operations on guest private memory, named as Linux's struct kvm_gmem_ops where it has them.

A punch, out and back: check_punch -> invalidate_begin -> (INVALIDATE_BEGIN, acknowledged) -> (take ->
Scrub) in parts -> invalidate_end -> (INVALIDATE_END). The store holds the file's invalidate_lock from begin to
end, and takes it for pair, bind, unbind and release too, so the set of bindings is the same at both ends.
"""

import errno
from collections.abc import Sequence

from memfsd.common import trace
from memfsd.uapi.abi import Attributes, GmemFlag
from memfsd.uapi.errors import EHWPOISON, Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.gmem_ioctls import MemoryAttributes2, check_create
from memfsd.uapi.limits import MAX_DEVICE_BYTES
from memfsd.uapi.messages import Body, GetPfnReply
from memfsd.uapi.names import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import (
    ORDER_2M,
    ORDER_4K,
    PAGE_SHIFT,
    PAGE_SIZE,
    Gfn,
    Ino,
    Pfn,
    Pgoff,
    PgoffRange,
    Seq,
    page_aligned,
)

from .effects import DropDevice, DropWindow, Effect, Quarantine, ReturnSlots, Runs, Scrub
from .files.inodes import InodeTable, Regular
from .files.ordinary import OrdinaryData
from .memory.frames import FramePool
from .memory.large import count_cut, is_empty, place_of, whole_order
from .memory.published_map import PageMap
from .memory.swap_slots import SwapSlots
from .options import StoreOptions
from .private.absent import AbsentPages, give_back
from .private.bindings import Binding
from .private.device_memory import Device
from .private.gmem_file import GmemFile, Invalidation, Pairing, PairState
from .private.merging import merge
from .private.moving import MovingPages
from .private.page_attributes import born, check_attributes
from .private.pending import PendingFrames, Touched, touched_reach
from .private.strategies import Strategy, Taking

_GMEM_MODES = (FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)
_NEAR_ABSENT_PAGES = 64
"""The most that is granted at once of a file with absent pages, or one leaf: each is looked up."""
_PRIVATE, _PENDING = FrameState.PRIVATE, FrameState.PENDING
"""A member's name looked up in its class takes a quarter of a microsecond: too long for a grant."""


class SwappedOut(Refused):
    """The page's contents are in the swap file: bring it in, then ask again."""

    def __init__(self, pgoff: int) -> None:
        super().__init__(errno.EAGAIN, f"file page {pgoff:#x} is swapped out")


class NoRoom(Refused):
    """The pool is full, by the ABI's errno: it need not be the one that says that this process has no more memory."""


def guest_of(file: Regular) -> GmemFile:
    if file.guest is None:
        raise Refused(errno.EINVAL, f"inode {file.ino} is not sealed for a guest: seal it first")
    return file.guest


class GuestMemory:
    """All sealed files of a store; each method is one step that runs to completion."""

    def __init__(
        self, pool: FramePool, slots: SwapSlots, inodes: InodeTable, data: OrdinaryData, options: StoreOptions
    ) -> None:
        self._pool = pool
        self._slots = slots
        self._inodes = inodes
        self._data = data
        self._options = options
        self.quarantines: list[Quarantine] = []
        """Pages that files have lost, and that are not in quarantine yet."""
        self.slot_returns: list[ReturnSlots] = []
        """Slots that no file has any more, and that are not free yet."""

    def seal(self, file: Regular) -> None:
        """One-way: from now on the file is guest private memory. It must be empty."""
        assert file.size == 0 and file.pages.page_count == 0 and file.readers == 0
        file.seals |= Seal.GUEST
        file.guest = GmemFile(absent=AbsentPages(self._slots))
        self._inodes.add_sealed(file)

    def check_guest_memfd(self, file: Regular, size: int, flags: int) -> None:
        """EOPNOTSUPP on a mount without them; EINVAL flags, then size; EBUSY the file is no new one."""
        abi = self._options.abi
        if not abi.is_sized_at_creation:
            raise Refused(
                errno.EOPNOTSUPP,
                f"a mount with abi={abi.name} has no guest_memfds: mount with abi=gmem-6.18 or a later one",
            )
        check_create(size, flags, abi.create_flags)
        filling = any(allocation.file is file for allocation in self._data.allocations.values())
        if file.guest is not None or file.seals or file.size or file.pages.page_count or file.readers or filling:
            raise Refused(
                errno.EBUSY, f"inode {file.ino} is in use: a guest_memfd is made of an empty file, open write-only"
            )

    def make_guest_memfd(self, file: Regular, size: int, flags: int) -> None:
        """After `check_guest_memfd`."""
        self.seal(file)
        guest = guest_of(file)
        guest.memfd = born(GmemFlag(flags), size >> PAGE_SHIFT)
        self.set_size(file, size)

    # -- size and preallocation

    def check_resize(self, file: Regular, size: int) -> PgoffRange | None:
        """EINVAL unaligned, EPERM for a second time; else the pages that a shrink takes back."""
        guest = guest_of(file)
        if guest.device is not None:
            raise Refused(errno.EPERM, f"inode {file.ino} is a device of {file.size} bytes for life: add another one")
        if guest.memfd is not None:
            raise Refused(
                errno.EINVAL, f"inode {file.ino} is a guest_memfd of {file.size} bytes for life: make another one"
            )
        if not page_aligned(size, file.order):
            raise Refused(
                errno.EINVAL, f"size {size} is not a multiple of the page size {PAGE_SIZE << file.order}: round it up"
            )
        if size == file.size == 0:
            return None
        if guest.size_set and not self._options.resize_any:
            raise Refused(
                errno.EPERM, f"the size was set to {file.size} already: use a new file, or mount with resize=any"
            )
        if size > file.size and Seal.GROW in file.seals:
            raise Refused(errno.EPERM, f"inode {file.ino} is sealed against growing")
        if size < file.size and Seal.SHRINK in file.seals:
            raise Refused(errno.EPERM, f"inode {file.ino} is sealed against shrinking")
        if size < file.size:
            return Pgoff(size >> PAGE_SHIFT), Pgoff(file.size >> PAGE_SHIFT)
        return None

    def set_size(self, file: Regular, size: int) -> None:
        guest = guest_of(file)
        guest.size_set = guest.size_set or size != file.size
        file.size = size

    def fallocate(
        self, file: Regular, mode: int, offset: int, length: int
    ) -> tuple[Sequence[Effect], PgoffRange | None]:
        """Allocate, or give the pages that a punch takes back (None: nothing there). EOPNOTSUPP for a device."""
        if guest_of(file).device is not None:
            raise Refused(errno.EOPNOTSUPP, f"inode {file.ino} is a device: its memory is neither allocated nor freed")
        end = offset + length
        if guest_of(file).memfd is not None and mode not in _GMEM_MODES:
            raise Refused(
                errno.EOPNOTSUPP, f"fallocate mode {mode:#x}: a guest_memfd has KEEP_SIZE, alone or with PUNCH_HOLE"
            )
        if offset < 0 or length <= 0:
            raise Refused(
                errno.EINVAL,
                f"offset {offset} and length {length}: fallocate needs an offset of 0 or more and a length above 0",
            )
        is_punch = mode == FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        unit = self.punch_order(file) if is_punch else file.order
        if not page_aligned(offset | length, unit):
            way_out = ", or mount with split=on" if is_punch and unit else ""
            raise Refused(
                errno.EINVAL, f"offset {offset} and length {length} must be multiples of {PAGE_SIZE << unit}{way_out}"
            )
        if end >= 1 << 63:
            raise Refused(errno.EFBIG, f"offset {offset} + length {length} is past 2^63: give less")
        if is_punch:
            end = min(end, file.size)
            if offset >= end:
                return [], None
            return [], (Pgoff(offset >> PAGE_SHIFT), Pgoff(end >> PAGE_SHIFT))
        if mode & ~FALLOC_FL_KEEP_SIZE:
            raise Refused(errno.EOPNOTSUPP, f"fallocate mode {mode:#x} is not supported on a sealed file")
        if end > file.size:
            raise Refused(
                errno.EINVAL, f"offset + length, {end}, is past the end of the file ({file.size}): set its size first"
            )
        return self._data.allocate(file, offset >> PAGE_SHIFT, end >> PAGE_SHIFT, _PRIVATE), None

    def punch_order(self, file: Regular) -> int:
        """Of the smallest part of a file that can be punched."""
        return ORDER_4K if self._options.split else file.order

    # -- devices

    def check_device(self, file: Regular) -> None:
        """Whether it can become one: EINVAL not sealed, or no size; EFBIG too large; EBUSY in use; EEXIST it is one."""
        guest = guest_of(file)
        if guest.device is not None:
            raise Refused(errno.EEXIST, f"inode {file.ino} is a device already")
        if guest.memfd is not None:
            raise Refused(
                errno.EOPNOTSUPP, f"inode {file.ino} is a guest_memfd, of the pool: a device is made of a sealed file"
            )
        if not 0 < file.size <= MAX_DEVICE_BYTES:
            number = errno.EFBIG if file.size else errno.EINVAL
            raise Refused(
                number, f"a device of {file.size} bytes: give it one page at least, and {MAX_DEVICE_BYTES} at most"
            )
        filling = any(allocation.file is file for allocation in self._data.allocations.values())
        if filling or file.pages.page_count or guest.absent or guest.pairing is not None or guest.open_invalidation:
            raise Refused(errno.EBUSY, f"inode {file.ino} is in use already: add the device with a new file")

    def make_device(self, file: Regular) -> None:
        """After `check_device`."""
        guest_of(file).device = Device(file.size >> PAGE_SHIFT)

    # -- pairing

    def pair(self, file: Regular, pairing: Pairing) -> None:
        """EPERM (or as the ABI has it) when the file has or had another owner."""
        if trace.store is not None:
            trace.store.file_paired(file.ino, pairing.vm)
        self.check_owner(file, pairing)
        guest_of(file).pairing = pairing

    def publish(self, file: Regular, page_map: PageMap) -> None:
        """After `pair`. The map shows nothing yet: `publish_more`."""
        guest = guest_of(file)
        assert guest.open_invalidation is None, "the caller holds the invalidate_lock"
        page_map.end = 0
        guest.page_map = file.pages.published = page_map
        page_map.open(guest.seq)

    def publish_more(self, file: Regular) -> bool:
        """Some more of the file's pages, and from now on what changes there; whether there are others to come."""
        page_map = guest_of(file).page_map
        if page_map is None:
            return False
        part, page_map.end = file.pages.part(page_map.end, page_map.page_count)
        for pgoff, pfn, count in part:
            page_map.show(pgoff, pfn, count)
        return page_map.end < page_map.page_count

    def check_owner(self, file: Regular, pairing: Pairing) -> None:
        """EPERM, or as the ABI has it, when the file has or had another owner: one VM for life (R1), which may come
        back after BYE. ENODEV of a device that was removed."""
        guest = guest_of(file)
        if guest.device is not None:
            guest.device.check_there()
        owner = guest.pairing
        if owner is not None and not owner.may_become(pairing):
            raise Refused(
                self._options.abi.other_owner,
                f"inode {file.ino} belongs to VM {owner.vm} of process {owner.pid} "
                f"({owner.state.value}) for life: use a new file",
            )

    def bind(self, file: Regular, slot: int, gfn: int, pgoff: int, page_count: int) -> None:
        """EINVAL past the end, EEXIST (or as the ABI has it) bound already, EINVAL at another GFN than before.

        What was bound before the file shrank may be bound again, or a conversion could not take back its UNBIND.
        """
        if trace.store is not None:
            trace.store.pages_bound(file.ino, slot, gfn, pgoff, page_count)
        guest = guest_of(file)
        assert guest.open_invalidation is None, "the caller holds the invalidate_lock"
        if guest.device is not None:
            guest.device.check_there()
        end = pgoff + page_count
        if end << PAGE_SHIFT > file.size and end > guest.bound_end:
            raise Refused(errno.EINVAL, f"pages {pgoff:#x}-{end:#x} are past the end of the file ({file.size} bytes)")
        binding = Binding(slot, Pgoff(pgoff), Pgoff(end), Gfn(gfn))
        twice = self._options.abi.bound_twice
        guest.bindings.bind(binding, fixed_gfn=self._options.keeps_gfn, bound_twice=twice)
        guest.bound_end = max(guest.bound_end, binding.end)

    def unbind(self, file: Regular, pgoff: int, page_count: int) -> int:
        """One step of it: how many pages. EINVAL, and nothing is unbound, unless all of them are bound."""
        guest, end = guest_of(file), pgoff + page_count
        if trace.store is not None:
            trace.store.pages_unbound(file.ino, pgoff, guest.bindings.reach(pgoff, end) - pgoff)
        assert guest.open_invalidation is None, "the caller holds the invalidate_lock"
        return guest.bindings.unbind(pgoff, end) - pgoff

    @trace.hot(
        trace.Side.STORE,
        before=(
            trace.Instrument.run_granted,
            lambda to, _, file, pgoff, pages, order=0: to.run_granted(file.ino, pgoff, pages),
        ),
        after=(
            trace.Instrument.run_was_granted,
            lambda to, granted, gmem, file, pgoff, pages, order=0: to.run_was_granted(
                file.ino, pgoff, granted.pfn, granted.page_count, gmem._pool.by_state
            ),
        ),
    )
    def get_pfn(self, file: Regular, pgoff: int, max_pages: int, order: int = ORDER_4K) -> GetPfnReply:
        """Grant a run of frames from pgoff: what is allocated already, or new frames as readahead wishes.

        order: of the leaf that the run is for, which begins at pgoff. With split=on ENOENT, and nothing is granted,
        where the page is split.
        EFAULT not bound or past the end; EAGAIN in a closing range (fault again after INVALIDATE_END);
        ENOSPC the pool is full; EHWPOISON the frame failed; ENODEV the device was removed.
        """
        guest, pages = file.guest or guest_of(file), file.pages
        readahead = guest.readahead
        bound_until = guest.bindings.bound_until(pgoff)
        if bound_until is None or pgoff << PAGE_SHIFT >= file.size:
            raise Refused(errno.EFAULT, f"file page {pgoff:#x} is not bound")
        closing = guest.open_invalidation
        if closing is not None and closing.start <= pgoff < closing.end:
            raise Refused(errno.EAGAIN, f"file page {pgoff:#x} is being taken back")
        if guest.device is not None:
            return self._device_run(file, guest.device, pgoff, min(max_pages, bound_until - pgoff))
        if order and self._options.split:
            self._check_leaf(file, guest, pgoff, order)
        if guest.absent.count:
            max_pages = self._until_absent(guest, pgoff, min(max_pages, max(_NEAR_ABSENT_PAGES, 1 << order)))
        wish = readahead.wish(pgoff) if pages.lookup(pgoff) is None else 0
        if wish == 1 and not file.order and file.policies is None:  # the usual fault
            pfn, count = self._pool.alloc_one(_PRIVATE), 1
            pages.map_page(pgoff, pfn)
        else:
            limit = min(max_pages, bound_until - pgoff, (file.size >> PAGE_SHIFT) - pgoff)
            if closing is not None and pgoff < closing.start:
                limit = min(limit, closing.start - pgoff)
            pfn, count = self._grant(file, guest, pgoff, limit, wish) if wish else self._granted(file, pgoff, limit)
        readahead.granted(pgoff, count)
        guest.grant_count += 1
        granted_order = file.order
        if granted_order and self._options.split:
            granted_order = whole_order(pages, pgoff, file.order)
        return GetPfnReply(pfn, count, granted_order, guest.seq)

    def out_of_room(self, file: Regular, refused: Refused) -> Refused:
        """ENOSPC as the ABI has it, now that nothing more can be taken back; any other refusal as it is."""
        number = self._options.abi.no_room
        if refused.errno != errno.ENOSPC or file.guest is None or number == errno.ENOSPC:
            return refused
        return NoRoom(number, refused.reason)

    def _check_leaf(self, file: Regular, guest: GmemFile, pgoff: int, order: int) -> None:
        """ENOENT unless the page is whole, or there is nothing of it yet."""
        pages = file.pages
        if pages.lookup(pgoff) is not None:
            is_whole = whole_order(pages, pgoff, file.order) >= order
        else:
            is_whole = self._is_fresh(file, guest, pgoff)
        if not is_whole:
            raise Refused(errno.ENOENT, f"file page {pgoff:#x} is in a large page that is split: ask for it alone")

    def _is_fresh(self, file: Regular, guest: GmemFile, pgoff: int) -> bool:
        """The large page around this one has no part, and so can get a large frame."""
        first = pgoff & -(1 << file.order)
        last = first + (1 << file.order)
        return is_empty(file.pages, pgoff, file.order) and not (guest.absent and guest.absent.first(first, last) < last)

    def _device_run(self, file: Regular, device: Device, pgoff: int, limit: int) -> GetPfnReply:
        device.check_there()
        run, guest = device.run_at(pgoff, limit), guest_of(file)
        assert run is not None
        guest.grant_count += 1
        return GetPfnReply(*run, file.order, guest.seq)

    def _until_absent(self, guest: GmemFile, pgoff: int, max_pages: int) -> int:
        """How many of these pages may be granted. SwappedOut: the first one; EHWPOISON: its frame failed."""
        absent = guest.absent
        if absent.is_poisoned(pgoff):
            raise Refused(EHWPOISON, f"file page {pgoff:#x} is poisoned: its frame failed; punch it to get another one")
        if absent.slot(pgoff) is not None:
            raise SwappedOut(pgoff)
        return absent.first(pgoff, pgoff + max_pages) - pgoff

    def check_poison(self, file: Regular, pgoff: int, *, whole: bool) -> PgoffRange:
        """The pages that fail with this one: more than one in a file of large pages, unless they may be split. whole:
        all of its large page, since the VM could not split it.

        EINVAL past the end, EHWPOISON when it failed before, ENXIO without a frame.
        """
        guest = guest_of(file)
        if guest.device is not None:
            raise Refused(errno.EOPNOTSUPP, f"inode {file.ino} is a device, whose memory is not the pool's")
        if pgoff << PAGE_SHIFT >= file.size:
            raise Refused(errno.EINVAL, f"page {pgoff:#x} is past the end of inode {file.ino} ({file.size} bytes)")
        if guest.absent.is_poisoned(pgoff):
            raise Refused(EHWPOISON, f"page {pgoff:#x} of inode {file.ino} has failed already: punch it")
        if file.pages.lookup(pgoff) is None:
            raise Refused(
                errno.ENXIO, f"page {pgoff:#x} of inode {file.ino} has no frame that could fail: touch it first"
            )
        order = file.order
        if self._options.split:
            order = whole_order(file.pages, pgoff, file.order) if whole else ORDER_4K
        start = pgoff >> order << order
        return Pgoff(start), Pgoff(start + (1 << order))

    def _granted(self, file: Regular, pgoff: int, limit: int) -> tuple[Pfn, int]:
        """A run that the file has already; its first page is touched now."""
        guest, run = guest_of(file), file.pages.run_at(pgoff, limit)
        assert run is not None
        if guest.pending and self._pool.state(run[0]) is _PENDING:
            self._pool.set_state(run[0], 1, _PRIVATE)
            guest.pending -= 1
        return run

    def _grant(self, file: Regular, guest: GmemFile, pgoff: int, limit: int, wish: int) -> tuple[Pfn, int]:
        """New frames, and several at once if it can be."""
        after: Pfn | None
        if not file.order:
            before = file.pages.lookup(Pgoff(pgoff - 1)) if pgoff else None
            after = None if before is None else Pfn(before + 1)
        elif not self._options.split or self._is_fresh(file, guest, pgoff):
            return self._grant_large(file, pgoff, limit)
        else:
            limit = min(limit, (1 << file.order) - (pgoff & (1 << file.order) - 1))
            after = place_of(file.pages, pgoff, file.order)
        zones, wish = file.zones_at(pgoff, file.pages.hole_at(Pgoff(pgoff), min(wish, limit)))
        pfn, count = self._pool.alloc_run(wish, _PENDING, zones=zones, after=after)
        self._pool.set_state(pfn, 1, _PRIVATE)
        if count > 1:
            start, end = Pgoff(pgoff + 1), Pgoff(pgoff + count)
            if guest.pending:
                start, end = min(start, guest.pending_start), max(end, guest.pending_end)
            guest.pending_start, guest.pending_end = start, end
            guest.pending += count - 1
        file.pages.map_run(Pgoff(pgoff), pfn, count)
        if file.order:
            merge(self._pool, file.pages, guest, pgoff, file.order)
        return pfn, count

    def _grant_large(self, file: Regular, pgoff: int, limit: int) -> tuple[Pfn, int]:
        pages = 1 << file.order
        first = pgoff & ~(pages - 1)
        zones, _ = file.zones_at(first, pages)
        ((base, count),) = self._pool.alloc(pages, _PRIVATE, order=file.order, zones=zones)
        assert count == pages
        file.pages.map_run(Pgoff(first), base, pages)
        return Pfn(base + pgoff - first), min(limit, first + pages - pgoff)

    # -- taking memory back

    def invalidate_begin(self, file: Regular, start: int, end: int, strategy: Strategy) -> Invalidation:
        """Open an invalidation. `upcall` says whether a VM must acknowledge before `take`."""
        if trace.store is not None:
            trace.store.invalidate_begin(file.ino, start, end, strategy.reason)
        guest = guest_of(file)
        assert guest.open_invalidation is None, "one invalidation of a file at a time"
        assert start < end
        upcall = guest.bindings.first(start, end) is not None and guest.active is not None
        cuts = not page_aligned(start << PAGE_SHIFT | end << PAGE_SHIFT, file.order) and strategy.may_cut
        guest.open_invalidation = Invalidation(Pgoff(start), Pgoff(end), strategy, upcall, guest.seq, cuts)
        if guest.page_map is not None and guest.active is not None:
            guest.page_map.close(guest.seq)
        return guest.open_invalidation

    def take(self, file: Regular, answer: Body | None, touched: Touched = ()) -> list[Effect] | None:
        """After the acknowledgement: do with the range's next pages what the strategy says; None: no more.

        One part of the page table is looked at in a step, from `taken_to` on, which is `end` at the last.
        answer, touched: as a Taking has them.
        """
        if trace.store is not None:
            trace.store.pages_unmapped(file.ino)
        guest = guest_of(file)
        closing = guest.open_invalidation
        assert closing is not None
        if closing.cuts and closing.taken_to == closing.start:
            self._count_splits(file, guest, closing)
        start = closing.taken_to
        part, reached = file.pages.part(start, guest.absent.reach(start, closing.end) if guest.absent else closing.end)
        if not part and not guest.absent and guest.device is None and not closing.strategy.takes_holes:
            closing.taken_to = closing.end
            return None
        taking = Taking(file.ino, self._pool, file.pages, guest, start, reached, part, answer, touched)
        taking = closing.strategy.narrow(taking)
        closing.taken_to = taking.end
        return closing.strategy.take(taking)

    def _count_splits(self, file: Regular, guest: GmemFile, closing: Invalidation) -> None:
        splits = count_cut(file.pages, closing.start, closing.end, file.order)
        guest.split_count += splits
        self._pool.split_count += splits

    def invalidate_end(self, file: Regular) -> Seq:
        """Close it; the file's new sequence number (it grows only if the range was bound)."""
        if trace.store is not None:
            trace.store.invalidate_end(file.ino)
        guest = guest_of(file)
        closing = guest.open_invalidation
        assert closing is not None
        guest.open_invalidation = None
        guest.invalidation_count += 1
        if closing.upcall:
            guest.seq = Seq(guest.seq + 1)
        if guest.page_map is not None and guest.active is not None:
            guest.page_map.open(guest.seq)
        return guest.seq

    def check_attributes(self, file: Regular, asked: MemoryAttributes2) -> PgoffRange | None:
        """page_attributes.check_attributes; ENOTTY where the file has none."""
        memfd = guest_of(file).memfd
        if memfd is None or self._options.abi.attributes is not Attributes.FILE:
            raise Refused(
                errno.ENOTTY, f"inode {file.ino} has no attributes: make a guest_memfd, with abi=gmem-inplace"
            )
        return check_attributes(memfd, asked, file.size)

    # -- swap

    def swaps(self, file: Regular) -> bool:
        """Its pages may leave one by one: a large one is split for that."""
        return self.punch_order(file) == ORDER_4K

    def swapped_out(
        self, file: Regular, pages: list[tuple[Pgoff, Pfn]], slots: list[int], holes: list[tuple[Pgoff, Pfn]]
    ) -> Scrub:
        """These pages of the closing range are in the swap file, and nobody has written the holes; their frames go."""
        guest = guest_of(file)
        assert guest.open_invalidation is not None
        runs: Runs = []
        for pgoff, pfn in [*pages, *holes]:
            if file.order and whole_order(file.pages, pgoff, file.order):
                guest.split_count += 1
                self._pool.split_count += 1
            taken = file.pages.unmap(pgoff, Pgoff(pgoff + 1))
            assert taken == [(pgoff, pfn, 1)], f"page {pgoff:#x} is not in frame {pfn:#x} any more"
            self._pool.set_state(pfn, 1, FrameState.CLOSING)
            if runs and runs[-1][0] + runs[-1][1] == pfn:
                runs[-1] = runs[-1][0], runs[-1][1] + 1
            else:
                runs.append((pfn, 1))
        for (pgoff, _), slot in zip(pages, slots, strict=True):
            guest.absent.put_swapped(pgoff, slot)
        self._slots.out_count += len(pages)
        return Scrub(file.ino, runs)

    def swap_in_begin(self, file: Regular, pgoff: Pgoff, most: int) -> tuple[Pfn, list[int]]:
        """A run of new frames for the pages from pgoff on that are swapped out, and their slots; none: it is not
        (any more). ENOSPC."""
        slots = guest_of(file).absent.swapped_run(pgoff, most)
        if not slots:
            return Pfn(0), []
        zones, most = file.zones_at(pgoff, len(slots))
        after = None
        if file.order:
            after = place_of(file.pages, pgoff, file.order)
            most = min(most, (1 << ORDER_2M) - pgoff % (1 << ORDER_2M))
        pfn, count = self._pool.alloc_run(most, FrameState.MOVING, zones=zones, after=after)
        return pfn, slots[:count]

    def swapped_in(self, file: Regular, pgoff: Pgoff, pfn: Pfn, count: int) -> None:
        """The pages are in these frames; their slots are free."""
        guest_of(file).absent.take(pgoff, pgoff + count)
        self._pool.set_state(pfn, count, _PRIVATE)
        file.pages.map_run(pgoff, pfn, count)
        self._slots.in_count += count
        if file.order:
            merge(self._pool, file.pages, guest_of(file), pgoff, file.order)

    def swap_in_failed(self, file: Regular, pfn: Pfn, count: int) -> Scrub:
        """The pages stay in the file; the frames go."""
        self._pool.set_state(pfn, count, FrameState.CLOSING)
        self._slots.failed_count += 1
        return Scrub(file.ino, [(pfn, count)])

    def reclaimable(self, files: list[Regular]) -> list[tuple[Ino, Pgoff, Pgoff]]:
        """For each file with pending frames: the range that holds them all."""
        found = []
        for file in files:
            guest = guest_of(file)
            if guest.pending and guest.open_invalidation is None:
                found.append((file.ino, guest.pending_start, guest.pending_end))
        return found

    def settle(self, file: Regular, touched: Touched, start: Pgoff) -> Pgoff | None:
        """Frames that hold memory in the window were touched: PENDING ones become PRIVATE.

        Of the next pages from `start` on; where to go on, or None.
        """
        guest = guest_of(file)
        if guest.pending == 0:
            return None
        start = max(start, guest.pending_start)
        if start >= guest.pending_end:
            return None
        part, reached = file.pages.part(start, guest.pending_end)
        if part:
            reached = touched_reach(part, reached, touched)
            PendingFrames(self._pool, file.pages, guest).settle_touched(touched, start, reached)
        return reached if reached < guest.pending_end else None

    # -- the end of a VM

    def disconnect(self, file: Regular) -> list[Effect]:
        """The VM lives but does not answer: it may still reach every frame, so all are quarantined (R6)."""
        if trace.store is not None:
            trace.store.frames_quarantined(file.ino)
        guest = guest_of(file)
        assert guest.pairing is not None and guest.pairing.state is PairState.ACTIVE
        guest.pairing.state = PairState.DISCONNECTED
        guest.bindings.clear()
        guest.pending = 0
        returned = self._return_all(guest)
        MovingPages(self._pool, file.pages, guest).quarantine()
        file.pages.published = None
        if guest.page_map is not None:
            guest.page_map.close_for_good()
        effect = Quarantine(file.ino, file.pages.detach())
        self.quarantines.append(effect)
        return [*returned, effect] if self.quarantine(effect) else returned

    def quarantine(self, effect: Quarantine) -> bool:
        """The next part of it; False when all is done."""
        file = self._inodes.regular(effect.ino)
        guest = guest_of(file)
        for pgoff, pfn, count in effect.pages.take():
            self._pool.set_state(pfn, count, FrameState.QUARANTINED)
            guest.quarantine.map_run(pgoff, pfn, count)
        if effect.pages.page_count:
            return True
        self.quarantines.remove(effect)
        return False

    def release(self, file: Regular) -> list[Effect]:
        """The VM is gone (BYE, or proven dead): all its frames come back; the file stays sealed."""
        if trace.store is not None:
            trace.store.vm_released(file.ino)
        guest = guest_of(file)
        assert guest.pairing is not None and guest.open_invalidation is None
        guest.pairing.state = PairState.ENDED
        guest.bindings.clear()
        page_map, guest.page_map, file.pages.published = guest.page_map, None, None
        quarantined = [
            effect
            for pages in (guest.quarantine, guest.moving)
            for effect in self._data.give_back(file.ino, pages, file.ino)
        ]
        if guest.memfd is not None:  # its memory lives as long as the file
            return quarantined
        return [*self._give_back_all(file, guest), *quarantined, DropWindow(file.ino, page_map)]

    def forget_unused(self, file: Regular) -> None:
        """After `release`, of a VM that said BYE. One that never bound a page never had one: then any VM may pair."""
        guest = guest_of(file)
        if not guest.bound_end:
            guest.pairing = None

    def drop_all(self, file: Regular) -> list[Effect]:
        """Name, handles and pairing are gone: give every frame back."""
        if trace.store is not None:
            trace.store.file_dropped(file.ino)
        guest = guest_of(file)
        assert not guest.holds_memory
        last: list[Effect] = [] if guest.device is None else [DropDevice(file.ino)]
        if guest.memfd is not None:
            last.append(DropWindow(file.ino))
        return [*self._give_back_all(file, guest), *last]

    def _give_back_all(self, file: Regular, guest: GmemFile) -> list[Effect]:
        guest.pending = 0
        return [*self._return_all(guest), *self._data.give_back(file.ino, file.pages, file.ino)]

    def _return_all(self, guest: GmemFile) -> list[Effect]:
        """Nothing of the file is absent any more."""
        if not guest.absent.count:
            return []
        effect = ReturnSlots(guest.absent.detach())
        self.slot_returns.append(effect)
        return [effect] if self.return_slots(effect) else []

    def return_slots(self, effect: ReturnSlots) -> bool:
        """The next part of it; False when all is done."""
        if give_back(self._slots, effect.pages):
            return True
        self.slot_returns.remove(effect)
        return False
