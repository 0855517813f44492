"""The pairings of a VM, and what the store knows of its slots."""

import contextlib
import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from kvmsim.store.link import Callbacks, FileId, StoreLink, store_of_sealed
from memfsd.common.quote import quoted
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.units import GfnRange, Pgoff

from .alias import PRIVATE
from .notifier import Notifier
from .region import MemoryRegion
from .slots.backing import Gmem, SlotBacking
from .slots.memslots import Memslot, check_addressable
from .vm import Vm

Pair = Callable[[int, str, Callbacks], StoreLink]


class PairedFile(NamedTuple):
    """A file that the VM has paired with, as user space names it: what fstat(2) says, and the path that it was opened
    by. punch_order: the store takes it back in parts of 4096 << punch_order bytes."""

    id: FileId
    path: str
    punch_order: int


class Pairings:
    """Down-calls are made with Kvm.slots_lock held, never with Mmu.lock."""

    def __init__(self, vm: Vm, slots_lock: threading.Lock, notifier: Notifier, pair: Pair) -> None:
        """pair makes the pairing with the file behind an fd."""
        self._vm = vm
        self._slots_lock = slots_lock
        self._notifier = notifier
        self._pair = pair
        self.links: dict[FileId, StoreLink] = {}
        """One for each file that a slot is of, or that is held."""
        self._holds: Counter[FileId] = Counter()
        self.past_message_count = 0
        """Messages of pairings that have ended."""

    def backing(self, fd: int, path: str, region: MemoryRegion) -> SlotBacking:
        """The pairing with this file, made when the VM has none yet. Takes the fd.

        EINVAL no file of a memfsd mount, not sealed for a guest, a region that ends past its end or past the last GPA:
        all before pairing, which is for life, and before the wire, which carries no such page.
        """
        status = os.fstat(fd)
        link = self.links.get(FileId(status.st_dev, status.st_ino))
        if link is not None:
            os.close(fd)
            if link.lost:
                raise Refused(errno.EHOSTDOWN, f"{quoted(path)}: {link.lost}")
            if (refused := _unfit(region, path, status.st_size)) is not None:
                raise refused
            return _backing(link, path)
        try:
            link = self._pair_checked(fd, path, region, status.st_size)
        except Refused:
            os.close(fd)
            raise
        try:
            with self._vm.mmu.lock:
                link.base = self._vm.physmap.add(link.memory, 0, link.frame_count)
        except Refused:
            link.close()
            raise
        self.links[link.file] = link
        try:
            link.start()
        except Refused as refused:
            self.end_unused(link)
            raise Refused(refused.errno, f"{quoted(path)}: {refused.reason}") from None
        return _backing(link, path)

    def _pair_checked(self, fd: int, path: str, region: MemoryRegion, size: int) -> StoreLink:
        """As KVM asks: what the file is comes before how long it is, and that before the end of GPAs."""
        refused = _unfit(region, path, size)
        try:
            if refused is None:
                return self._pair(fd, self._vm.name, self._notifier)
            store_of_sealed(fd)
        except (OSError, PeerLost, Refused) as error:
            if isinstance(error, Refused):
                raise Refused(error.errno, f"{quoted(path)}: {error.reason}") from None
            raise Refused(getattr(error, "errno", None) or errno.EHOSTDOWN, f"{quoted(path)}: {error}") from None
        raise refused

    def paired(self, file: PairedFile) -> SlotBacking:
        """What a further slot of this file shows. ENOENT when the pairing has ended."""
        return _backing(self._paired(file), file.path)

    def name(self, backing: SlotBacking) -> PairedFile:
        """The file of a private slot."""
        link = self._link(backing.gmem)
        assert link is not None
        return PairedFile(link.file, backing.path, link.punch_order)

    def punch(self, file: PairedFile, pgoff: Pgoff, page_count: int) -> None:
        """fallocate(PUNCH_HOLE | KEEP_SIZE) of the file's pages [pgoff, pgoff + page_count) by user space, which counts
        them in 4 KiB. Refused with its errno; ENOENT when the pairing has ended."""
        self._paired(file).punch(pgoff, page_count)

    def convert(self, file: PairedFile, pgoff: Pgoff, page_count: int, *, private: bool) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2 of the file by user space. As `punch`; EAGAIN: somebody holds a page."""
        self._paired(file).convert(pgoff, page_count, private=private)

    def attributes(self, file: PairedFile, pgoff: Pgoff) -> tuple[bool, int]:
        """StoreLink.attributes; ENOENT when the pairing has ended."""
        return self._paired(file).attributes(pgoff)

    def hold(self, files: Iterable[PairedFile]) -> None:
        """Their pairings stay until `unhold`, whatever slots go. ENOENT, and nothing is held, when one has ended."""
        files = list(files)
        with self._slots_lock:
            for file in files:
                self._paired(file)
            self._holds.update(file.id for file in files)

    def unhold(self, files: Iterable[PairedFile]) -> None:
        """The inverse: a pairing that no slot is of and nobody holds ends."""
        with self._slots_lock:
            for file in files:
                self._holds[file.id] -= 1
                if not self._holds[file.id]:
                    del self._holds[file.id]
                    if file.id in self.links:
                        self.end_unused(self.links[file.id])

    def _paired(self, file: PairedFile) -> StoreLink:
        link = self.links.get(file.id)
        if link is None:
            raise Refused(
                errno.ENOENT,
                f"{quoted(file.path)}: its last slot was deleted, and its pairing has ended: set a slot of it again",
            )
        return link

    def end_unused(self, gmem: Gmem) -> None:
        """BYE if no slot is of its file and nobody holds it. No GFN maps its window: its slots were zapped."""
        link = self._link(gmem)
        if link is None or self._vm.slots[PRIVATE].has_file(gmem) or link.file in self._holds:
            return
        link.close()
        del self.links[link.file]
        self.past_message_count += link.message_count
        with self._vm.mmu.lock:
            self._vm.physmap.remove(link.base)

    def _link(self, gmem: Gmem | None) -> StoreLink | None:
        """None: the pairing has ended."""
        return next((link for link in self.links.values() if link is gmem), None)

    def bind(self, slot: Memslot, segments: list[GfnRange]) -> None:
        """All of them, or Refused."""
        link, done = slot.gmem, list[GfnRange]()
        try:
            for start, end in segments:
                link.bind(slot.id, start, slot.pgoff_of(start), end - start)
                done.append((start, end))
        except (PeerLost, Refused) as error:
            with contextlib.suppress(Refused):
                self.unbind(slot, done)
            if isinstance(error, Refused):
                raise
            raise Refused(errno.EHOSTDOWN, str(error)) from None

    def unbind(self, slot: Memslot, segments: list[GfnRange]) -> None:
        """All of them, or Refused."""
        link, done = slot.gmem, list[GfnRange]()
        try:
            for start, end in segments:
                link.unbind(slot.pgoff_of(start), end - start)
                done.append((start, end))
        except (PeerLost, Refused) as error:
            with contextlib.suppress(Refused):
                self.bind(slot, done)
            if isinstance(error, Refused):
                raise
            raise Refused(errno.EHOSTDOWN, str(error)) from None

    @contextlib.contextmanager
    def announce_change(self, slot: Memslot) -> Iterator[None]:
        """A private slot changes, here and in the store; until both know, a report says so. One at a time."""
        gmem = slot.gmem
        with self._vm.mmu.lock:
            self._notifier.changing[gmem] = slot.pgoff, slot.pgoff + slot.page_count
        try:
            yield
        finally:
            with self._vm.mmu.lock:
                del self._notifier.changing[gmem]

    def forget(self, slot: Memslot, segments: list[GfnRange]) -> None:
        """Tell the store, if it is there, that these GFNs are not bound any more."""
        for start, end in segments:
            try:
                slot.gmem.unbind(slot.pgoff_of(start), end - start)
            except PeerLost:
                return


def _backing(link: StoreLink, path: str) -> SlotBacking:
    return SlotBacking(link.memory, link.base, link, path=path)


def _unfit(region: MemoryRegion, path: str, size: int) -> Refused | None:
    """Why a region cannot show a file of this size; None when it can."""
    end = region.offset + region.size
    if end > size:
        return Refused(
            errno.EINVAL, f"{quoted(path)}: offset + size, {end:#x}, is past the end of the file ({size:#x}): give less"
        )
    try:
        check_addressable(region)
    except Refused as refused:
        return refused
    return None
