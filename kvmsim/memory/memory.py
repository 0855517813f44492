"""What slots are backed by: windows of the store, anonymous memory, files."""

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from memfsd.common import sync, trace
from memfsd.common.linux import PageRange, data_ranges, next_data, punch_hole
from memfsd.uapi.errors import NO_RESOURCES, PeerLost, Refused
from memfsd.uapi.gmem_ioctls import MemoryAttributes2
from memfsd.uapi.names import IOC_SET_MEMORY_ATTRIBUTES2
from memfsd.uapi.units import ORDER_1G, ORDER_4K, PAGE_SHIFT, PAGE_SIZE

MADV_POPULATE_WRITE = 23


class Memory(Protocol):
    """Bytes by offset. Errors are OSError; a short file reads and writes as EFAULT, as KVM answers.

    leaf_order: of the largest EPT leaf that may show it. uncached: these are of memory type UC.
    waits: an access is a system call that may wait for the store, and the store for a vCPU to be out of guest mode. So
    it is made out of guest mode, and is Closed when the memory's slot went in between.
    """

    leaf_order: int
    waits: bool
    uncached: bool

    @property
    def frame_count(self) -> int | None:
        """Its pages; None where they can change."""

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes) -> None: ...
    def touch(self, offset: int, page_count: int) -> None:
        """Write one byte of each page, leaving it as it was."""

    def populated(self, first: int, end: int) -> list[PageRange]:
        """Pages [first, end) for which the kernel has memory."""

    def mapping(self, frame: int) -> "Mapping | None":
        """Where this process has its bytes around a frame; None where they go through `read` and `write`."""

    def close(self) -> None: ...


Mapping = tuple[int, int, int]
"""(first frame, end, address of the first): a part of a memory as this process has it mapped."""
MemoryRun = tuple[Memory, int, int]
"""(memory, byte offset in it, bytes): contiguous."""


class Closed(OSError):
    """The memory has no slot any more."""

    def __init__(self) -> None:
        super().__init__(errno.EBADF, "the slot is gone")


class MachineCheck(OSError):
    """The page does not hold what the guest left there. at: where it begins in the memory, in bytes."""

    def __init__(self, at: int) -> None:
        super().__init__(errno.EBADMSG, "the page does not hold what the guest left there")
        self.at = at


class _Mapped:
    """A memfd mapped whole, sparse: it costs what is touched."""

    leaf_order = ORDER_1G
    waits = False
    uncached = False

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.frame_count = size >> PAGE_SHIFT
        self._map = mmap.mmap(fd, size)
        self._view = memoryview(self._map)
        self._bytes: np.ndarray[tuple[int], np.dtype[np.uint8]] = np.frombuffer(self._map, dtype=np.uint8)

    @trace.hot(
        trace.Side.VM,
        before=(
            trace.Instrument.guest_reads,
            lambda to, memory, offset, length: to.guest_reads(memory, offset, length),
        ),
    )
    def read(self, offset: int, length: int) -> bytes:
        return self._view[offset : offset + length].tobytes()

    @trace.hot(
        trace.Side.VM,
        before=(
            trace.Instrument.guest_writes,
            lambda to, memory, offset, data: to.guest_writes(memory, offset, len(data)),
        ),
    )
    def write(self, offset: int, data: bytes) -> None:
        self._view[offset : offset + len(data)] = data

    def touch(self, offset: int, page_count: int) -> None:
        length = page_count << PAGE_SHIFT
        self._map.madvise(MADV_POPULATE_WRITE, offset, length)
        firsts = self._bytes[offset : offset + length : PAGE_SIZE]
        firsts |= 0

    def mapping(self, frame: int) -> Mapping | None:
        return 0, self.frame_count, self._bytes.ctypes.data

    def populated_count(self) -> int:
        """Pages that hold memory."""
        return os.fstat(self.fd).st_blocks * 512 // PAGE_SIZE

    def populated(self, first: int, end: int) -> list[PageRange]:
        return data_ranges(self.fd, first, end, is_memfd=True)

    def close(self) -> None:
        """The mapping goes with the last view; nobody may use this memory any more."""
        self._view.release()
        self._bytes = np.empty(0, dtype=np.uint8)
        with contextlib.suppress(BufferError):
            self._map.close()
        os.close(self.fd)


