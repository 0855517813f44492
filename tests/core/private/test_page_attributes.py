"""Which pages of a guest_memfd are shared, and what KVM_SET_MEMORY_ATTRIBUTES2 may ask."""

from typing import Any

import pytest

from memfsd.core.private.page_attributes import GuestMemfd, born, check_attributes
from memfsd.uapi.abi import GmemFlag
from memfsd.uapi.gmem_ioctls import ATTRIBUTE_PRIVATE, MemoryAttributes2
from memfsd.uapi.units import PAGE_SIZE, Pgoff
from tests.support.core_store import refused

PAGES = 16
BOTH = GmemFlag.MMAP | GmemFlag.INIT_SHARED


@pytest.fixture
def memfd() -> GuestMemfd:
    """Pages 4 to 8 are shared."""
    made = born(GmemFlag.MMAP, PAGES)
    made.convert(4, 8, to_shared=True)
    return made


def test_it_is_born_private_or_as_the_flag_says_shared() -> None:
    assert born(GmemFlag.MMAP, PAGES).is_private(0, PAGES)
    assert born(BOTH, PAGES).is_shared(0, PAGES)
    assert not born(GmemFlag.INIT_SHARED, PAGES).is_mappable


def test_a_range_is_of_one_kind_only_if_all_of_it_is(memfd: GuestMemfd) -> None:
    assert memfd.is_shared(4, 8)
    assert not memfd.is_shared(3, 8)
    assert not memfd.is_private(3, 5)
    assert memfd.is_private(8, PAGES)


def test_conversions_split_ranges_and_join_them_again(memfd: GuestMemfd) -> None:
    memfd.convert(5, 6, to_shared=False)
    assert memfd.shared_ranges(Pgoff(0), Pgoff(PAGES)) == [(4, 5), (6, 8)]
    memfd.convert(5, 6, to_shared=True)
    assert memfd.shared_ranges(Pgoff(0), Pgoff(PAGES)) == [(4, 8)]


@pytest.mark.parametrize(("page", "answer"), [(0, (False, 4)), (4, (True, 8)), (7, (True, 8)), (8, (False, None))])
def test_how_far_it_goes(memfd: GuestMemfd, page: int, answer: tuple[bool, int | None]) -> None:
    assert memfd.shared_until(page) == answer


def ask(memfd: GuestMemfd, page: int, count: int, attributes: int = 0) -> object:
    asked = MemoryAttributes2(page * PAGE_SIZE, count * PAGE_SIZE, attributes)
    return check_attributes(memfd, asked, PAGES * PAGE_SIZE)


def test_what_is_so_already_changes_nothing(memfd: GuestMemfd) -> None:
    assert ask(memfd, 4, 4) is None
    assert ask(memfd, 0, 4, ATTRIBUTE_PRIVATE) is None
    assert ask(memfd, 3, 2) == (3, 5)
    assert ask(memfd, 3, 2, ATTRIBUTE_PRIVATE) == (3, 5)


GOOD = MemoryAttributes2(0, PAGE_SIZE, ATTRIBUTE_PRIVATE)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"flags": 1}, "flags 0x1"),
        ({"reserved": (0, 1) + (0,) * 9, "attributes": 1}, "reserved"),
        ({"attributes": 1, "size": 0}, "attributes 0x1"),
        ({"size": 0, "offset": 1}, "size 0"),
        ({"offset": (1 << 64) - PAGE_SIZE}, "within 64 bits"),
        ({"offset": 1 << 20 | 1}, "multiples"),
        ({"offset": PAGES * PAGE_SIZE}, "past the end"),
    ],
)
def test_the_order_of_checks_is_the_kernels(memfd: GuestMemfd, wrong: dict[str, Any], said: str) -> None:
    with refused("EINVAL", match=said):
        check_attributes(memfd, GOOD._replace(**wrong), PAGES * PAGE_SIZE)
