"""Devices: sealed files whose memory is the device's own."""

import errno
import logging

from memfsd.core.gmem import guest_of
from memfsd.core.private.strategies import REVOKE
from memfsd.core.service import Service
from memfsd.host.windows import Windows
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_DEVICES
from memfsd.uapi.units import PAGE_SHIFT, Ino, Pgoff

from .invalidator import InvalidateRange, Invalidator

log = logging.getLogger("memfsd.store")


class Devices:
    """Adding waits for nobody; removing waits for the VM that has the device."""

    def __init__(self, service: Service, windows: Windows, invalidator: Invalidator) -> None:
        self._service = service
        self._windows = windows
        self._invalidator = invalidator

    def add(self, ino: Ino) -> None:
        """The sealed file becomes a device, of the size that it has.

        EINVAL not sealed, or no size; EFBIG too large; EBUSY it holds pages, or has a VM; EEXIST it is one; ENOSPC
        there are MAX_DEVICES; EAGAIN it was resized meanwhile.
        """
        gmem = self._service.gmem
        with self._service.lock:
            file = self._service.inodes.regular(ino)
            gmem.check_device(file)
            size = file.size
        try:
            fd = self._windows.make_device(ino, size)
        except OSError as error:
            number = error.errno or errno.EIO
            raise Refused(number, f"memfsd cannot make {size} bytes of device memory: {error.strerror}") from None
        with self._invalidator.hold(guest_of(file)), self._service.lock:
            try:
                gmem.check_device(self._service.inodes.regular(ino))  # a VM may have come since
                if file.size != size:
                    raise Refused(errno.EAGAIN, f"inode {ino} was resized meanwhile: add the device again")
                if self._windows.device_count() >= MAX_DEVICES:
                    raise Refused(errno.ENOSPC, f"there are {MAX_DEVICES} devices: remove one first")
            except Refused:
                self._windows.close_device(fd)
                raise
            gmem.make_device(file)
            self._windows.adopt_device(ino, fd)
        log.info("inode %d is a device of %d bytes", ino, size)

    def remove(self, ino: Ino) -> None:
        """Its VM lets go of it first (REVOKE); then it is dead: ENODEV for whoever asks for its pages again.

        EINVAL it is no device, ENODEV it is dead already. ETIMEDOUT its VM did not acknowledge and was cut off: the
        device is dead all the same.
        """
        with self._service.lock:
            file = self._service.inodes.regular(ino)
            guest = guest_of(file)
            if guest.device is None:
                raise Refused(errno.EINVAL, f"inode {ino} is not a device: rm removes it")
        with self._invalidator.hold(guest):
            guest.device.check_there()
            end = Pgoff(file.size >> PAGE_SHIFT)
            self._invalidator.invalidate_held(file, InvalidateRange(ino, Pgoff(0), end, REVOKE))
        log.info("the device of inode %d is removed", ino)
