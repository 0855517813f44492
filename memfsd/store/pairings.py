"""VMs of sealed files: pair, bind, get_pfn, and how they end."""

import errno
import logging
import os
import time
from collections.abc import Callable

from memfsd.core.files.inodes import Regular
from memfsd.core.gmem import SwappedOut, guest_of
from memfsd.core.memory.published_map import PageMap
from memfsd.core.private.gmem_file import Pairing
from memfsd.core.service import Service
from memfsd.host.effect_runner import EffectRunner
from memfsd.host.page_maps import Mapped, make_page_map
from memfsd.host.windows import Windows
from memfsd.uapi.errors import Refused
from memfsd.uapi.messages import STORE_OPERATIONS, AttributesReply, GetPfnReply, Kind, MemoryType, StatReply
from memfsd.uapi.proof import Token
from memfsd.uapi.units import PAGE_SHIFT, Ino, Pgoff, Seq

from .deadlines import Deadlines
from .invalidator import Invalidator
from .peer import Peer
from .reclaim import Reclaimer
from .swapper import Swapper

log = logging.getLogger("memfsd.peers")


_ATTEMPTS = 16
"""Of one grant: others may take what came free, or swap out what came back."""


class PairedFile:
    """A sealed file as its VM sees it, from PAIR to the VM's end."""

    def __init__(
        self, pairings: "Pairings", file: Regular, peer: Peer, window: int, seq: Seq, mapped: Mapped | None
    ) -> None:
        """window: its fd. seq: the file's sequence number at PAIR. mapped: its page map, if it has one."""
        self.file = file
        self.peer = peer
        self.window = window
        self.seq = seq
        self.page_map = -1 if mapped is None else mapped.fd
        """Its fd."""
        self.map_pages = 0 if mapped is None else mapped.page_count
        device = guest_of(file).device
        self.memory_type = MemoryType.WB if device is None else MemoryType.UC
        self.window_frames = pairings.service.pool.frame_count if device is None else device.page_count
        self._service = pairings.service
        self._lock, self._gmem = pairings.service.lock, pairings.service.gmem
        self._invalidator = pairings.invalidator
        self._pairings = pairings
        self.is_released = False

    def bind(self, slot: int, gfn: int, pgoff: int, page_count: int) -> None:
        """Pages [pgoff, pgoff + page_count) of the file are at gfn, in this slot. ENOTCONN after `disconnect`, EBUSY
        when an invalidation does not end, and the errors of GuestMemory.bind."""
        file = self.file
        with self._invalidator.hold(guest_of(file)), self._service.lock:
            if guest_of(file).active is None:
                raise Refused(errno.ENOTCONN, f"this VM was cut off from inode {file.ino}: use a new file")
            self._service.gmem.bind(file, slot, gfn, pgoff, page_count)

    def unbind(self, pgoff: int, page_count: int) -> None:
        """In steps; whoever changes bindings waits for the last one. EBUSY as `bind`, EINVAL not all are bound."""
        file = self.file
        with self._invalidator.hold(guest_of(file)):
            while page_count:
                with self._service.lock:
                    taken = self._service.gmem.unbind(file, pgoff, page_count)
                pgoff, page_count = pgoff + taken, page_count - taken

    def get_pfn(self, pgoff: int, max_pages: int, order: int = 0) -> GetPfnReply:
        """GuestMemory.get_pfn. Once more when the page was swapped out, and is back; and when the pool is full, after
        taking back what no guest has touched, or has used lately, or else after what has ended has given its frames
        back: only then it blocks."""
        file = self.file
        try:
            self._lock.acquire()  # not `with`, which would take twice as long on the fault path
            try:
                return self._gmem.get_pfn(file, pgoff, max_pages, order)
            finally:
                self._lock.release()
        except Refused as refused:
            return self._get_pfn_after(refused, pgoff, max_pages, order)

    def _get_pfn_after(self, refused: Refused, pgoff: int, max_pages: int, order: int) -> GetPfnReply:
        file, pairings = self.file, self._pairings
        until = time.monotonic() + pairings.deadlines.grant_s
        with self._lock:
            swaps = self._gmem.swaps(file)
        for attempt in range(_ATTEMPTS if swaps else 1):
            if attempt and time.monotonic() >= until:
                break
            # What is free may be on other nodes than the file's: from the second time on pages leave anyway.
            wanted = None if file.order or attempt else 1
            if isinstance(refused, SwappedOut):
                try:
                    pairings.swapper.swap_in(file, Pgoff(pgoff))
                except Refused as failed:
                    refused = failed
            if not isinstance(refused, SwappedOut) and not (
                refused.errno == errno.ENOSPC
                and (
                    pairings.reclaimer.reclaim(file.ino, wanted, swap=swaps)
                    or pairings.reclaimer.await_endings(1 << file.order, queued=True)
                )
            ):
                raise self._with_swap(refused)
            try:
                with self._lock:
                    return self._gmem.get_pfn(file, pgoff, max_pages, order)
            except Refused as again:
                refused = again
        raise self._with_swap(refused)

    def _with_swap(self, refused: Refused) -> Refused:
        """A pool without a free frame is not all that is full."""
        with self._lock:
            slots = self._pairings.service.slots
            if refused.errno == errno.ENOSPC and slots.is_on and not slots.free_count and self._gmem.swaps(self.file):
                refused = Refused(errno.ENOSPC, f"{refused.reason}; and {slots.no_room().reason}")
            return self._gmem.out_of_room(self.file, refused)

    @property
    def memfd_flags(self) -> int:
        """Of KVM_CREATE_GUEST_MEMFD; 0 for a file that was sealed."""
        memfd = guest_of(self.file).memfd
        return 0 if memfd is None else int(memfd.flags)

    def attributes(self, pgoff: int) -> AttributesReply:
        """Which attribute a page of a guest_memfd has, and how far. EINVAL: it was sealed, or ends before."""
        with self._lock:
            file, memfd = self.file, guest_of(self.file).memfd
            end = file.size >> PAGE_SHIFT
            if memfd is None or pgoff >= end:
                raise Refused(errno.EINVAL, f"page {pgoff:#x} of inode {file.ino} has no attributes")
            is_shared, until = memfd.shared_until(pgoff)
            return AttributesReply(int(not is_shared), min(end, end if until is None else until) - pgoff)

    def stat(self) -> StatReply:
        file = self.file
        populated = self._pairings.windows.populated_count(file.ino)
        with self._service.lock:
            guest, pages = guest_of(file), file.pages.page_count
            return StatReply(file.size, pages, guest.untouched(pages, populated), guest.seq)

    # -- the end of the VM

    def bye(self) -> None:
        """The VM let go of everything: back when its frames are free and the file can be paired again."""
        self.peer.said_bye = True
        self.peer.up.shut()
        self._release("BYE")

    def connection_lost(self, why: str, stop_fd: int) -> None:
        """BYE or proven death frees the frames; until then they are quarantined (R6). When stop_fd becomes readable
        the store stops, and nothing waits for that any more."""
        peer, guest = self.peer, guest_of(self.file)
        peer.up.shut()
        if not peer.said_bye and not peer.process.wait_dead(self._pairings.deadlines.proof_s, stop_fd):
            with guest.invalidate_lock:
                if guest.active is not None:
                    self._invalidator.disconnect(peer, why)
            if not peer.process.wait_dead(None, stop_fd):
                return
        self._release(why)

    def _release(self, why: str) -> None:
        peer = self.peer
        with guest_of(self.file).invalidate_lock:
            self._invalidator.exited(peer)
            with self._service.lock:
                effects = self._service.release_guest(peer.ino)
                if peer.said_bye:
                    self._service.gmem.forget_unused(self.file)
                del self._invalidator.peers[peer.ino]
            self._pairings.runner.perform(effects)
        self.is_released = True
        peer.up.close()
        log.info("inode %d: VM %s is gone (%s), its frames are free", peer.ino, peer.vm, why)


