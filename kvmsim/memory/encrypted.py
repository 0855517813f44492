"""Windows that hold ciphertext: AES-256-GCM of each page, under a key of the VM that never leaves this process.

A page's tag and version are kept here, not in the window. The version is the nonce, and never repeats under a key;
window and frame are authenticated with the page. So bytes that were altered, copied from another frame or restored from
an older time do not verify, and who reads them gets a machine check, as on TDX. A frame has one of three states:

    version 0            nothing of it was used since the store granted it: zero, whatever the window holds
    version              its page must verify
    version, unmapped    KVM may not have been called when the store took it back: a page of the window that reads as
                         zeros is a frame granted again, anything else must verify

Loaded only where it is wanted: `cryptography` takes longer to import than the rest of kvmsim.
"""

import errno
import itertools
import mmap
import struct

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from memfsd.common import sync, trace
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE

from .memory import MADV_POPULATE_WRITE, MachineCheck, WindowMemory

_KEY_BITS = 256
_TAG_BYTES = 16
_ENTRY = struct.Struct(f"<Q{_TAG_BYTES}s")
"""Of each frame: version, tag. 24 bytes, which take memory when the frame is first used."""
_UNMAPPED = 1 << 63
_NONCE = struct.Struct("<Q4x")
_BOUND = struct.Struct("<QQ")
"""What a page is bound to: window, frame."""
_ZEROS = bytes(PAGE_SIZE)
_MAP_NORESERVE = 0x4000


class MemoryKey:
    """Of one VM. refuse: who writes through `tamper` is refused, as by SNP's RMP."""

    def __init__(self, *, refuse: bool = False) -> None:
        self.refuse = refuse
        self._aead = AESGCM(AESGCM.generate_key(_KEY_BITS))
        self._versions = itertools.count(1)
        self._windows = itertools.count(1)

    def open_window(self, fd: int, frame_count: int) -> "EncryptedMemory":
        """As WindowMemory()."""
        return EncryptedMemory(fd, frame_count, self, next(self._windows))

    def seal(self, page: bytes, window: int, frame: int) -> tuple[int, bytes]:
        """A new version, and ciphertext with its tag."""
        version = next(self._versions)
        return version, self._aead.encrypt(_NONCE.pack(version), page, _BOUND.pack(window, frame))

    def unseal(self, sealed: bytes, version: int, window: int, frame: int) -> bytes | None:
        """None: not what was sealed as this version of this frame."""
        try:
            page: bytes = self._aead.decrypt(_NONCE.pack(version), sealed, _BOUND.pack(window, frame))
        except InvalidTag:
            return None
        return page


