"""Memory that fails, as the kernel's memory_failure() handles it: the frame is out of service for good."""

import errno
import logging

from memfsd.core.files.inodes import Regular
from memfsd.core.gmem import guest_of
from memfsd.core.private.strategies import POISON
from memfsd.core.service import Service
from memfsd.host.effect_runner import EffectRunner
from memfsd.uapi.errors import Refused
from memfsd.uapi.messages import MemoryFailureReply
from memfsd.uapi.units import Ino, Pfn

from .invalidator import InvalidateRange, Invalidator

log = logging.getLogger("memfsd.store")


class Failures:
    """May wait for the file's VM, which acknowledges before the frame's contents go."""

    def __init__(self, service: Service, runner: EffectRunner, invalidator: Invalidator) -> None:
        self._service = service
        self._runner = runner
        self._invalidator = invalidator

    def poison(self, ino: Ino, pgoff: int) -> MemoryFailureReply:
        """The frame of this page fails. Who touches a private page gets EHWPOISON, who reads or writes that of an
        ordinary file EIO, or SIGBUS through a mapping; until it is punched or truncated away.

        EINVAL past the end, EHWPOISON failed before, ENXIO no frame; ETIMEDOUT as for a punch.
        """
        with self._service.lock:
            file = self._service.inodes.regular(ino)
            is_sealed = file.guest is not None
            if not is_sealed:
                pfn, count = file.pages.lookup(pgoff), 1
                effects = self._service.data.poison(file, pgoff)
        if not is_sealed:
            self._runner.perform(effects)
        else:
            with self._invalidator.hold(guest_of(file)):
                try:
                    pfn, count = self._poison_sealed(file, pgoff, whole=False)
                except Refused as refused:
                    if refused.errno != errno.ENOMEM:
                        raise
                    pfn, count = self._poison_sealed(file, pgoff, whole=True)
        assert pfn is not None
        log.info("memory failure: frame %#x+%d of inode %d is out of service", pfn, count, ino)
        return MemoryFailureReply(pfn, count)

    def _poison_sealed(self, file: Regular, pgoff: int, *, whole: bool) -> tuple[Pfn | None, int]:
        """ENOMEM, and nothing was done: the VM could not split its mapping."""
        with self._service.lock:
            start, end = self._service.gmem.check_poison(file, pgoff, whole=whole)
            pfn = file.pages.lookup(start)
        self._invalidator.invalidate_held(file, InvalidateRange(file.ino, start, end, POISON))
        return pfn, end - start
