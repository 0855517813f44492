"""The guest's library against hosts that stall, lie and refuse."""

from collections.abc import Callable

import pytest

from kvmsim.cpu.guestlib import MAX_RETRIES, map_gpa, set_memory
from kvmsim.kvm.alias import PRIVATE, SHARED
from kvmsim.kvm.exits import Exit
from kvmsim.kvm.hypercalls import INVALID_OPERAND, MAP_GPA, RETRY, SUCCESS, Registers
from kvmsim.kvm.vcpu import Program
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import Gfn
from tests.support.both_sides import LocalStore, LocalVm, alias, errno_of, page

Host = Callable[[Registers], tuple[int, int]]
MIB = 1 << 20


class Hosted:
    """A guest on a host that answers (R10, R11) to each call."""

    def __init__(self, *answers: tuple[int, int]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[int, int]] = []
        self.accepted: list[tuple[int, int]] = []

    def call(self, registers: Registers) -> Program[Registers]:
        assert (registers.r10, registers.r11) == (0, MAP_GPA)
        self.asked.append((registers.r12, registers.r13))
        r10, r11 = self._answers.pop(0)
        return Registers(r10, r11)
        yield  # a program that never exits

    def accept(self, gpa: int, size: int) -> Program[None]:
        self.accepted.append((gpa, size))
        return
        yield

    def convert(self, gpa: int, size: int, *, private: bool) -> None:
        finish(set_memory(self.call, self.accept, gpa, size, private=private))


def finish(program: Program[None]) -> None:
    exits: list[Exit] = list(program)
    assert exits == []


def test_one_call_when_all_is_well() -> None:
    guest = Hosted((SUCCESS, 0))
    guest.convert(page(1), page(4), private=True)
    assert (guest.asked, guest.accepted) == ([(page(1), page(4))], [(page(1), page(4))])


def test_to_shared_sets_the_shared_bit_and_accepts_nothing() -> None:
    guest = Hosted((SUCCESS, 0))
    guest.convert(page(1), page(4), private=False)
    assert (guest.asked, guest.accepted) == ([(alias(page(1)), page(4))], [])


def test_it_goes_on_from_the_resume_address() -> None:
    guest = Hosted((RETRY, alias(page(2))), (RETRY, alias(page(7))), (SUCCESS, 0))
    guest.convert(0, page(8), private=False)
    assert guest.asked == [(alias(0), page(8)), (alias(page(2)), page(6)), (alias(page(7)), page(1))]


def test_it_gives_up_after_three_retries_without_progress() -> None:
    guest = Hosted(*[(RETRY, 0)] * 9)
    assert errno_of(guest.convert, 0, page(8), private=True) == "EIO"
    assert len(guest.asked) == MAX_RETRIES == 3
    assert guest.accepted == [], "nothing is accepted that was not converted"


def test_progress_starts_the_count_anew() -> None:
    stalls = [(RETRY, 0), (RETRY, 0), (RETRY, page(1)), (RETRY, page(1)), (RETRY, page(1)), (SUCCESS, 0)]
    guest = Hosted(*stalls)
    guest.convert(0, page(8), private=True)
    assert len(guest.asked) == 6
    with pytest.raises(Refused, match="3 retries without progress"):
        Hosted(*stalls[:5], (RETRY, page(1))).convert(0, page(8), private=True)


@pytest.mark.parametrize(
    "r11",
    [page(1) - 1, 0, page(9), page(100), alias(page(2)), (1 << 64) - 1],
    ids=["before", "zero", "the end itself", "far behind", "the other alias", "the last address"],
)
def test_it_distrusts_a_resume_address_outside_of_what_it_asked_for(r11: int) -> None:
    guest = Hosted((RETRY, r11), (SUCCESS, 0))
    with pytest.raises(Refused, match="is outside of it"):
        guest.convert(page(1), page(8), private=True)
    assert (len(guest.asked), guest.accepted) == (1, [])


def test_it_does_not_go_back_behind_its_progress() -> None:
    guest = Hosted((RETRY, page(4)), (RETRY, page(2)), (SUCCESS, 0))
    assert errno_of(guest.convert, 0, page(8), private=True) == "EIO"


@pytest.mark.parametrize("status", [INVALID_OPERAND, 2, 77, (1 << 64) - 1])
def test_any_other_status_is_a_refusal(status: int) -> None:
    guest = Hosted((status, 0), (SUCCESS, 0))
    with pytest.raises(Refused, match=f"status {status:#x}"):
        guest.convert(0, page(8), private=True)
    assert (len(guest.asked), guest.accepted) == (1, [])


def test_the_map_command_of_a_guest_is_this_library(store: LocalStore) -> None:
    """The real host: what MapGPA maps is there, and acceptance faults in what was taken back in between."""
    store.create("file", 8)
    local = store.vm()
    local.private_slot(0, 0, page(8), "file")

    def call(registers: Registers) -> Program[Registers]:
        return Registers(SUCCESS)
        yield

    finish(set_memory(call, lambda gpa, size: local.guest._accepting(local.vcpu, gpa, size), 0, page(8), private=True))
    assert local.vm.mmu.epts[PRIVATE].leaf_count == 8, "a host that maps nothing itself"
    assert local.guest.map(local.vcpu, 0, page(8), private=True) is None
    finish(map_gpa(call, 0, page(8), private=True))


def test_a_lone_vm_needs_no_store_for_shared_memory(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, 6 * MIB)
    assert vm.guest.map(vm.vcpu, page(1), 5 * MIB, private=False) is None
    assert vm.vm.mmu.epts[SHARED].first_missing(Gfn(1), Gfn(1281)) == 1281