class EncryptedMemory(WindowMemory):
    """`_lock` guards the table and the bytes that it speaks of: a page and its tag change together."""

    def __init__(self, fd: int, frame_count: int, key: MemoryKey, number: int) -> None:
        super().__init__(fd, frame_count)
        self._key = key
        self._number = number
        self._lock = sync.lock("EncryptedMemory.lock")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._table = mmap.mmap(-1, frame_count * _ENTRY.size, flags=flags)
        except (OSError, ValueError) as error:
            super().close()
            why = f"there is no room for the tags of {frame_count} frames ({error}): raise ulimit -v"
            raise Refused(getattr(error, "errno", None) or errno.ENOMEM, why) from None

    # -- the guest's accesses

    @trace.hot(
        trace.Side.VM,
        before=(
            trace.Instrument.guest_reads,
            lambda to, memory, offset, length: to.guest_reads(memory, offset, length),
        ),
    )
    def read(self, offset: int, length: int) -> bytes:
        frame, skip = offset >> PAGE_SHIFT, offset % PAGE_SIZE
        if skip + length <= PAGE_SIZE:
            return self._read(frame)[skip : skip + length]
        last = offset + length - 1 >> PAGE_SHIFT
        pages = b"".join(map(self._read, range(frame, last + 1)))
        return pages[skip : skip + length]

    @trace.hot(
        trace.Side.VM,
        before=(
            trace.Instrument.guest_writes,
            lambda to, memory, offset, data: to.guest_writes(memory, offset, len(data)),
        ),
    )
    def write(self, offset: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            frame, skip = offset + at >> PAGE_SHIFT, (offset + at) % PAGE_SIZE
            part = data[at : at + PAGE_SIZE - skip]
            with self._lock:
                if len(part) < PAGE_SIZE:
                    was = self._open(frame) or _ZEROS
                    part, at = was[:skip] + part + was[skip + len(part) :], at + len(part)
                else:  # what was there does not count: so is a page repaired that does not verify
                    at += PAGE_SIZE
                self._seal(frame, part)

    def touch(self, offset: int, page_count: int) -> None:
        self._map.madvise(MADV_POPULATE_WRITE, offset, page_count << PAGE_SHIFT)
        first = offset >> PAGE_SHIFT
        for frame in range(first, first + page_count):
            self._read(frame)

    def mapping(self, frame: int) -> None:
        """Machine code runs on copies."""

    # -- what becomes of frames

    def is_untouched(self, frame: int) -> bool:
        with self._lock:
            return self._open(frame) is None

    def scrub(self, frame: int, frame_count: int) -> None:
        super().scrub(frame, frame_count)
        self.forget(frame, frame_count)

    def forget(self, frame: int, frame_count: int) -> None:
        start, end = frame * _ENTRY.size, (frame + frame_count) * _ENTRY.size
        low, high = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        with self._lock:
            if low < high:
                self._table.madvise(mmap.MADV_DONTNEED, low, high - low)
                self._table[start:low] = bytes(low - start)
                self._table[high:end] = bytes(end - high)
            else:
                self._table[start:end] = bytes(end - start)

    def move(self, source: int, target: int, frame_count: int) -> None:
        if trace.vm is not None:
            trace.vm.contents_moved(self, source, target, frame_count)
        for frame in range(source, source + frame_count):
            with self._lock:
                page = self._open(frame)
                if page is not None:
                    self._seal(frame + target - source, page)

    def moved(self, source: int, target: int, frame_count: int) -> None:
        with self._lock:
            for frame in range(source, source + frame_count):
                if _ENTRY.unpack_from(self._table, frame * _ENTRY.size)[0] & _UNMAPPED:
                    at = (frame + target - source) * _ENTRY.size
                    version, tag = _ENTRY.unpack_from(self._table, at)
                    _ENTRY.pack_into(self._table, at, version | _UNMAPPED if version else 0, tag)

    def unmapped(self, frame: int, frame_count: int) -> None:
        entries = np.frombuffer(self._table, dtype=[("version", "<u8"), ("tag", "V", _TAG_BYTES)])
        with self._lock:
            versions = entries["version"][frame : frame + frame_count]
            versions[versions != 0] |= np.uint64(_UNMAPPED)

    def tamper(self, offset: int, data: bytes) -> None:
        if self._key.refuse:
            raise Refused(
                errno.EFAULT, f"frame {offset >> PAGE_SHIFT:#x} belongs to a VM: the host cannot write to it (RMP)"
            )
        super().tamper(offset, data)

    def close(self) -> None:
        super().close()
        with self._lock:
            self._table.close()

    # -- one page

    def _read(self, frame: int) -> bytes:
        """One that nobody has used yet is sealed: it takes memory, as any page that a guest touches."""
        with self._lock:
            page = self._open(frame)
            if page is None:
                page = _ZEROS
                self._seal(frame, page)
            return page

    def _open(self, frame: int) -> bytes | None:
        """None: nobody has used it yet. With the lock held."""
        version, tag = _ENTRY.unpack_from(self._table, frame * _ENTRY.size)
        if not version:
            return None
        at = frame << PAGE_SHIFT
        sealed = bytes(self._view[at : at + PAGE_SIZE])
        page = self._key.unseal(sealed + tag, version & ~_UNMAPPED, self._number, frame)
        if page is not None:
            return page
        if version & _UNMAPPED and sealed == _ZEROS:
            return None
        raise MachineCheck(at)

    def _seal(self, frame: int, page: bytes) -> None:
        version, sealed = self._key.seal(page, self._number, frame)
        at = frame << PAGE_SHIFT
        self._view[at : at + PAGE_SIZE] = sealed[:PAGE_SIZE]
        _ENTRY.pack_into(self._table, frame * _ENTRY.size, version, sealed[PAGE_SIZE:])
