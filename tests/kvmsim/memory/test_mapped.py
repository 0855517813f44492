"""Memory at addresses of this process: what would be a signal is EFAULT."""

import ctypes
import mmap
import os
from contextlib import closing
from pathlib import Path

import pytest

from kvmsim.memory.mapped import MappedFile, UserMemory
from kvmsim.memory.memory import Closed


def test_bytes_are_read_and_written_where_they_are() -> None:
    buffer = ctypes.create_string_buffer(b"0123456789")
    with closing(UserMemory(ctypes.addressof(buffer))) as memory:
        assert memory.read(2, 3) == b"234"
        memory.write(4, b"xy")
        assert buffer.raw[:10] == b"0123xy6789"


@pytest.mark.parametrize("address", [0, 1 << 20, (1 << 47) - 4096])
def test_where_nothing_is_mapped_it_is_efault(address: int) -> None:
    with closing(UserMemory(address)) as memory, pytest.raises(OSError, match="Bad address"):
        memory.read(0, 1)


def test_a_mapping_that_cannot_be_written_is_efault() -> None:
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ) as region:
        held = (ctypes.c_char * 1).from_buffer_copy(region)
        del held
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    at = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    with closing(UserMemory(at)) as memory:
        assert memory.read(0, 2) == bytes(2)
        with pytest.raises(OSError, match="Bad address"):
            memory.write(0, b"x")
    libc.munmap(ctypes.c_void_p(at), 4096)


def test_a_file_is_shown_as_it_is_and_its_end_is_efault(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"a" * 8192)
    memory = MappedFile(os.open(path, os.O_RDWR), 8192)
    memory.write(4094, b"bcde")
    assert path.read_bytes()[4093:4099] == b"abcdea"
    os.truncate(path, 4096)
    with pytest.raises(OSError, match="Bad address"):
        memory.read(4096, 1)
    assert memory.read(4095, 1) == b"c"
    memory.close()
    memory.close()
    with pytest.raises(Closed):
        memory.read(0, 1)
