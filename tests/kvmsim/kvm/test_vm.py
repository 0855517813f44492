"""DESIGN 6.1: each request of the guest, row by row, and what comes of it."""

import errno

import pytest

from kvmsim.kvm.alias import PRIVATE, SHARED
from kvmsim.kvm.exits import ExitReason, MemoryErrorExit, MmioExit
from kvmsim.kvm.region import SlotFlag
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE, Gfn
from tests.support.both_sides import LocalStore, LocalVm, alias, errno_of, page


@pytest.fixture
def both(store: LocalStore) -> LocalVm:
    """Pages 0-15 are private, pages 8-23 shared: so 8-15 have both aliases."""
    store.create("file", 16)
    local = store.vm()
    local.private_slot(0, 0, page(16), "file")
    local.shared_slot(0, page(8), page(16))
    return local


PRIVATE_ONLY, BOTH, SHARED_ONLY, NOTHING = page(2), page(9), page(20), page(40)


# -- implicit


def test_implicit_private_and_a_private_slot_covers_it_is_handled(both: LocalVm) -> None:
    assert both.write(PRIVATE_ONLY, b"secret") is None
    assert both.read(PRIVATE_ONLY, 6) == b"secret"
    assert both.write(BOTH, b"mine") is None
    assert both.read(BOTH, 4) == b"mine"


@pytest.mark.parametrize("gpa", [SHARED_ONLY, NOTHING], ids=["a shared slot is there", "nothing is there"])
def test_implicit_private_and_no_private_slot_exits_as_memory_error(both: LocalVm, gpa: int) -> None:
    expected = MemoryErrorExit(gpa, PAGE_SIZE, private=True)
    assert both.read(gpa + 8, 4) == expected
    assert both.write(gpa + 8, b"data") == expected
    assert both.touch(gpa, 1) == expected
    assert (expected.explicit, expected.illegal, expected.errno) == (False, False, 0)


@pytest.mark.parametrize("gpa", [SHARED_ONLY, BOTH], ids=["shared only", "over a private slot"])
def test_implicit_shared_and_a_shared_slot_covers_it_is_handled(both: LocalVm, gpa: int) -> None:
    assert both.write(gpa, b"public", shared=True) is None
    assert both.read(gpa, 6, shared=True) == b"public"


def test_implicit_shared_and_only_a_private_slot_exits_as_memory_error(both: LocalVm) -> None:
    expected = MemoryErrorExit(PRIVATE_ONLY, PAGE_SIZE, private=False)
    assert both.read(PRIVATE_ONLY + 100, 4, shared=True) == expected
    assert both.write(PRIVATE_ONLY + 100, b"data", shared=True) == expected
    assert both.touch(PRIVATE_ONLY, 1, shared=True) == expected


def test_implicit_shared_and_neither_slot_exits_as_mmio(both: LocalVm) -> None:
    assert both.read(NOTHING + 4, 4, shared=True) == MmioExit(NOTHING + 4, 4, is_write=False)
    assert both.write(NOTHING + 4, b"\x01\x02", shared=True) == MmioExit(NOTHING + 4, 2, True, b"\x01\x02")


def test_mmio_carries_at_most_eight_bytes_as_kvm_run_does(both: LocalVm) -> None:
    assert both.read(NOTHING, 100, shared=True) == MmioExit(NOTHING, 8, is_write=False)
    assert both.write(NOTHING, b"0123456789", shared=True) == MmioExit(NOTHING, 8, True, b"01234567")


# -- explicit


