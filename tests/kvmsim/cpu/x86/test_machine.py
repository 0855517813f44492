"""What vCPUs share: turns, and regions that come and go."""

from functools import partial

from kvmsim.cpu.x86.layout import MAX_REGIONS, RegionKind, VmState
from kvmsim.cpu.x86.machine import Machine, Turns
from kvmsim.kvm.region import MemoryRegion
from kvmsim.memory.memory import SparseMemory
from tests.support.both_sides import LocalStore, LocalVm, alias, page
from tests.support.machine_code import Code
from tests.support.threads import Beside, until


def test_turns_are_taken_in_order() -> None:
    state = VmState()
    turns, order = Turns(state), list[int]()

    def take(number: int) -> None:
        with turns:
            order.append(number)

    with turns, turns:
        waiting = []
        for number in range(3):
            waiting.append(Beside(partial(take, number)))
            until(lambda number=number: state.waiting == number + 1, "it waits")  # type: ignore[misc]
        assert order == []
    for one in waiting:
        one.result()
    assert order == [0, 1, 2]
    assert state.waiting == 0


def test_regions_go_with_their_memory(vm: LocalVm) -> None:
    machine = Machine(vm.kvm)
    vm.shared_slot(0, 0, page(16))
    vm.write(0, b"x", shared=True)
    pfn = vm.kvm.vm.mmu.epts[0].walk(0) >> 12  # type: ignore[arg-type]
    found = machine.find(pfn)
    assert found is not None
    assert found.kind is RegionKind.DIRECT
    assert machine.ram() == [found]
    vm.delete(0, private=False)
    assert machine.ram() == []
    assert machine.find(pfn) is None
    assert machine.state.region_count == 0


def test_there_may_be_more_memories_than_regions(vm: LocalVm) -> None:
    machine = Machine(vm.kvm)
    for number in range(MAX_REGIONS + 8):
        vm.shared_slot(number, page(number), page(1))
        vm.write(page(number), b"x", shared=True)
        assert machine.find(vm.kvm.vm.mmu.epts[0].walk(number) >> 12) is not None  # type: ignore[arg-type]
    assert machine.state.region_count == len(machine.ram()) == MAX_REGIONS


def test_a_memory_larger_than_an_address_space_is_mapped_in_parts(vm: LocalVm) -> None:
    memory = SparseMemory(1 << 47)
    for number, gpa in enumerate((1 << 30, 1 << 40)):
        vm.vmm.memory.set_shared_slot(MemoryRegion.shared(number, gpa, page(4), offset=gpa), memory, owned=False)
    source = "movb $7, (%rbx); movb $8, (%rcx); hlt"
    Code(vm).place(source, alias(1 << 30), rbx=alias((1 << 30) + page(2)), rcx=alias((1 << 40) + 5)).run()
    assert memory.read((1 << 30) + page(2), 1) == b"\x07"
    assert memory.read((1 << 40) + 5, 1) == b"\x08"
    for number in range(2):
        vm.delete(number, private=False)
    memory.close()


def test_a_window_has_one_region(store: LocalStore) -> None:
    store.create("mem", 8)
    vm = store.vm()
    vm.private_slot(0, 0, page(8), "mem")
    code = Code(vm).place("movb $1, 0x2000(%rip); hlt", page(1))
    assert code.run() is not None
    assert code.engine.state.fills <= 4
