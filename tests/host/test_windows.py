"""The memfds of the store, where the system calls on them do not do what they do on a memfd."""

import os
from collections.abc import Callable

import pytest

from kvmsim.memory.memory import SparseMemory
from memfsd.host.windows import Windows


def overwrite_with_null(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd)
    os.close(null)


def test_a_search_for_data_ends_where_the_descriptor_was_overwritten() -> None:
    """lseek(2) on /dev/null returns 0 for everything: `memfs check` never ended, and held Service.lock meanwhile."""
    windows, shared = Windows(1 << 20), SparseMemory(1 << 20)
    searches: list[tuple[int, Callable[[], object]]] = [
        (windows.pool_fd, lambda: windows.populated(None)),
        (shared.fd, shared.populated),
    ]
    for fd, populated in searches:
        overwrite_with_null(fd)
        with pytest.raises(OSError, match="leads to something else"):
            populated()
    windows.close()
    shared.close()
