"""The memfds: one pool for the bytes of ordinary files, and one window for each sealed file.

memfsd never maps any of them. Ordinary bytes go through pread and pwrite; a window is only made, passed to the
VM that paired, punched and closed. SEEK_DATA shows which of its pages the VM has touched.
"""

import errno
import fcntl
import os

from memfsd.common import sync, trace
from memfsd.common.linux import PageRange, data_end, data_ranges, next_data, punch_hole
from memfsd.core.effects import Runs
from memfsd.core.files.ordinary import IoVec
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Ino, Pfn


class Windows:
    """Safe from any thread: `_lock` guards the table of windows, the kernel the rest."""

    def __init__(self, pool_bytes: int) -> None:
        self._pool_bytes = pool_bytes
        self._lock = sync.lock("Windows.lock")
        self._windows: dict[Ino, int] = {}
        self._devices: dict[Ino, int] = {}
        """Memory of devices, as long as these are there, whatever VMs come and go."""
        self._pool = self._make("memfsd-ordinary", pool_bytes)

    @staticmethod
    def _make(name: str, size: int) -> int:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            raise
        # Who maps it need not fear SIGBUS: its size is forever.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd

    @property
    def pool_fd(self) -> int:
        """Of the memfd of ordinary files."""
        return self._pool

    def open_pool_read_only(self) -> int:
        """Another descriptor of the same memfd, the caller's to close. It never holds a byte of a sealed file."""
        return os.open(f"/proc/self/fd/{self._pool}", os.O_RDONLY | os.O_CLOEXEC)

    def read(self, plan: IoVec, window: Ino | None = None) -> bytes:
        """Of the memfd of ordinary files, or of a guest_memfd's window, where it is shared."""
        fd = self._pool if window is None else self.window_of(window)
        if len(plan) == 1:
            offset, length = plan[0]
            return bytes(length) if offset < 0 else os.pread(fd, length, offset)
        return b"".join(bytes(n) if at < 0 else os.pread(fd, n, at) for at, n in plan)

    def write_window(self, window: Ino, plan: IoVec, data: bytes) -> int:
        """What is for nowhere is dropped, and counts as written."""
        fd, view, done = self.window_of(window), memoryview(data), 0
        for offset, length in plan:
            if offset >= 0:
                os.pwrite(fd, view[done : done + length], offset)
            done += length
        return done

    def write(self, plan: IoVec, data: bytes | memoryview) -> int:
        """Bytes written: those the plan has room for."""
        if len(plan) == 1 and plan[0][1] == len(data):
            return os.pwrite(self._pool, data, plan[0][0])
        view, done = memoryview(data), 0
        for offset, length in plan:
            assert offset >= 0, "a write plan has no holes"
            done += os.pwrite(self._pool, view[done : done + length], offset)
        return done

    def zero(self, offset: int, length: int) -> None:
        """Bytes of one frame. One that nobody wrote is zero already, and stays unwritten (SEEK_DATA)."""
        if self.first_written(Pfn(offset >> PAGE_SHIFT), 1) is None:
            return
        os.pwrite(self._pool, bytes(length), offset)

    def first_written(self, pfn: Pfn, count: int) -> int | None:
        """core.ordinary.WrittenExtents: a frame that nobody wrote is a hole of the pool."""
        found = next_data(self._pool, pfn << PAGE_SHIFT)
        distance = count if found is None else (found >> PAGE_SHIFT) - pfn
        return distance if distance < count else None

    def first_unwritten(self, pfn: Pfn, count: int) -> int:
        return data_end(self._pool, pfn, pfn + count) - pfn

    def make_window(self, ino: Ino) -> int:
        """An fd for a sealed file's window, the caller's until it is adopted."""
        if trace.store is not None:
            trace.store.window_made(ino)
        return self._make(f"memfsd-window-{ino}", self._pool_bytes)

    def adopt_window(self, ino: Ino, fd: int) -> None:
        """It is the file's now, until `drop_window`: exactly as long as a VM may hold memory of the file."""
        with self._lock:
            assert ino not in self._windows
            self._windows[ino] = fd

    def window_of(self, ino: Ino) -> int:
        """The fd that was adopted. ENOENT (OSError) when the file has gone since."""
        with self._lock:
            fd = self._windows.get(ino)
        if fd is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return fd

    def drop_window(self, ino: Ino) -> None:
        if trace.store is not None:
            trace.store.window_dropped(ino)
        with self._lock:
            fd = self._windows.pop(ino, None)
        if fd is not None:
            os.close(fd)

    def make_device(self, ino: Ino, size: int) -> int:
        """An fd for the memory of a device, the caller's until it is adopted."""
        return self._make(f"memfsd-window-device-{ino}", size)

    def close_device(self, fd: int) -> None:
        """Not adopted after all."""
        os.close(fd)

    def adopt_device(self, ino: Ino, fd: int) -> None:
        """It is the device's now, until `drop_device`."""
        with self._lock:
            assert ino not in self._devices
            self._devices[ino] = fd

    def device_window(self, ino: Ino) -> int:
        """Another descriptor of a device's memory, the caller's. ENODEV (OSError) when it was removed."""
        with self._lock:
            fd = self._devices.get(ino)
            if fd is None:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            return os.dup(fd)

    def drop_device(self, ino: Ino) -> None:
        """Nothing to do for one that was removed."""
        with self._lock:
            fd = self._devices.pop(ino, None)
        if fd is not None:
            os.close(fd)

    def device_count(self) -> int:
        with self._lock:
            return len(self._devices)

    def punch(self, window: Ino | None, runs: Runs) -> None:
        """Zero these frames and give their memory back. A window that nobody asked for holds nothing."""
        if trace.store is not None:
            trace.store.frames_zeroed(window, runs)
        if window is None:
            _punch(self._pool, runs)
            return
        with self._lock:
            fd = self._windows.get(window)
            if fd is None:
                return
            try:
                own = os.dup(fd)  # the window may be dropped meanwhile, and its number be another file's
            except OSError:  # no descriptor is left: then it must not be
                _punch(fd, runs)
                return
        try:
            _punch(own, runs)
        finally:
            os.close(own)

    def window_count(self) -> int:
        with self._lock:
            return len(self._windows)

    def files(self) -> list[Ino]:
        """The files that have one."""
        with self._lock:
            return list(self._windows)

    def populated_count(self, window: Ino) -> int:
        """Pages of a window that hold memory."""
        with self._lock:
            fd = self._windows.get(window)
            return 0 if fd is None else os.fstat(fd).st_blocks * 512 // PAGE_SIZE

    def populated(self, window: Ino | None) -> list[PageRange]:
        """Which frames hold memory, in order."""
        with self._lock:
            fd = self._pool if window is None else self._windows.get(window)
            fd = None if fd is None else os.dup(fd)
        if fd is None:
            return []
        try:
            return data_ranges(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        for ino in list(self._windows):
            self.drop_window(ino)
        for ino in list(self._devices):
            self.drop_device(ino)
        os.close(self._pool)


def _punch(fd: int, runs: Runs) -> None:
    for pfn, count in runs:
        punch_hole(fd, pfn << PAGE_SHIFT, count << PAGE_SHIFT)