class Pairings:
    """Which VM has which sealed file."""

    def __init__(
        self,
        service: Service,
        windows: Windows,
        runner: EffectRunner,
        invalidator: Invalidator,
        reclaimer: Reclaimer,
        swapper: Swapper,
        deadlines: Deadlines,
        *,
        page_maps: bool,
    ) -> None:
        """page_maps: VMs get them."""
        self.operations = STORE_OPERATIONS if page_maps else STORE_OPERATIONS - {Kind.PAGE_MAP}
        """What VMs are told that this store has."""
        self.service = service
        self.windows = windows
        self.runner = runner
        self.invalidator = invalidator
        self.reclaimer = reclaimer
        self.swapper = swapper
        self.deadlines = deadlines

    def peers(self) -> list[Peer]:
        """The live VMs of all files."""
        with self.service.lock:
            return list(self.invalidator.peers.values())

    def is_callable(self, ino: Ino, kind: Kind) -> bool:
        """The file's VM lives and implements this call."""
        with self.service.lock:
            file = self.service.inodes.find(ino)
            active = guest_of(file).active if isinstance(file, Regular) else None
            return active is not None and active.implements(kind)

    def token(self, token_id: bytes, uid: int) -> Token:
        """The token that this id names, of a file that uid may pair. EACCES if there is none."""
        with self.service.lock:
            return self._claimed(token_id, uid)[1]

    def _claimed(self, token_id: bytes, uid: int) -> tuple[Regular, Token]:
        file, token = self.service.file_by_token(token_id)
        if uid not in (0, file.uid):
            raise Refused(errno.EACCES, f"uid {uid} does not own inode {file.ino}: pair as uid {file.uid} or as root")
        return file, token

    def pair(self, token_id: bytes, pairing: Pairing, connect: Callable[[Ino], Peer]) -> PairedFile:
        """The file of this token belongs to the VM for life: EPERM when it has another owner, EACCES as for `token`;
        EBUSY when an invalidation, or the end of the VM's pairing before this one, does not end.

        connect makes what the VM is called through, and is left to its caller when the pairing is refused after all.
        """
        service = self.service
        with service.lock:
            file, _ = self._claimed(token_id, pairing.uid)
            service.gmem.check_owner(file, pairing)
            device, has_window = guest_of(file).device, guest_of(file).memfd is not None
        window, mapped = -1, None
        try:
            if has_window:
                window = self.windows.window_of(file.ino)
            elif device is None:
                window = self.windows.make_window(file.ino)
                if file.size and Kind.PAGE_MAP in self.operations & pairing.operations:
                    mapped = make_page_map(file.ino, file.size >> PAGE_SHIFT)
            else:
                window = self.windows.device_window(file.ino)
            peer = connect(file.ino)
        except OSError as error:
            _close_unused(-1 if has_window else window, mapped)
            number = error.errno or errno.EIO
            raise Refused(number, f"memfsd cannot make a window for inode {file.ino}: {error.strerror}") from None
        try:
            # A pairing that ends has the lock until its frames are free and its window is dropped.
            with self.invalidator.hold(guest_of(file)), service.lock:
                service.inodes.get(file.ino)  # who showed the token may have let go of the file since
                if guest_of(file).device is not device:
                    raise Refused(errno.EAGAIN, f"inode {file.ino} has become a device meanwhile: pair again")
                service.gmem.pair(file, pairing)
                if not has_window:
                    self.windows.adopt_window(file.ino, window)
                self.invalidator.peers[file.ino] = peer
                if mapped is not None:
                    service.gmem.publish(file, PageMap(file.ino, mapped.words))
                seq = guest_of(file).seq
        except Refused:
            _close_unused(-1 if has_window else window, mapped)
            raise
        more = mapped is not None
        while more:
            with service.lock:
                more = service.gmem.publish_more(file)
        log.info("inode %d is paired with VM %s of process %d", file.ino, pairing.vm, pairing.pid)
        return PairedFile(self, file, peer, window, seq, mapped)


def _close_unused(window: int, mapped: Mapped | None) -> None:
    """What a pairing was to get that came to nothing. window: -1 if there is none to close."""
    for fd in (window, -1 if mapped is None else mapped.fd):
        if fd >= 0:
            os.close(fd)
