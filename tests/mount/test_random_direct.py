"""Random asynchronous direct writes beside processes that read the same file buffered and mapped: what was written is
what everybody reads as soon as the write is done, and after the kernel's cache was dropped."""

import contextlib
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.attack.syscalls import IOCB_CMD_PWRITE, Aio, address_of
from tests.support.real_mount import DEADLINE_S, MountFactory, opened

ROUNDS = int(os.environ.get("MEMFSD_DIRECT_ROUNDS", "200"))
BLOCK, BLOCKS, DEPTH = 16 << 10, 64, 8

READ = """
import mmap, os, random, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
memory = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
dice, size = random.Random(int(sys.argv[2])), len(memory)
print("reading", flush=True)
while True:
    at = dice.randrange(size)
    os.pread(fd, dice.choice((1, 4096, 100_000)), at)
    memory[at]
    if not dice.randrange(50):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
"""


@contextlib.contextmanager
def reading(path: Path, seed: int) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", READ, path, str(seed)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        yield
        assert process.poll() is None, "a reader ended"
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_S)


def test_asynchronous_direct_writes_are_read_by_everybody(mount: MountFactory) -> None:
    path = mount("size=64M").path / "f"
    contents = bytearray(BLOCK * BLOCKS)
    path.write_bytes(contents)
    dice = random.Random(6)
    context = Aio(DEPTH)
    buffers = mmap.mmap(-1, BLOCK * DEPTH)
    with (
        opened(path, os.O_WRONLY | os.O_DIRECT) as direct,
        opened(path, os.O_RDONLY) as buffered,
        reading(path, 1),
        reading(path, 2),
        mmap.mmap(buffered, 0, prot=mmap.PROT_READ) as memory,
        memoryview(buffers) as view,
    ):
        for turn in range(ROUNDS):
            blocks = dice.sample(range(BLOCKS), DEPTH)
            for number, block in enumerate(blocks):
                data = bytes([turn % 255 + 1]) * BLOCK
                buffers[number * BLOCK : (number + 1) * BLOCK] = data
                contents[block * BLOCK : (block + 1) * BLOCK] = data
                with view[number * BLOCK : (number + 1) * BLOCK] as part:
                    context.submit(IOCB_CMD_PWRITE, direct, address_of(part), BLOCK, block * BLOCK, number)
            assert sorted(context.wait() for _ in blocks) == [(number, BLOCK) for number in range(DEPTH)]
            for block in blocks:
                start, end = block * BLOCK, (block + 1) * BLOCK
                assert os.pread(buffered, BLOCK, start) == contents[start:end], f"round {turn}, block {block}"
                assert memory[start:end] == contents[start:end], f"round {turn}, block {block}, mapped"
        os.posix_fadvise(buffered, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(buffered, len(contents), 0) == contents
    context.close()
