"""Each kind of instruction that can fault, with each half of its operand missing, against a run that never faults.

At the exit nothing has changed (but what the manual lets a repeated instruction have done), and after the repair the
instruction has happened once.
"""

import itertools
from dataclasses import dataclass, field

import pytest

from kvmsim.kvm.exits import HltExit, MemoryErrorExit
from kvmsim.kvm.region import MemoryRegion
from kvmsim.memory.memory import AnonymousMemory
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore, LocalVm, alias, page
from tests.support.machine_code import Code

CODE, SCRATCH, FIRST = alias(page(4)), alias(page(8)), alias(page(16))
EDGE = FIRST + PAGE_SIZE
"""Between the two pages that may be missing."""
_SEEN = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "rip", "rflags")


@dataclass(frozen=True)
class Case:
    code: str
    registers: dict[str, int] = field(default_factory=dict)
    changes: bool = False
    """What it has done before it meets the missing page stays done: REP, and stores of more than 8 bytes."""
    at: int = CODE


A, B = 0x1122334455667788, 0x99AABBCCDDEEFF00
ACROSS = {"rbx": EDGE - 4, "rcx": A, "rax": B, "rdx": 5}
STACK = {"rsp": EDGE + 4, "rcx": A, "rbp": B}
CASES = {
    "load": Case("mov (%rbx), %rax", ACROSS),
    "load within a page": Case("mov (%rbx), %rax", {**ACROSS, "rbx": EDGE}),
    "store": Case("mov %rcx, (%rbx)", ACROSS),
    "store within a page": Case("mov %rcx, (%rbx)", {**ACROSS, "rbx": FIRST + 8}),
    "add": Case("add %rcx, (%rbx)", ACROSS),
    "adc": Case("stc; adc %rcx, (%rbx)", ACROSS),
    "inc": Case("incq (%rbx)", ACROSS),
    "lock add": Case("lock add %rcx, (%rbx)", ACROSS),
    "lock xadd": Case("lock xadd %rcx, (%rbx)", ACROSS),
    "lock inc": Case("lock incq (%rbx)", ACROSS),
    "lock bts": Case("lock bts %rdx, (%rbx)", ACROSS),
    "lock cmpxchg": Case("lock cmpxchg %rcx, (%rbx)", ACROSS),
    "cmpxchg": Case("cmpxchg %rcx, (%rbx)", ACROSS),
    "lock cmpxchg8b": Case("lock cmpxchg8b (%rbx)", ACROSS),
    "lock cmpxchg16b": Case("lock cmpxchg16b (%rbx)", {**ACROSS, "rbx": FIRST + 32}),
    "xchg": Case("xchg %rcx, (%rbx)", ACROSS),
    "push": Case("push %rcx", STACK),
    "push memory": Case("push (%rbx)", {**STACK, "rbx": EDGE - 4, "rsp": SCRATCH + 64}),
    "pop": Case("pop %rax", {**STACK, "rsp": EDGE - 4}),
    "call": Case("call 1f\n1: nop", STACK),
    "ret": Case("lea 1f(%rip), %rax; mov %rax, -8(%rsp); sub $8, %rsp; ret\n1: nop", {"rsp": EDGE + 4}, changes=True),
    "enter": Case("enter $16, $0", STACK),
    "leave": Case("leave", {"rbp": EDGE - 4}),
    "pushf": Case("pushf", STACK),
    "movups load": Case("movups (%rbx), %xmm1; movq %xmm1, %rax", {"rbx": EDGE - 8}),
    "movups store": Case("movq %rcx, %xmm1; movups %xmm1, (%rbx)", {**ACROSS, "rbx": EDGE - 8}, changes=True),
    "rep movsb to": Case("rep movsb", {"rsi": SCRATCH, "rdi": EDGE - 4, "rcx": 8}, changes=True),
    "rep movsb from": Case("rep movsb", {"rdi": SCRATCH, "rsi": EDGE - 4, "rcx": 8}, changes=True),
    "rep movsb down": Case("std; rep movsb; cld", {"rsi": SCRATCH + 7, "rdi": EDGE + 3, "rcx": 8}, changes=True),
    "rep stosw": Case("rep stosw", {"rax": A, "rdi": EDGE - 4, "rcx": 4}, changes=True),
    "repe cmpsb": Case("repe cmpsb", {"rsi": EDGE - 4, "rdi": EDGE - 4, "rcx": 8}, changes=True),
    "repne scasb": Case("repne scasb", {"rax": 0xEE, "rdi": EDGE - 4, "rcx": 8}, changes=True),
    "rep lodsb": Case("rep lodsb", {"rsi": EDGE - 4, "rcx": 8}, changes=True),
    "fetch across": Case("movabs $0x1122334455667788, %rax", at=EDGE - 4),
    "fetch the next page": Case("nop; nop; mov $7, %eax", at=EDGE - 2, changes=True),
}


