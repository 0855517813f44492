"""ioctls of a mount on what is none."""

import errno
from pathlib import Path

import pytest

from memfsd.common.fileioctls import ioctl, move_pages
from memfsd.uapi.names import IOC_GET_SEALS


@pytest.mark.parametrize("fd", [-1, 1 << 31, 1 << 64])
def test_what_is_no_descriptor_is_ebadf(fd: int) -> None:
    with pytest.raises(OSError, match=r"\[Errno") as refused:
        ioctl(fd, IOC_GET_SEALS, bytearray(4))
    assert refused.value.errno == errno.EBADF


def test_another_file_system_knows_none_of_them(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        with pytest.raises(OSError, match=r"\[Errno") as refused:
            move_pages(file.fileno(), [(0, 0)])
        assert refused.value.errno == errno.ENOTTY
        assert move_pages(file.fileno(), []) == [], "nothing was asked"
