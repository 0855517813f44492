"""The kernel between mappings of a guest_memfd and memfsd: its page cache.

A touch of a page that is not cached is a READ of it, which is answered with EIO where it is private (SIGBUS). A page is
locked from then on until it is there, and while it is written back and dropped; a process's own load or store takes
no time.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from memfsd.common.linux import PageRange
from memfsd.store.store import Store
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import ORDER_4K, PAGE_SHIFT, PAGE_SIZE, Ino

from .accesses import Kind
from .scheduler import Scheduler, Task

_Key = tuple[Ino, int]
Fuse = Callable[[Callable[[], None]], None]


class PageCache:
    """fuse: a request to memfsd, which another thread of it answers."""

    def __init__(self, scheduler: Scheduler, store: Store, fuse: Fuse) -> None:
        self._scheduler = scheduler
        self._store = store
        self._fuse = fuse
        self._handles: dict[Ino, int] = {}
        self._pages: dict[_Key, bytearray] = {}
        self._stored: set[_Key] = set()
        self._lockers: dict[_Key, Task] = {}
        store.runner.forget_cache = self._forget

    def open(self, ino: Ino) -> None:
        """Somebody has the file open for as long as the world lasts."""
        opened, work = self._store.files.open(ino, os.O_RDWR, os.geteuid())
        work.run()
        self._handles[ino] = opened.handle

    def close(self) -> None:
        """All are closed; what was stored and not written back is lost."""
        while self._handles:
            _, handle = self._handles.popitem()
            self._store.files.release(handle).run()

    def read(self, ino: Ino, offset: int, length: int) -> bytes:
        """Within a page. Refused: SIGBUS."""
        return self._access(ino, offset, length, None)

    def write(self, ino: Ino, offset: int, data: bytes) -> None:
        self._access(ino, offset, len(data), data)

    def truncate(self, ino: Ino, start: int, end: int) -> None:
        """Pages [start, end) were punched: nothing is written back."""
        for key in self._known(ino, start, end):
            with self._locked(key):
                self._drop(key)

    def _access(self, ino: Ino, offset: int, length: int, data: bytes | None) -> bytes:
        key, at = (ino, offset >> PAGE_SHIFT), offset % PAGE_SIZE
        while True:
            with self._locked(key):
                page = self._pages.get(key)
                if page is not None and data is not None:
                    page[at : at + length] = data
                    self._stored.add(key)
                if page is not None:
                    return bytes(page[at : at + length])
            self._fuse(lambda: self._fill(key))

    def _fill(self, key: _Key) -> None:
        with self._locked(key):
            if key not in self._pages:
                found = self._store.files.read(self._handles[key[0]], key[1] << PAGE_SHIFT, PAGE_SIZE)
                self._pages[key] = bytearray(found)

    def _forget(self, ino: Ino, offset: int, length: int) -> None:
        """invalidate_inode_pages2_range(): written back, and dropped."""
        end = offset + length >> PAGE_SHIFT if length else 1 << 40
        for key in self._known(ino, offset >> PAGE_SHIFT, end):
            with self._locked(key):
                if key in self._stored:
                    data = bytes(self._pages[key])
                    self._store.files.write(self._handles[ino], key[1] << PAGE_SHIFT, data, stored=True)
                self._drop(key)

    def _known(self, ino: Ino, start: int, end: int) -> list[_Key]:
        """Cached, or on their way into the cache."""
        return sorted(key for key in {*self._pages, *self._lockers} if key[0] == ino and start <= key[1] < end)

    def _drop(self, key: _Key) -> None:
        self._pages.pop(key, None)
        self._stored.discard(key)

    @contextlib.contextmanager
    def _locked(self, key: _Key) -> Iterator[None]:
        """The kernel unlocks what memfsd died with."""
        scheduler, folio = self._scheduler, ("folio", f"page {key[1]:#x} of inode {key[0]}")

        def is_free() -> bool:
            return key not in self._lockers or self._lockers[key].dead

        scheduler.reach("folio locked", is_free, None, (folio, Kind.TAKE))
        self._lockers[key] = scheduler.me()
        try:
            yield
        finally:
            if self._lockers.get(key) is scheduler.me():
                del self._lockers[key]
            scheduler.touch(folio, Kind.RELEASE)


class CachedMapping:
    """A mapping of a file by user space of a VM, as KVM reaches it: where a touch would be SIGBUS, it is EFAULT."""

    leaf_order = ORDER_4K
    uncached = False
    waits = True

    def __init__(self, cache: PageCache, ino: Ino, size: int) -> None:
        self._cache = cache
        self._ino = ino
        self.frame_count: int | None = size >> PAGE_SHIFT

    def read(self, offset: int, length: int) -> bytes:
        with _sigbus():
            return self._cache.read(self._ino, offset, length)

    def write(self, offset: int, data: bytes) -> None:
        with _sigbus():
            self._cache.write(self._ino, offset, data)

    def touch(self, offset: int, page_count: int) -> None:
        for page in range(page_count):
            self.write(offset + page * PAGE_SIZE, self.read(offset + page * PAGE_SIZE, 1))

    def populated(self, first: int, end: int) -> list[PageRange]:
        return []

    def mapping(self, frame: int) -> None:
        return None

    def close(self) -> None: ...


@contextlib.contextmanager
def _sigbus() -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        raise OSError(errno.EFAULT, refused.reason) from None
