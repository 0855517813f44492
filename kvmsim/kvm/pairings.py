"""The pairings of a VM, and what the store is told of its slots."""

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from kvmsim.memory.memory import Memory
from kvmsim.store.link import Callbacks, FileId, StoreLink
from memfsd.common import sync
from memfsd.common.quote import quoted
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.proof import SECRET_BYTES

from .backing import Backing, Translation, link_of
from .notifier import StoreCallbacks
from .slots.memslots import Memslot
from .vm import Vm


class Pairings(StoreCallbacks):
    """`slots_lock` serialises changes of slots and links; down-calls are made with it, never with Mmu.lock."""

    def __init__(self, vm: Vm[Memory, Translation], pair: Callable[[int, str, Callbacks], StoreLink]) -> None:
        """pair makes the pairing with the file behind an fd."""
        super().__init__(vm)
        self._pair = pair
        self.slots_lock = sync.lock("Machine.slots_lock")
        self.secret = os.urandom(SECRET_BYTES)
        self.links: dict[FileId, StoreLink] = {}
        """One for each file that a slot is of, or that is held."""
        self._holds: Counter[StoreLink] = Counter()
        self.past_message_count = 0
        """Messages of pairings that have ended."""

    def _link(self, fd: int, path: str, end: int) -> Backing:
        """The pairing with this file, made when the VM has none yet. EINVAL for a range that ends past the file's end:
        before pairing, which is for life, and before the wire, which carries no such page. Takes the fd."""
        status = os.fstat(fd)
        link = self.links.get(FileId(status.st_dev, status.st_ino))
        if link is not None:
            os.close(fd)
            if link.lost:
                raise Refused(errno.EHOSTDOWN, f"{quoted(path)}: {link.lost}")
            if end > status.st_size:
                raise _past_end(path, end, status.st_size)
            return Backing(link.memory, link.base, link, path=path)
        if end > status.st_size:
            os.close(fd)
            raise _past_end(path, end, status.st_size)
        try:
            link = self._pair(fd, self.vm.name, self)
        except (OSError, PeerLost, Refused) as error:
            os.close(fd)
            if isinstance(error, Refused):
                raise Refused(error.errno, f"{quoted(path)}: {error.reason}") from None
            raise Refused(getattr(error, "errno", None) or errno.EHOSTDOWN, f"{quoted(path)}: {error}") from None
        try:
            with self.vm.mmu.lock:
                link.base = self.vm.physmap.add(link.memory, 0, link.frame_count)
        except Refused:
            link.close()
            raise
        self.links[link.file] = link
        try:
            link.start()
        except Refused as refused:
            self._end_unused(link)
            raise Refused(refused.errno, f"{quoted(path)}: {refused.reason}") from None
        return Backing(link.memory, link.base, link, path=path)

    def hold(self, slots: Iterable[Memslot]) -> None:
        """Their pairings stay until `unhold`, whatever slots go. ENOENT, and nothing is held, when one has ended."""
        slots = list(slots)
        with self.slots_lock:
            for slot in slots:
                if self.links.get(link_of(slot).file) is not link_of(slot):
                    raise Refused(errno.ENOENT, f"{slot} was deleted meanwhile, and its pairing has ended")
            self._holds.update(link_of(slot) for slot in slots)

    def unhold(self, slots: Iterable[Memslot]) -> None:
        with self.slots_lock:
            for link in map(link_of, slots):
                self._holds[link] -= 1
                if not self._holds[link]:
                    del self._holds[link]
                    self._end_unused(link)

    @contextlib.contextmanager
    def holding(self, slots: list[Memslot]) -> Iterator[None]:
        """For the time of a conversion."""
        self.hold(slots)
        try:
            yield
        finally:
            self.unhold(slots)

    def _end_unused(self, link: StoreLink) -> None:
        """BYE if no slot is of its file and nobody holds it. No GFN maps its window: its slots were zapped."""
        if self.vm.slots[True].has_file(link) or link in self._holds or self.links.get(link.file) is not link:
            return
        link.close()
        del self.links[link.file]
        self.past_message_count += link.message_count
        with self.vm.mmu.lock:
            self.vm.physmap.remove(link.base)

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

    def _forget(self, slot: Memslot, segments: list[tuple[int, int]]) -> None:
        """Tell the store, if it is there, that these GFNs are not bound any more."""
        for start, end in segments:
            try:
                link_of(slot).unbind(slot.pgoff_of(start), end - start)
            except PeerLost:
                return


def _past_end(path: str, end: int, size: int) -> Refused:
    return Refused(
        errno.EINVAL, f"{quoted(path)}: offset + size, {end:#x}, is past the end of the file ({size:#x}): give less"
    )
