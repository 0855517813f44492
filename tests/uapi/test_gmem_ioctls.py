"""guest_memfd's structures are Linux's, byte for byte, and its creation is checked in Linux's order."""

import struct

import pytest

from memfsd.uapi.abi import GmemFlag
from memfsd.uapi.gmem_ioctls import (
    ATTRIBUTES2_BYTES,
    CREATE_BYTES,
    CreateGuestMemfd,
    MemoryAttributes2,
    check_create,
    format_flags,
    parse_flags,
)
from memfsd.uapi.names import IOC_CREATE_GUEST_MEMFD, IOC_SET_MEMORY_ATTRIBUTES2
from tests.support.core_store import refused

BOTH = GmemFlag.MMAP | GmemFlag.INIT_SHARED


def test_the_structures_have_the_kernels_sizes_which_their_ioctls_name() -> None:
    assert (CREATE_BYTES, ATTRIBUTES2_BYTES) == (64, 128)
    assert IOC_CREATE_GUEST_MEMFD >> 16 & 0x3FFF == CREATE_BYTES
    assert IOC_SET_MEMORY_ATTRIBUTES2 >> 16 & 0x3FFF == ATTRIBUTES2_BYTES


def test_the_words_are_in_the_kernels_order() -> None:
    assert struct.unpack("=8Q", CreateGuestMemfd(4096, 3).pack())[:2] == (4096, 3)
    asked = MemoryAttributes2(1, 2, 3, 4, 5, tuple(range(6, 17)))
    assert struct.unpack("=16Q", asked.pack()) == tuple(range(1, 17))
    assert MemoryAttributes2.unpack(asked.pack()) == asked
    assert CreateGuestMemfd.unpack(CreateGuestMemfd(4096, 3).pack()) == (4096, 3)


@pytest.mark.parametrize("asked", [CreateGuestMemfd(1 << 64, 0), CreateGuestMemfd(-1, 0), CreateGuestMemfd(0, -1)])
def test_what_does_not_fit_into_64_bits_is_refused(asked: CreateGuestMemfd) -> None:
    with refused("EINVAL"):
        asked.pack()


@pytest.mark.parametrize(
    ("size", "flags", "said"),
    [
        (0, 0, "size 0"),
        (4097, 0, "size 4097"),
        (1 << 63, 0, "size"),
        (0, 4, "flags 0x4"),
        (4096, 1 << 63, "flags"),
    ],
)
def test_flags_are_looked_at_before_the_size(size: int, flags: int, said: str) -> None:
    with refused("EINVAL", match=said):
        check_create(size, flags, BOTH)


def test_what_is_right_is_not_refused() -> None:
    check_create((1 << 63) - 4096, 3, BOTH)


@pytest.mark.parametrize(("text", "flags"), [("mmap", GmemFlag.MMAP), ("init-shared,mmap", BOTH)])
def test_flags_have_names(text: str, flags: GmemFlag) -> None:
    assert parse_flags(text) == flags
    assert parse_flags(format_flags(flags)) == flags


def test_no_flag_has_a_name_too_and_an_unknown_one_is_named() -> None:
    assert format_flags(GmemFlag(0)) == "none"
    with pytest.raises(ValueError, match="no flag 'exec'"):
        parse_flags("mmap,exec")