class World:
    """A private slot over all of it, so that a shared page without a slot is an exit; two pages that may be missing."""

    def __init__(self, store: LocalStore) -> None:
        store.create("mem", 64)
        self.vm: LocalVm = store.vm()
        self.vm.private_slot(0, 0, page(64), "mem")
        self.vm.shared_slot(1, page(4), page(8))
        self.code = Code(self.vm)
        self.pages = {gpa: AnonymousMemory(PAGE_SIZE) for gpa in (page(16), page(17))}
        for memory in self.pages.values():
            store.ending.callback(memory.close)

    def show(self, gpa: int, *, there: bool) -> None:
        number, size = gpa // PAGE_SIZE, PAGE_SIZE if there else 0
        memory = self.pages[gpa]
        self.vm.kvm.slots.set_shared_slot(MemoryRegion.shared(number, gpa, size), memory, owned=False)

    def begin(self, case: Case) -> None:
        """Everything is there, in its first state."""
        for at, gpa in enumerate(self.pages):
            self.show(gpa, there=True)
            self.vm.write(gpa, bytes((at * 37 + i) % 251 for i in range(PAGE_SIZE)), shared=True)
        self.vm.write(page(8), bytes(range(128)) * 2, shared=True)
        self.code.place(f"{case.code}\nhlt", case.at, **{"rsp": SCRATCH + 2048, **case.registers})

    def state(self) -> dict[str, int]:
        return {name: self.code.get(name) for name in _SEEN}

    def memory(self) -> list[bytes]:
        return [memory.read(0, PAGE_SIZE) for memory in self.pages.values()]


@pytest.mark.parametrize("name", CASES)
def test_an_instruction_that_faults_happens_once(name: str, store: LocalStore) -> None:
    case, world = CASES[name], World(store)
    world.begin(case)
    assert world.code.run() == HltExit()
    state, memory, data = world.state(), world.memory(), world.vm.read(page(8), 4096, shared=True)
    gpas = list(world.pages)
    exit_count = 0
    for missing in [*itertools.combinations(gpas, 1), tuple(gpas), tuple(reversed(gpas))]:
        world.begin(case)
        for gpa in missing:
            world.show(gpa, there=False)
        before, held = world.state(), world.memory()
        got: object = world.code.run()
        for _ in missing:
            if isinstance(got, HltExit):
                break
            assert isinstance(got, MemoryErrorExit)
            assert got.gpa in missing
            exit_count += 1
            if not case.changes:
                now = world.state()
                flags = before["rflags"] if "stc" not in case.code else now["rflags"]
                rip = now["rip"] if "stc" in case.code else before["rip"]
                assert now == before | {"rflags": flags, "rip": rip}
                assert world.memory() == held
            world.show(got.gpa, there=True)
            got = world.code.resume()
        assert got == HltExit()
        assert (world.state(), world.memory(), world.vm.read(page(8), 4096, shared=True)) == (state, memory, data)
    assert exit_count >= 2, "the pages were not missed"


@pytest.mark.parametrize("name", CASES)
def test_an_instruction_is_the_same_while_its_pages_are_taken_away(name: str, store: LocalStore) -> None:
    """The fault path alone: no exit, as when the store has taken the page and the guest wants it again."""
    case, world = CASES[name], World(store)
    world.begin(case)
    assert world.code.run() == HltExit()
    state, memory = world.state(), world.memory()
    world.begin(case)
    while True:
        for gpa in world.pages:
            world.vm.kvm.unmapper.zap([(gpa // PAGE_SIZE, gpa // PAGE_SIZE + 1)], private=False)  # type: ignore[list-item]
        if world.code.step() == HltExit():
            break
    assert (world.state(), world.memory()) == (state, memory)
