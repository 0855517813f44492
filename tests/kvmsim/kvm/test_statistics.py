"""Statistics by the kernel's names: what each counts."""

from collections.abc import Iterator

import pytest

from kvmsim.kvm.statistics import vcpu_statistics
from tests.support.both_sides import LocalStore, page
from tests.support.script_lines import Lines

NAMES_OF_THE_KERNEL = {
    *("pf_taken", "pf_fixed", "tlb_flush", "exits", "io_exits", "mmio_exits", "signal_exits"),
    *("halt_exits", "hypercalls"),
    *("remote_tlb_flush", "remote_tlb_flush_requests", "pages_4k", "pages_2m", "pages_1g"),
}


@pytest.fixture
def private(store: LocalStore) -> Iterator[Lines]:
    """Private slot 0 at 0, 16 pages."""
    store.create("file", 16)
    lines = Lines(store=store)
    lines.ok(f"slot set 0 private gpa=0 size=64K file={store.path('file')}")
    yield lines
    lines.executor.close()


def counted(lines: Lines) -> dict[str, int]:
    """What `info stats` says."""
    facts = lines.ok("info stats").info
    assert isinstance(facts, dict)
    return facts


def test_one_call_has_the_kernels_names(private: Lines) -> None:
    assert counted(private).keys() >= NAMES_OF_THE_KERNEL


def test_a_fault_is_taken_and_fixed_and_an_access_that_hits_is_nothing(private: Lines) -> None:
    private.ok("write 0 aa", "write 0 bb", "read 0 1")
    found = counted(private)
    assert (found["pf_taken"], found["pf_fixed"], found["exits"], found["pages_4k"]) == (1, 1, 1, 1)
    assert (found["userspace_exits"], found["mmio_exits"]) == (0, 0)


def test_an_access_of_a_device_is_a_fault_and_an_exit_to_user_space(private: Lines) -> None:
    private("read 3G 4 shared")
    private("read 3G 4")
    found = counted(private)
    assert (found["pf_taken"], found["pf_fixed"]) == (2, 0)
    assert (found["mmio_exits"], found["memory_error_exits"], found["userspace_exits"]) == (1, 1, 2)


def test_calls_halts_and_requests_to_leave(private: Lines) -> None:
    private("hypercall 12 0 1 0")
    private("tdvmcall 0x10001 1 4K")
    private("hlt")
    private("kick")
    private("write 0 aa")
    found = counted(private)
    assert (found["hypercalls"], found["halt_exits"], found["signal_exits"]) == (2, 1, 1)
    assert found["exits"] == found["pf_taken"] + 4


def test_a_zap_flushes_the_tlbs_of_others_once_and_nothing_needs_no_flush(private: Lines) -> None:
    private.ok("vcpu 1", "touch 0 16K", f"slot punch 0 gpa=0 size={page(1)}")
    found = counted(private)
    assert (found["remote_tlb_flush_requests"], found["remote_tlb_flush"]) == (1, 1)
    private.ok(f"slot punch 0 gpa={page(8)} size={page(1)}")
    found = counted(private)
    assert (found["remote_tlb_flush_requests"], found["remote_tlb_flush"]) == (2, 1)


def test_each_vcpu_has_its_own(private: Lines) -> None:
    private.ok("vcpu 1", "touch 0 4K", "touch vcpu=1 4K 4K")
    assert counted(private)["pf_taken"] == 2
    (machine,) = private.executor._machines.values()
    assert [vcpu_statistics(vcpu)["pf_taken"] for vcpu in machine.vm.vcpus.values()] == [1, 1]
