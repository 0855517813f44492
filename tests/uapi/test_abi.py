"""The profiles: what differs is a value, and a VM of one never gets a file of another."""

import errno
from dataclasses import fields

import pytest

from memfsd.uapi.abi import ABIS, GMEM_6_18, GMEM_7_2, GMEM_INPLACE, THREAD, Abi, Attributes, abi_of, check_same
from tests.support.core_store import refused


def test_linux_7_2_differs_from_6_18_in_two_things() -> None:
    differs = {field.name for field in fields(Abi) if getattr(GMEM_6_18, field.name) != getattr(GMEM_7_2, field.name)}
    assert differs == {"name", "bound_twice", "has_signed_offsets"}
    assert (GMEM_6_18.bound_twice, GMEM_7_2.bound_twice) == (errno.EINVAL, errno.EEXIST)


def test_in_place_the_attributes_are_the_files() -> None:
    assert [abi.attributes for abi in ABIS.values()] == [
        Attributes.NONE,
        Attributes.VM,
        Attributes.VM,
        Attributes.FILE,
    ]


@pytest.mark.parametrize("abi", ABIS.values(), ids=lambda abi: abi.name)
def test_an_abi_is_found_by_its_name_and_fits_itself(abi: Abi) -> None:
    assert abi_of(abi.name) is abi
    check_same(abi, abi.name)


@pytest.mark.parametrize("name", ["", "gmem", "Thread", "gmem-6.18 "])
def test_an_unknown_one_is_einval_and_the_known_ones_are_named(name: str) -> None:
    with refused("EINVAL", match="thread, gmem-6.18, gmem-7.2, gmem-inplace"):
        abi_of(name)


@pytest.mark.parametrize("store", ABIS.values(), ids=lambda abi: abi.name)
def test_a_vm_of_another_abi_is_refused_with_the_way_out(store: Abi) -> None:
    for other in {*ABIS, ""} - {store.name}:
        with refused("EINVAL", match=f"kvmsim --abi {store.name}"):
            check_same(store, other)


def test_only_the_thread_keeps_gfns_and_destroys_what_is_unmapped() -> None:
    assert [abi.name for abi in ABIS.values() if abi.fixed_gfn or abi.destroys_unmapped] == [THREAD.name]
    assert not GMEM_INPLACE.destroys_unmapped
