"""A conversion may take the last slot of a file away: its pairing stays as long as something is to come back."""

from functools import partial

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.exits import Exit
from kvmsim.kvm.hypercalls import SHARED_BIT
from tests.support.both_sides import LocalStore, LocalVm, page


def converted(store: LocalStore, start: int, end: int) -> LocalVm:
    """A VM whose file of 8 pages is converted to shared in these."""
    store.create("file", 8)
    vm = store.vm()
    vm.private_slot(0, 0, page(8), "file")
    vm.vmm.set_policy("recreate")
    assert convert(vm, start, end, shared=True) is None
    return vm


def convert(vm: LocalVm, start: int, end: int, *, shared: bool) -> object:
    for number in range(start, end):
        gpa = page(number) | (SHARED_BIT if shared else 0)
        done = vm.vmm.run(vm.vcpu, partial(vm.guest.write, vm.vcpu, gpa & ~SHARED_BIT, b"x", shared=shared))
        if isinstance(done, Exit):
            return done
    return None


def test_a_file_that_is_all_shared_can_be_private_again(store: LocalStore) -> None:
    vm = converted(store, 0, 8)
    link = vm.link()
    assert not list(vm.vm.slots[PRIVATE])
    assert convert(vm, 0, 8, shared=False) is None
    assert vm.link() is link


def test_what_is_converted_holds_the_pairing_when_the_rest_is_deleted(store: LocalStore) -> None:
    vm = converted(store, 2, 4)
    link = vm.link()
    for slot in list(vm.vm.slots[PRIVATE]):
        vm.delete(slot.id, private=True)
    assert vm.link() is link
    assert convert(vm, 2, 4, shared=False) is None
    assert [(slot.gfn, slot.end) for slot in vm.vm.slots[PRIVATE]] == [(2, 3), (3, 4)]
    for slot in list(vm.vm.slots[PRIVATE]):
        vm.delete(slot.id, private=True)
    assert vm.kvm.pairings.links == {}, "nothing is left to come back"