_WINDOW_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class WindowMemory(_Mapped):
    """A VM's private bytes: frame N of the store's pool at N * 4096."""

    def __init__(self, fd: int, frame_count: int) -> None:
        """Takes the fd. PeerLost when it is not a window of frame_count frames: of another size, or it could shrink
        under the mapping, or get seals that forbid to scrub. Refused when this process has no room for it."""
        self.frame_count = frame_count
        size = frame_count << PAGE_SHIFT
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            if os.fstat(fd).st_size != size or seals & _WINDOW_SEALS != _WINDOW_SEALS:
                raise PeerLost("the store passed a window of the wrong size, or one that could shrink")
            super().__init__(fd, size)
            # Guest memory is not in a core dump of the VMM, nor in a process that it forks (R2).
            self._map.madvise(mmap.MADV_DONTDUMP)
            self._map.madvise(mmap.MADV_DONTFORK)
        except (OSError, ValueError) as error:
            os.close(fd)
            number = getattr(error, "errno", None)
            if number in NO_RESOURCES:
                why = f"its window of {size:#x} bytes cannot be mapped ({os.strerror(number)}): raise ulimit -n or -v"
                raise Refused(number, why) from None
            raise PeerLost(f"the store's window cannot be mapped: {error}") from None
        except PeerLost:
            os.close(fd)
            raise

    def holds_data(self, offset: int, length: int) -> bool:
        """Any of these bytes was written, by whoever has the window. Multiples of 4096."""
        found = next_data(self.fd, offset)
        return found is not None and found < offset + length

    def is_untouched(self, frame: int) -> bool:
        """Nobody has written to it; to read it to find out would give it memory."""
        return not self.holds_data(frame << PAGE_SHIFT, PAGE_SIZE)

    def scrub(self, frame: int, frame_count: int) -> None:
        """Destroy contents: what a TDX or SNP unmap does. The frames stay the file's and read as zeros."""
        if trace.vm is not None:
            trace.vm.contents_destroyed(self, frame, frame_count)
        punch_hole(self.fd, frame << PAGE_SHIFT, frame_count << PAGE_SHIFT)

    def forget(self, frame: int, frame_count: int) -> None:
        """The store takes these frames back: what they held is gone."""

    def unmapped(self, frame: int, frame_count: int) -> None:
        """No GFN maps these frames any more, and what they hold may be needed again; but the store may take them back
        without a call, as pages that are not bound."""

    def moved(self, source: int, target: int, frame_count: int) -> None:
        """After `move`, with what holds it decided: a page that was unmapped meanwhile is unmapped where it is now."""

    def move(self, source: int, target: int, frame_count: int) -> None:
        """Contents of frames into others, which hold nothing. OSError: there is no memory for that, or they are not
        what the guest left there."""
        if trace.vm is not None:
            trace.vm.contents_moved(self, source, target, frame_count)
        delta = target - source << PAGE_SHIFT
        for first, last in data_ranges(self.fd, source, source + frame_count, is_memfd=True):
            start, end = first << PAGE_SHIFT, last << PAGE_SHIFT
            self._map.madvise(MADV_POPULATE_WRITE, start + delta, end - start)
            self._view[start + delta : end + delta] = self._view[start:end]

    def tamper(self, offset: int, data: bytes) -> None:
        """What somebody else on the host does who has the window: bytes as they are. EFAULT (Refused) where the
        hardware stops the writer."""
        os.pwrite(self.fd, data, offset)


class DeviceMemory(WindowMemory):
    """Memory of a device: its page N at N * 4096. It is neither encrypted nor ever erased, since it is no RAM."""

    uncached = True

    def scrub(self, frame: int, frame_count: int) -> None:
        """An unmap leaves the device as it is."""


OpenWindow = Callable[[int, int], WindowMemory]
"""(fd, frames of the pool) to the window: WindowMemory, or what else its bytes go through."""


