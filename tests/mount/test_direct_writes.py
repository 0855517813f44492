"""Direct writes beside buffered readers: what was written is what everybody reads from then on."""

import mmap
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.attack.syscalls import IOCB_CMD_PWRITE, Aio, address_of, is_in
from tests.support.real_mount import DEADLINE_S, MountFactory, opened
from tests.support.threads import Beside, until

MIB = 1 << 20
SIZE = 16 * MIB
READ_AT = 14 * MIB
"""Beyond the 12 requests of 1 MiB that the kernel has under way at a time (max_background)."""

TOUCH = """
import mmap, os, sys
memory = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ)
memory.madvise(mmap.MADV_RANDOM)
print("ready", flush=True)
sys.stdin.readline()
print("touching", flush=True)
memory[int(sys.argv[2])]
"""


def is_blocked(task: int) -> bool:
    return Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[0] in "SD"


def test_a_reader_sees_an_asynchronous_direct_write_that_was_under_way_when_it_read(mount: MountFactory) -> None:
    """Its page gets the old bytes, from before the write, and must not keep them."""
    mounted = mount("size=64M")
    path = mounted.path / "f"
    path.write_bytes(b"o" * SIZE)
    with opened(path, os.O_RDONLY) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    reader = subprocess.Popen(
        [sys.executable, "-c", TOUCH, path, str(READ_AT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    buffer = mmap.mmap(-1, SIZE)
    buffer[:] = b"n" * SIZE
    context = Aio(1)
    writer: list[int] = []
    with opened(path, os.O_WRONLY | os.O_DIRECT) as fd:
        assert reader.stdout.readline() == "ready\n"
        mounted.process.send_signal(signal.SIGSTOP)

        def write() -> tuple[int, int]:
            writer.append(threading.get_native_id())
            context.submit(IOCB_CMD_PWRITE, fd, address_of(memoryview(buffer)), SIZE)
            return context.wait()

        try:
            writing = Beside(write)
            until(lambda: bool(writer) and is_in(writer[0], "io_submit"), "the write is under way")
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "touching\n"
            until(lambda: is_blocked(reader.pid), "the reader waits for its page")
        finally:
            mounted.process.send_signal(signal.SIGCONT)
        assert writing.result() == (0, SIZE)
    reader.communicate(timeout=DEADLINE_S)
    assert reader.returncode == 0
    assert path.read_bytes() == b"n" * SIZE
    context.close()
