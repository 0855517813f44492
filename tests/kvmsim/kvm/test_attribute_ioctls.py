"""KVM_SET_MEMORY_ATTRIBUTES: its wall, and that it is an invalidation also where nothing is bound."""

import pytest

from kvmsim.kvm.abi.attributes import MemoryAttributes
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.region import ATTRIBUTE_PRIVATE, AttributesRange
from kvmsim.kvm.vm import Vm
from memfsd.uapi.abi import GMEM_6_18, GMEM_INPLACE, THREAD, Abi
from memfsd.uapi.units import PAGE_SIZE, Gfn
from tests.support.both_sides import errno_of

PRIVATE_PAGE = AttributesRange(0, PAGE_SIZE, ATTRIBUTE_PRIVATE)


@pytest.fixture
def kvm() -> Kvm:
    return Kvm(Vm("vm0", abi=GMEM_6_18))


def test_all_is_shared_at_first_and_ranges_join_and_split(kvm: Kvm) -> None:
    assert kvm.attributes.ranges() == []
    kvm.attributes.set(AttributesRange(0, 4 * PAGE_SIZE, ATTRIBUTE_PRIVATE))
    kvm.attributes.set(AttributesRange(4 * PAGE_SIZE, PAGE_SIZE, ATTRIBUTE_PRIVATE))
    assert kvm.attributes.ranges() == [(0, 5)]
    kvm.attributes.set(AttributesRange(PAGE_SIZE, PAGE_SIZE, 0))
    assert kvm.attributes.ranges() == [(0, 1), (2, 5)]
    kvm.attributes.set(AttributesRange(0, (1 << 64) - PAGE_SIZE, 0))
    assert kvm.attributes.ranges() == []


@pytest.mark.parametrize(
    "asked",
    [
        PRIVATE_PAGE._replace(flags=1),
        PRIVATE_PAGE._replace(attributes=1),
        PRIVATE_PAGE._replace(attributes=ATTRIBUTE_PRIVATE | 1 << 63),
        PRIVATE_PAGE._replace(size=0),
        PRIVATE_PAGE._replace(address=(1 << 64) - PAGE_SIZE),
        PRIVATE_PAGE._replace(address=1),
        PRIVATE_PAGE._replace(size=PAGE_SIZE + 1),
        PRIVATE_PAGE._replace(size=-PAGE_SIZE),
    ],
)
def test_what_makes_no_sense_is_einval_and_changes_nothing(kvm: Kvm, asked: AttributesRange) -> None:
    assert errno_of(kvm.attributes.set, asked) == "EINVAL"
    assert (kvm.attributes.ranges(), kvm.vm.mmu.invalidate_seq) == ([], 0)


@pytest.mark.parametrize("abi", [THREAD, GMEM_INPLACE], ids=lambda abi: abi.name)
def test_a_vm_that_keeps_none_says_enotty_before_it_looks(abi: Abi) -> None:
    assert errno_of(Kvm(Vm("vm0", abi=abi)).attributes.set, PRIVATE_PAGE._replace(flags=1)) == "ENOTTY"


def test_it_is_an_invalidation_also_where_no_slot_is_and_none_where_nothing_changes(kvm: Kvm) -> None:
    kvm.attributes.set(PRIVATE_PAGE)
    assert (kvm.vm.mmu.invalidate_seq, kvm.vm.mmu.in_progress) == (1, 0)
    kvm.attributes.set(PRIVATE_PAGE)
    assert kvm.vm.mmu.invalidate_seq == 1
    kicks = kvm.vm.vcpu(0).kick_count
    kvm.attributes.set(PRIVATE_PAGE._replace(attributes=0))
    assert (kvm.vm.mmu.invalidate_seq, kvm.vm.vcpu(0).kick_count) == (2, kicks + 1)


def test_enomem_comes_before_any_change(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    kvm.attributes.set(PRIVATE_PAGE)
    monkeypatch.setattr("kvmsim.kvm.abi.attributes.MAX_ATTRIBUTE_RANGES", 1)
    assert errno_of(kvm.attributes.set, PRIVATE_PAGE._replace(address=1 << 20)) == "ENOMEM"
    assert (kvm.attributes.ranges(), kvm.vm.mmu.invalidate_seq, kvm.vm.mmu.in_progress) == ([(0, 1)], 1, 0)


def test_a_run_of_alike_gfns_ends_where_the_attribute_does() -> None:
    attributes = MemoryAttributes()
    attributes.store(Gfn(4), Gfn(8), private=True)
    assert attributes.run_at(Gfn(5)) == (True, 4, 8)
    assert attributes.run_at(Gfn(3)) == (False, 0, 4)
    assert attributes.run_at(Gfn(8))[:2] == (False, 8)
    assert attributes.has(Gfn(4), Gfn(8), private=True)
    assert not attributes.has(Gfn(4), Gfn(9), private=True)