class AnonymousMemory(_Mapped):
    """Shared guest memory without a file: mmap(MAP_SHARED | MAP_ANONYMOUS)."""

    def __init__(self, size: int) -> None:
        fd = os.memfd_create("kvmsim-shared", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            super().__init__(fd, size)
        except (OSError, ValueError, OverflowError) as error:
            os.close(fd)
            why = getattr(error, "strerror", None) or str(error)
            raise Refused(errno.ENOMEM, f"{size} bytes of anonymous memory: {why}: ask for less") from None

    def discard(self, offset: int, length: int) -> None:
        """What madvise(MADV_REMOVE) does."""
        punch_hole(self.fd, offset, length)


class UnmappedMemory:
    """A userspace_addr where nothing is mapped: EFAULT for every access."""

    leaf_order = ORDER_4K
    uncached = False
    waits = False
    frame_count: int | None = None

    def read(self, offset: int, length: int) -> bytes:
        raise OSError(errno.EFAULT, "nothing is mapped at userspace_addr")

    def write(self, offset: int, data: bytes) -> None:
        self.read(offset, len(data))

    def touch(self, offset: int, page_count: int) -> None:
        self.read(offset, page_count << PAGE_SHIFT)

    def populated(self, first: int, end: int) -> list[PageRange]:
        return []

    def mapping(self, frame: int) -> Mapping | None:
        return None

    def close(self) -> None: ...


class FileMemory:
    """Shared guest memory in a file, through pread and pwrite: coherent with every mapping of it, and a file
    that shrinks or a daemon that dies is an errno here instead of SIGBUS."""

    leaf_order = ORDER_4K
    uncached = False
    waits = True

    def __init__(self, fd: int, frame_count: int | None = None) -> None:
        """Takes the fd."""
        self.fd = fd
        self.frame_count = frame_count
        self._using = sync.lock("FileMemory.using")
        self._closed = False

    def read(self, offset: int, length: int) -> bytes:
        with self._open():
            data = os.pread(self.fd, length, offset)
        if len(data) != length:
            raise OSError(errno.EFAULT, "past the end of the file")
        return data

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        with self._open():
            if offset + len(data) > os.fstat(self.fd).st_size:
                raise OSError(errno.EFAULT, "past the end of the file")
            while view:  # short when the pool gets full: the next one says so
                done = os.pwrite(self.fd, view, offset)
                view, offset = view[done:], offset + done

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        with self._using:
            if self._closed:
                raise Closed
            yield

    def touch(self, offset: int, page_count: int) -> None:
        for page in range(page_count):
            at = offset + (page << PAGE_SHIFT)
            self.write(at, self.read(at, 1))

    def populated(self, first: int, end: int) -> list[PageRange]:
        with self._open():
            return data_ranges(self.fd, first, end)

    def mapping(self, frame: int) -> Mapping | None:
        return None

    def close(self) -> None:
        with self._using:
            if not self._closed:
                self._closed = True
                os.close(self.fd)


class SparseMemory(FileMemory):
    """The VMM's shared copy of guest memory: byte GPA at offset GPA, nothing held where nothing was written."""

    leaf_order = ORDER_1G
    waits = False

    def __init__(self, size: int) -> None:
        fd = os.memfd_create("kvmsim-vmm-shared", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        super().__init__(fd, size >> PAGE_SHIFT)
        self._parts: dict[int, np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}
        """Of 1 GiB, mapped when machine code first reaches them: it does not fit in this process as a whole."""

    def mapping(self, frame: int) -> Mapping | None:
        part = frame >> ORDER_1G
        if part not in self._parts:
            at = part << ORDER_1G + PAGE_SHIFT
            size = min(1 << ORDER_1G + PAGE_SHIFT, os.fstat(self.fd).st_size - at)
            self._parts[part] = np.frombuffer(mmap.mmap(self.fd, size, offset=at), dtype=np.uint8)
        bytes_ = self._parts[part]
        first = part << ORDER_1G
        return first, first + (bytes_.size >> PAGE_SHIFT), bytes_.ctypes.data

    def discard(self, offset: int, length: int) -> None:
        punch_hole(self.fd, offset, length)

    def populated_count(self) -> int:
        return os.fstat(self.fd).st_blocks * 512 // PAGE_SIZE

    def all_populated(self) -> list[PageRange]:
        """Page ranges that hold memory."""
        return data_ranges(self.fd)


def shared_memory(path: str | None, size: int) -> tuple[Memory, str]:
    """What a new shared slot shows, and what it is called: an ordinary file, or (None) anonymous memory of this size.
    OSError as open(2); ENOMEM (Refused)."""
    if path is None:
        return AnonymousMemory(size), "(anonymous)"
    return FileMemory(os.open(path, os.O_RDWR | os.O_CLOEXEC)), path


def punch_file(fd: int, offset: int, length: int) -> None:
    """fallocate(PUNCH_HOLE | KEEP_SIZE)."""
    try:
        punch_hole(fd, offset, length)
    except OSError as error:
        why = f"punch of {length:#x} bytes at {offset:#x}: {error.strerror}"
        raise Refused(error.errno or errno.EIO, why) from None


def set_file_attributes(fd: int, asked: MemoryAttributes2) -> None:
    """KVM_SET_MEMORY_ATTRIBUTES2. Refused with its errno: nothing has changed."""
    words = bytearray(asked.pack())
    try:
        fcntl.ioctl(fd, IOC_SET_MEMORY_ATTRIBUTES2, words)
    except OSError as error:
        at = MemoryAttributes2.unpack(bytes(words)).error_offset
        where = f" (error_offset {at:#x})" if error.errno == errno.EAGAIN else ""
        why = f"{asked.offset:#x}+{asked.size:#x}: {error.strerror}{where}"
        raise Refused(error.errno or errno.EIO, why) from None