@pytest.mark.parametrize(("gpa", "size"), [(0, page(16)), (page(3), page(1)), (page(8), page(8))])
def test_explicit_private_and_a_slot_covers_it_is_handled_without_exit(both: LocalVm, gpa: int, size: int) -> None:
    assert both.guest.map(both.vcpu, gpa, size, private=True) is None
    assert (
        both.vm.mmu.epts[PRIVATE].first_missing(Gfn(gpa // PAGE_SIZE), (Gfn(Gfn(gpa + size) // PAGE_SIZE)))
        == (gpa + size) // PAGE_SIZE
    )


def test_explicit_shared_and_a_slot_covers_it_is_handled_without_exit(both: LocalVm) -> None:
    assert both.guest.map(both.vcpu, page(8), page(16), private=False) is None
    assert both.vm.mmu.epts[SHARED].leaf_count == 16


@pytest.mark.parametrize("private", [True, False], ids=["private", "shared"])
@pytest.mark.parametrize(
    ("gpa", "size"),
    [(NOTHING, page(1)), (page(7), page(18)), (0, page(40)), (page(7), page(10))],
    ids=["nothing", "before one and past the other", "more than both", "across the edges"],
)
def test_explicit_and_not_fully_covered_exits_as_memory_error(
    both: LocalVm, gpa: int, size: int, private: bool
) -> None:
    leaves = both.vm.mmu.epts[private].leaf_count
    assert both.guest.map(both.vcpu, gpa, size, private=private) == MemoryErrorExit(gpa, size, private, explicit=True)
    assert both.vm.mmu.epts[private].leaf_count == leaves, "and nothing of it was mapped"


def test_explicit_across_two_slots_is_not_covered_by_one(both: LocalVm) -> None:
    both.shared_slot(1, page(24), page(8))
    assert both.guest.map(both.vcpu, page(20), page(8), private=False) == MemoryErrorExit(
        page(20), page(8), private=False, explicit=True
    )


@pytest.mark.parametrize(
    ("gpa", "size", "status"),
    [
        (0, 0, "invalid operand"),
        ((1 << 48) - PAGE_SIZE, page(2), "invalid operand"),
        ((1 << 48) + 1, 0, "invalid operand"),
        (1, page(1), "alignment error"),
        (0, 1, "alignment error"),
    ],
)
def test_map_gpa_refuses_operands_by_the_status_of_tdx(both: LocalVm, gpa: int, size: int, status: str) -> None:
    with pytest.raises(Refused, match=status) as refused:
        both.guest.map(both.vcpu, gpa, size, private=True)
    assert refused.value.errno == errno.EINVAL


def test_an_explicit_request_that_the_store_refuses_exits_as_explicit(store: LocalStore) -> None:
    store.create("file", 1025)
    local = store.vm()
    local.private_slot(0, 0, page(1025), "file")
    assert local.touch(0, page(1024)) is None, "every frame of the pool is in use"
    exit_ = local.guest.map(local.vcpu, page(1024), page(1), private=True)
    assert isinstance(exit_, MemoryErrorExit)
    assert (exit_.errno, exit_.private, exit_.explicit) == (errno.ENOSPC, True, True)
    assert "ENOSPC" in exit_.why


# -- host access, as for emulation


def test_host_access_that_hits_private_memory_fails_and_is_marked_illegal(both: LocalVm) -> None:
    both.write(PRIVATE_ONLY, b"secret")
    expected = MemoryErrorExit(PRIVATE_ONLY, PAGE_SIZE, private=True, illegal=True)
    assert both.guest.host_access(PRIVATE_ONLY, 6, None) == expected
    assert both.guest.host_access(PRIVATE_ONLY, 6, b"attack") == expected
    assert both.read(PRIVATE_ONLY, 6) == b"secret"


def test_host_access_looks_up_shared_only_where_both_are(both: LocalVm) -> None:
    both.write(BOTH, b"secret")
    both.write(BOTH, b"public", shared=True)
    assert both.guest.host_access(BOTH, 6, None) == b"public"
    assert both.guest.host_access(BOTH, 6, b"host's") == b""
    assert (both.read(BOTH, 6), both.read(BOTH, 6, shared=True)) == (b"secret", b"host's")


def test_host_access_across_pages_stops_at_the_private_one(both: LocalVm) -> None:
    both.delete(0, private=False)
    both.shared_slot(0, page(16), page(1))
    before = page(16) - 4
    assert both.guest.host_access(before, 8, None) == MemoryErrorExit(page(15), PAGE_SIZE, True, illegal=True)
    assert both.guest.host_access(page(16), PAGE_SIZE, None) == bytes(PAGE_SIZE)


def test_host_access_to_nothing_is_efault(both: LocalVm) -> None:
    assert errno_of(both.guest.host_access, NOTHING, 1, None) == "EFAULT"
    assert errno_of(both.guest.host_access, NOTHING, 1, b"x") == "EFAULT"


def test_host_write_to_a_readonly_slot_is_efault_as_in_kvm(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(1), SlotFlag.READONLY)
    assert vm.guest.host_access(0, 1, None) == b"\0"
    assert errno_of(vm.guest.host_access, 0, 1, b"x") == "EFAULT"
    assert vm.guest.host_access(0, 1, None) == b"\0"


# -- which alias


def test_the_shared_bit_of_the_gpa_names_the_shared_alias(both: LocalVm) -> None:
    both.write(BOTH, b"secret")
    both.write(alias(BOTH), b"public")
    assert (both.read(BOTH, 6), both.read(alias(BOTH), 6)) == (b"secret", b"public")
    assert both.read(BOTH, 6, shared=True) == b"public"
    assert both.read(alias(PRIVATE_ONLY), 1) == MemoryErrorExit(PRIVATE_ONLY, PAGE_SIZE, private=False)
    assert both.read(alias(NOTHING), 4) == MmioExit(NOTHING, 4, is_write=False)
    assert both.guest.map(both.vcpu, alias(page(8)), page(16), private=False) is None


@pytest.mark.parametrize("gpa", [1 << 48, (1 << 48) - 2, 1 << 52, alias((1 << 48) - 2)])
def test_addresses_beyond_the_guests_are_efault(both: LocalVm, gpa: int) -> None:
    assert errno_of(both.read, gpa, 4) == "EFAULT"
    assert errno_of(both.write, gpa, b"1234") == "EFAULT"
    assert errno_of(both.touch, gpa, 4) == "EFAULT"
    assert errno_of(both.guest.host_access, gpa, 4, None) == "EFAULT"


# -- read-only slots


def test_a_readonly_slot_is_read_as_memory_and_written_as_mmio(vm: LocalVm) -> None:
    memory = vm.shared_slot(0, 0, page(2), SlotFlag.READONLY)
    memory.write(0, b"firmware")
    assert vm.read(0, 8, shared=True) == b"firmware"
    assert vm.write(4, b"hack", shared=True) == MmioExit(4, 4, True, b"hack")
    assert vm.touch(0, page(2), shared=True) == MmioExit(0, 1, True, b"f"), "the byte that it read, written back"
    assert vm.read(0, 8, shared=True) == b"firmware"


def test_a_write_that_runs_into_a_readonly_slot_stops_there(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(1))
    vm.shared_slot(1, page(1), page(1), SlotFlag.READONLY)
    assert vm.read(0, page(2), shared=True) == bytes(page(2)), "both are mapped now"
    assert vm.write(page(1) - 4, b"12345678", shared=True) == MmioExit(page(1), 4, True, b"5678")
    assert vm.read(page(1) - 4, 8, shared=True) == b"1234\0\0\0\0"


# -- more than one page


def test_an_access_across_pages_is_one_access(both: LocalVm) -> None:
    assert both.write(page(3) - 3, b"across") is None
    assert both.read(page(3) - 3, 6) == b"across"
    assert both.read(page(2), 3) == b"\0\0\0", "a new private page reads as zeros"
    assert both.write(page(9), bytes(range(256)) * 48, shared=True) is None
    assert both.read(page(9), 256 * 48, shared=True) == bytes(range(256)) * 48


def test_an_access_across_the_end_of_a_slot_exits_at_the_first_page_that_is_missing(both: LocalVm) -> None:
    assert both.write(page(16) - 2, b"split") == MemoryErrorExit(page(16), PAGE_SIZE, private=True)
    assert both.read(page(16) - 2, 2) == b"sp", "what lies before it was done"
    assert both.write(page(24) - 2, b"split", shared=True) == MmioExit(page(24), 3, True, b"lit")


def test_mmio_does_not_cross_a_page(both: LocalVm) -> None:
    edge = NOTHING + PAGE_SIZE - 3
    assert both.read(edge, 8, shared=True) == MmioExit(edge, 3, is_write=False)
    assert both.write(edge, b"01234567", shared=True) == MmioExit(edge, 3, True, b"012")


def test_touch_leaves_data_alone_and_touches_partial_pages_whole(both: LocalVm) -> None:
    both.write(page(4), b"data")
    assert both.touch(page(4) + 100, page(1)) is None
    assert both.read(page(4), 4) == b"data"
    assert both.vm.mmu.epts[PRIVATE].touched(Gfn(0), Gfn(16)) == [(4, 6)]


def test_an_exit_can_be_repaired_and_the_access_run_again(vm: LocalVm) -> None:
    assert isinstance(vm.write(0, b"late", shared=True), MmioExit)
    vm.shared_slot(0, 0, page(1))
    assert vm.write(0, b"late", shared=True) is None
    assert vm.read(0, 4, shared=True) == b"late"


def test_kvm_run_tells_the_reason_and_every_field() -> None:
    assert MemoryErrorExit(0x1000, 4096, True, True, True).fields() == {
        "gpa": 0x1000,
        "size": 4096,
        "private": True,
        "explicit": True,
        "illegal": True,
    }
    assert MemoryErrorExit(0, 4096, False, errno=28).fields()["errno"] == 28
    assert MmioExit(8, 2, True, b"\x01\x02").fields() == {"phys_addr": 8, "len": 2, "is_write": True, "data": "0102"}
    assert MmioExit(8, 2, False).fields() == {"phys_addr": 8, "len": 2, "is_write": False}
    assert (MemoryErrorExit.reason, MmioExit.reason) == (ExitReason.MEMORY_ERROR, ExitReason.MMIO)
