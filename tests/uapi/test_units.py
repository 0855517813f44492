"""Sizes as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfsd.uapi.units import (
    ORDER_1G,
    ORDER_2M,
    ORDER_4K,
    Gfn,
    HostPfn,
    Pfn,
    Pgoff,
    format_size,
    order_of_page_size,
    page_aligned,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("0x1000", 4096),
        ("0X1F", 31),
        ("4K", 4096),
        ("4k", 4096),
        ("64M", 64 << 20),
        ("2G", 2 << 30),
        ("2GiB", 2 << 30),
        ("2gb", 2 << 30),
        ("1T", 1 << 40),
        ("0x10K", 16 << 10),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_a_size_is_bytes_or_a_number_with_a_unit_or_hex(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", " ", "K", "-1", "+1", "1.5G", "4 K", "4K ", "0x", "1e3", "4P", "4KK", "\u0664", "4i", "1_000"]
)
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_size(text)
    assert f"'{text}'" in str(caught.value)


@pytest.mark.parametrize("text", ["9223372036854775808", "8388608T", "0x8000000000000000", "9" * 400])
def test_a_size_beyond_any_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="larger than any file"):
        parse_size(text)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, (1 << 63) - 1))
def test_a_formatted_size_reads_back_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_a_size_is_formatted_in_its_largest_whole_unit() -> None:
    assert [format_size(n) for n in (0, 4095, 4096, 4097, 3 << 20, 1 << 40)] == ["0", "4095", "4K", "4097", "3M", "1T"]


def test_page_sizes_are_4k_2m_and_1g() -> None:
    assert [order_of_page_size(n) for n in (4096, 2 << 20, 1 << 30)] == [ORDER_4K, ORDER_2M, ORDER_1G]
    for size in (0, 1, 8192, 1 << 21 | 1, 1 << 40):
        with pytest.raises(ValueError, match="choose 4K, 2M or 1G"):
            order_of_page_size(size)


def test_alignment_is_that_of_the_order() -> None:
    assert page_aligned(0) and page_aligned(8192) and not page_aligned(4095)
    assert page_aligned(2 << 20, ORDER_2M) and not page_aligned(4096, ORDER_2M)
    assert page_aligned(1 << 30, ORDER_1G) and not page_aligned(2 << 20, ORDER_1G)


def test_page_indices_are_plain_ints_and_mypy_keeps_them_apart() -> None:
    """An ignored error that mypy no longer finds is an error of mypy: it checks this test, too."""

    def frame_of(gfn: Gfn, pfn: HostPfn) -> Pfn:
        return Pfn(pfn - HostPfn(gfn))

    assert type(frame_of(Gfn(1), HostPfn(3))) is int
    assert frame_of(Gfn(1) + 1, HostPfn(3) + 4) == 5
    assert frame_of(Pgoff(1), HostPfn(3)) == 2  # type: ignore[arg-type]
    assert frame_of(Gfn(1), Pfn(3)) == 2  # type: ignore[arg-type]
    assert frame_of(1, HostPfn(3)) == 2  # type: ignore[arg-type]
    assert frame_of(Gfn(3) - Gfn(2), HostPfn(3)) == 2  # type: ignore[arg-type]
    assert frame_of(Gfn(3) - 2, HostPfn(3)) == 2
