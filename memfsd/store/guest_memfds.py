"""guest_memfds: how they are made, and how their pages become private or shared."""

import errno
import logging
import os
from collections.abc import Callable

from memfsd.core.gmem import guest_of
from memfsd.core.private.strategies import Convert
from memfsd.core.service import Service
from memfsd.host.windows import Windows
from memfsd.uapi.errors import Refused
from memfsd.uapi.gmem_ioctls import ATTRIBUTE_PRIVATE, CreateGuestMemfd, MemoryAttributes2
from memfsd.uapi.units import PAGE_SHIFT, Ino, Pgoff, PgoffRange

from .invalidator import InvalidateRange, Invalidator

log = logging.getLogger("memfsd.store")


class AttributesRefused(Refused):
    """KVM_SET_MEMORY_ATTRIBUTES2 has changed nothing. error_offset: of the page that it failed for, in bytes."""

    def __init__(self, number: int, reason: str, error_offset: int) -> None:
        super().__init__(number, reason)
        self.error_offset = error_offset


class GuestMemfds:
    """Making one waits for nobody; converting waits for its VM, and for the kernel to let go of the host's pages."""

    def __init__(self, service: Service, windows: Windows, invalidator: Invalidator, now_ns: Callable[[], int]) -> None:
        self._service = service
        self._now_ns = now_ns
        self._windows = windows
        self._invalidator = invalidator

    def create(self, ino: int, handle: int, asked: CreateGuestMemfd) -> None:
        """An empty file, which this handle alone has open and cannot read, becomes a guest_memfd: its memory is there
        from now on, whatever VMs come and go. Errors as Service.create_guest_memfd; EMFILE and its like."""
        with self._service.lock:
            self._service.check_guest_memfd(ino, handle, *asked)
        try:
            window = self._windows.make_window(Ino(ino))
        except OSError as error:
            number = error.errno or errno.EIO
            raise Refused(number, f"memfsd cannot make a window for inode {ino}: {error.strerror}") from None
        try:
            with self._service.lock:
                self._service.create_guest_memfd(ino, handle, *asked, self._now_ns())
                self._windows.adopt_window(Ino(ino), window)
        except Refused:
            os.close(window)
            raise
        log.info("inode %d is a guest_memfd of %d bytes, flags %#x", ino, asked.size, asked.flags)

    def set_attributes(self, ino: int, asked: MemoryAttributes2) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2: the pages become private, or shared, in an invalidation: BEGIN, zapped, stored,
        END. Contents stay, or go, as the profile says. Pages that become private have left the host's page tables.

        AttributesRefused EAGAIN: another invalidation holds the range; try again. ETIMEDOUT: its VM did not
        acknowledge, and was cut off. Else the errors of GuestMemory.check_attributes.
        """
        with self._service.lock:
            file = self._service.inodes.regular(ino)
            if self._service.gmem.check_attributes(file, asked) is None:
                return
        to_shared = not asked.attributes & ATTRIBUTE_PRIVATE
        strategy = Convert(to_shared=to_shared, destroys=self._service.options.abi.destroys_unmapped)
        try:
            with self._invalidator.hold(guest_of(file)):
                with self._service.lock:
                    changing = self._service.gmem.check_attributes(file, asked)
                if changing is not None:
                    self._invalidator.invalidate_held(file, InvalidateRange(Ino(ino), *changing, strategy))
        except Refused as refused:
            if refused.errno == errno.EBUSY:
                raise AttributesRefused(errno.EAGAIN, refused.reason, asked.offset) from None
            raise

    def shared_ranges(self, ino: int) -> list[PgoffRange]:
        """Which pages the host may reach. [] of a file that is no guest_memfd."""
        with self._service.lock:
            file = self._service.inodes.regular(ino)
            memfd = None if file.guest is None else file.guest.memfd
            return [] if memfd is None else memfd.shared_ranges(Pgoff(0), Pgoff(file.size >> PAGE_SHIFT))
