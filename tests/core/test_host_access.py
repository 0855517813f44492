"""What the host may reach of a guest_memfd, and where what it stored goes: in the core alone."""

import pytest

from memfsd.core.files.inodes import Regular
from memfsd.core.private.strategies import PUNCH, Convert
from memfsd.uapi.abi import GMEM_INPLACE, GmemFlag
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import PAGE_SIZE
from tests.support.core_store import CoreStore, refused

BOTH = GmemFlag.MMAP | GmemFlag.INIT_SHARED
PAGES = 4


def memfd_of(store: CoreStore, flags: GmemFlag = BOTH) -> tuple[Regular, int]:
    """The file, and a handle that reads and writes."""
    return store.memfd(f"file{store.tick()}", flags, PAGES)


@pytest.fixture
def store() -> CoreStore:
    return CoreStore(abi=GMEM_INPLACE)


def read(store: CoreStore, handle: int, page: int, pages: int = 1) -> bytes:
    return store.store.files.read(handle, page * PAGE_SIZE, pages * PAGE_SIZE)


def private(file: Regular, page: int) -> None:
    assert file.guest is not None
    assert file.guest.memfd is not None
    file.guest.memfd.convert(page, page + 1, to_shared=False)


def store_page(store: CoreStore, handle: int, page: int, byte: bytes, pages: int = 1) -> int:
    """As the kernel writes back what a mapping stored."""
    return store.store.files.write(handle, page * PAGE_SIZE, byte * PAGE_SIZE * pages, stored=True)


def test_a_touched_page_is_allocated_as_at_a_page_fault(store: CoreStore) -> None:
    file, handle = memfd_of(store)
    assert read(store, handle, 1) == bytes(PAGE_SIZE)
    assert file.pages.page_count == 1
    pfn = file.pages.lookup(1)
    assert pfn is not None
    assert store.pool.state(pfn) is FrameState.PRIVATE


def test_what_is_read_ahead_is_not_allocated(store: CoreStore) -> None:
    file, handle = memfd_of(store)
    assert read(store, handle, 0, PAGES) == bytes(PAGES * PAGE_SIZE)
    assert file.pages.page_count == 0


def test_what_is_stored_is_read_again(store: CoreStore) -> None:
    _, handle = memfd_of(store)
    assert store_page(store, handle, 1, b"x", 2) == 2 * PAGE_SIZE
    assert read(store, handle, 0, PAGES) == bytes(PAGE_SIZE) + b"x" * 2 * PAGE_SIZE + bytes(PAGE_SIZE)


def test_what_is_stored_changes_the_times(store: CoreStore) -> None:
    file, handle = memfd_of(store)
    before = (file.mtime_ns, file.ctime_ns, file.atime_ns)
    store_page(store, handle, 1, b"x")
    assert (file.mtime_ns > before[0], file.ctime_ns > before[1], file.atime_ns) == (True, True, before[2])


def test_a_read_that_contains_a_private_page_is_eio(store: CoreStore) -> None:
    file, handle = memfd_of(store)
    private(file, 2)
    assert read(store, handle, 1) == bytes(PAGE_SIZE)
    for page, pages in ((2, 1), (1, 2), (0, PAGES)):
        with refused("EIO", match="private"):
            read(store, handle, page, pages)
    with refused("EIO", match="private"):
        store_page(store, handle, 2, b"x")
    assert file.pages.lookup(2) is None


def test_nothing_is_read_or_written_without_a_mapping(store: CoreStore) -> None:
    _, handle = memfd_of(store)
    with refused("EINVAL", match="map it"):
        store.store.files.write(handle, 0, b"x")
    _, without = memfd_of(store, GmemFlag(0))
    with refused("EINVAL", match="without the flag mmap"):
        read(store, without, 0)


def test_reads_end_at_the_end_of_the_file(store: CoreStore) -> None:
    _, handle = memfd_of(store)
    assert read(store, handle, PAGES) == b""
    assert len(read(store, handle, PAGES - 1, 2)) == PAGE_SIZE


def test_a_full_pool_is_enospc(store: CoreStore) -> None:
    file, handle = memfd_of(store)
    store.fallocate(store.make("other"), 0, 0, store.pool.free_count * PAGE_SIZE)
    with refused("ENOSPC"):
        read(store, handle, 0)
    assert file.pages.page_count == 0


def test_while_a_page_becomes_private_what_was_stored_is_still_taken(store: CoreStore) -> None:
    """KVM has let go; the page is private; only then the kernel writes back what the host had stored."""
    file, handle = memfd_of(store)
    store_page(store, handle, 0, b"a")
    store.gmem.invalidate_begin(file, 0, 1, Convert(to_shared=False, destroys=False))
    store.gmem.take(file, None)
    with refused("EIO"):
        read(store, handle, 0)
    assert store_page(store, handle, 0, b"b") == PAGE_SIZE
    store.gmem.invalidate_end(file)
    with refused("EIO"):
        store_page(store, handle, 0, b"c")
    convert_back = Convert(to_shared=True, destroys=False)
    store.invalidate(file, 0, 1, convert_back)
    assert read(store, handle, 0) == b"b" * PAGE_SIZE


def test_while_a_page_is_punched_it_is_zero_and_what_was_stored_is_dropped(store: CoreStore) -> None:
    file, handle = memfd_of(store)
    store_page(store, handle, 0, b"a", 2)
    store.gmem.invalidate_begin(file, 0, 1, PUNCH)
    effects = store.gmem.take(file, None)
    assert effects
    assert read(store, handle, 0) == bytes(PAGE_SIZE)
    assert store_page(store, handle, 0, b"b", 2) == 2 * PAGE_SIZE
    assert file.pages.lookup(0) is None, "no frame comes into a range that is being taken"
    store.perform(effects)
    store.gmem.invalidate_end(file)
    assert read(store, handle, 0, 2) == bytes(PAGE_SIZE) + b"b" * PAGE_SIZE


def test_what_was_stored_in_a_page_that_has_failed_since_is_lost(store: CoreStore) -> None:
    """The kernel may still have it, and drops it: the page gets no other frame until it is punched."""
    file, handle = memfd_of(store)
    store_page(store, handle, 0, b"a")
    store.store.failures.poison(file.ino, 0)
    assert store.forgotten_ranges == [(file.ino, 0, PAGE_SIZE)]
    for call in (lambda: store_page(store, handle, 0, b"b"), lambda: read(store, handle, 0)):
        with refused("EIO", match="failed"):
            call()
    assert file.pages.page_count == 0
    assert store.audit() == []


def test_untouched_grants_to_a_vm_that_has_ended_are_taken_back(store: CoreStore) -> None:
    file, _ = store.memfd("grown", GmemFlag(0), 32)
    paired = store.paired(file)
    paired.bind(1, 0x100, 0, 32)
    at = 0
    while at < 24:
        at += paired.get_pfn(at, 32).page_count
    guest = file.guest
    assert guest is not None and guest.pending > 0
    paired.bye()
    held = file.pages.page_count
    assert store.store.reclaimer.reclaim()
    assert guest.pending == 0 < held - file.pages.page_count
    assert store.audit() == []
