"""Direct writes beside buffered readers: what was written is what everybody reads from then on."""

import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.attack.syscalls import IOCB_CMD_PWRITE, Aio, address_of, is_in
from tests.support.real_mount import DEADLINE_S, Mount, MountFactory, opened
from tests.support.threads import Beside, until

MIB = 1 << 20
SIZE = 64 * MIB
READ_AT = SIZE - MIB
"""In the last request of 1 MiB, which the kernel sends when all but 11 before it are answered (max_background)."""

TOUCH = """
import mmap, os, sys
memory = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ)
memory.madvise(mmap.MADV_RANDOM)
print("ready", flush=True)
sys.stdin.readline()
memory[int(sys.argv[2])]
"""


def waits_for_a_page(task: int) -> bool:
    """It sleeps, and not in a system call. That it sleeps alone would not do: it may do so before it gets there."""
    return Path(f"/proc/{task}/syscall").read_text().startswith("-1 ")


def written_bytes(process: int) -> int:
    lines = dict(line.split(": ") for line in Path(f"/proc/{process}/io").read_text().splitlines())
    return int(lines["wchar"])


class Writer:
    """One asynchronous direct write of all of a file, on its own thread."""

    def __init__(self, fd: int) -> None:
        self._context = Aio(1)
        self._buffer = mmap.mmap(-1, SIZE)
        self._buffer[:] = b"n" * SIZE
        self._fd = fd
        self._task: list[int] = []
        self._writing = Beside(self._write)

    def _write(self) -> tuple[int, int]:
        self._task.append(threading.get_native_id())
        self._context.submit(IOCB_CMD_PWRITE, self._fd, address_of(memoryview(self._buffer)), SIZE)
        return self._context.wait()

    @property
    def is_submitting(self) -> bool:
        """The kernel has not sent all of its requests."""
        return bool(self._task) and is_in(self._task[0], "io_submit")

    @property
    def has_submitted(self) -> bool:
        return bool(self._task) and is_in(self._task[0], "io_getevents")

    def finish(self) -> None:
        assert self._writing.result() == (0, SIZE)
        self._context.close()


def read_during_a_write(mounted: Mount, path: Path) -> bool:
    """A page that is written last is read, old, in the middle of the write. False when the write was too quick."""
    path.write_bytes(b"o" * SIZE)
    with opened(path, os.O_RDONLY) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    reader = subprocess.Popen(
        [sys.executable, "-c", TOUCH, path, str(READ_AT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    daemon = mounted.process
    with opened(path, os.O_WRONLY | os.O_DIRECT) as fd:
        daemon.send_signal(signal.SIGSTOP)
        try:
            before = written_bytes(daemon.pid)
            writer = Writer(fd)
            # It begins with a question about privileges, before it drops cached pages: only then the page is read.
            until(lambda: writer.is_submitting, "the write has begun")
            daemon.send_signal(signal.SIGCONT)
            deadline = time.monotonic() + DEADLINE_S
            while written_bytes(daemon.pid) < before + MIB:
                assert time.monotonic() < deadline
            daemon.send_signal(signal.SIGSTOP)
            until(lambda: writer.is_submitting or writer.has_submitted, "the writer waits for the store")
            is_in_time = writer.is_submitting
            reader.stdin.write("\n")
            reader.stdin.flush()
            until(lambda: waits_for_a_page(reader.pid), "the reader waits for its page")
        finally:
            daemon.send_signal(signal.SIGCONT)
        writer.finish()
    reader.communicate(timeout=DEADLINE_S)
    assert reader.returncode == 0
    return is_in_time


def test_a_reader_sees_an_asynchronous_direct_write_that_was_under_way_when_it_read(mount: MountFactory) -> None:
    """Its page gets the old bytes, from before the write, and must not keep them."""
    mounted = mount("size=192M")
    path = mounted.path / "f"
    until(lambda: read_during_a_write(mounted, path), "a page is read during a write")
    with opened(path, os.O_RDONLY) as fd:
        assert os.pread(fd, 4, READ_AT) == b"nnnn"
