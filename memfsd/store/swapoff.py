"""swapoff: nothing leaves any more, and all that is out comes back, in steps."""

import errno
import time
from typing import NamedTuple

from memfsd.core.files.inodes import Regular
from memfsd.core.gmem import guest_of
from memfsd.core.service import Service
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_SWAP_PAGES, SWAP_WINDOW_PAGES
from memfsd.uapi.units import Pgoff

from .deadlines import Deadlines
from .swapper import Swapper

_OF_THE_WHOLE_FILE = frozenset({errno.ENOTCONN, errno.ETIMEDOUT, errno.EBUSY})
"""Refusals of swap_in that the file's next page would get, too."""


class SwappedOff(NamedTuple):
    """One step: pages that came back, pages that cannot, why the first cannot, and whose they are; pages of all files
    that are out; where to go on (None: nothing is out from there on)."""

    page_count: int = 0
    stayed: int = 0
    why: Refused | None = None
    name: bytes = b""
    vm: str = ""
    left: int = 0
    next_page: tuple[int, int] | None = None


class Swapoff:
    """Keeps nothing: where to go on is the caller's."""

    def __init__(self, service: Service, swapper: Swapper, deadlines: Deadlines) -> None:
        self._service = service
        self._swapper = swapper
        self._deadlines = deadlines

    def swap_off(self, ino: int = 0, pgoff: int = 0) -> SwappedOff:
        """Nothing leaves any more; some pages of one file come back, of what is out from this page of this file on: as
        many as do before Deadlines.swap_off_s.

        A page that cannot come back stays out, as does the rest of a file whose VM does not answer: the others go on.
        ENOSPC: they do not fit, and swap is on again. EOPNOTSUPP: there is no swap file.
        """
        service, until = self._service, time.monotonic() + self._deadlines.swap_off_s
        with service.lock:
            slots = service.slots
            if not slots.total:
                raise slots.no_room()
            slots.is_on = False
            found = self._next_out(ino, pgoff)
        if found is None:
            return SwappedOff(left=slots.used)
        (file, pages), came, stayed, why = found, 0, 0, None
        back_to, next_page = 0, (int(file.ino), pages[-1] + 1)
        for page in pages:
            if page < back_to:
                continue
            if came + stayed and time.monotonic() >= until:
                next_page = int(file.ino), page
                break
            try:
                count = self._swapper.swap_in(file, Pgoff(page), MAX_SWAP_PAGES)
                came, back_to = came + count, page + count
            except Refused as refused:
                if refused.errno == errno.ENOSPC:
                    raise self._does_not_fit() from None
                why = why or refused
                if refused.errno in _OF_THE_WHOLE_FILE:
                    with service.lock:
                        stayed += guest_of(file).absent.swapped_count
                    next_page = int(file.ino) + 1, 0
                    break
                stayed += 1
        with service.lock:
            active, name = guest_of(file).active, service.names.name_of(file)
            return SwappedOff(came, stayed, why, name, active.vm if active else "", slots.used, next_page)

    def _does_not_fit(self) -> Refused:
        with self._service.lock:
            slots, free = self._service.slots, self._service.pool.free_count
            slots.is_on = True
            return Refused(
                errno.ENOSPC,
                f"{slots.used} pages are still out and {free} frames are free: punch or remove files, then try again;"
                " swap stays on",
            )

    def _next_out(self, ino: int, pgoff: int) -> tuple[Regular, list[int]] | None:
        """The next file with pages that are out, and some of these. Call with Service.lock held."""
        for file in sorted(self._service.inodes.sealed_files(), key=lambda file: file.ino):
            if file.ino >= ino and guest_of(file).absent.swapped_count:
                start = pgoff if file.ino == ino else 0
                if pages := guest_of(file).absent.swapped_from(start, SWAP_WINDOW_PAGES):
                    return file, pages
        return None
