"""A fd that a mapping has duplicated is the mapping's to close."""

import mmap
import os

from kvmsim.instruments.race import mappings


def test_the_fd_of_a_mapping_is_its_own_until_it_is_collected() -> None:
    fd = os.memfd_create("mapped")
    os.truncate(fd, mmap.PAGESIZE)
    with mappings.watched():
        mapping = mmap.mmap(fd, mmap.PAGESIZE)
    assert mmap.mmap is not type(mapping), "only for a run"
    owned = [number for number in map(int, os.listdir("/proc/self/fd")) if mappings.owns(number)]
    assert len(owned) == 1
    assert owned != [fd]
    del mapping
    assert not mappings.owns(owned[0])
    os.close(fd)
