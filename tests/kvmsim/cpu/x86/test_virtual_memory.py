"""The guest's own page tables over the EPTs: two dimensions, by the CPU and by who looks in from outside."""

import struct

import pytest

from kvmsim.cpu.x86.layout import Access
from kvmsim.kvm.exits import HltExit, MemoryErrorExit, ShutdownExit
from kvmsim.kvm.hypercalls import SHARED_BIT
from kvmsim.memory.memory import AnonymousMemory
from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.machine_code import Code, assemble

P, W, A, D, NX = 1, 2, 0x20, 0x40, 1 << 63
HIGH = 0xFFFF_8000_0000_0000
CODE_VA, DATA_VA, CODE, DATA, TABLES = HIGH, HIGH + page(1), page(8), page(9), page(1)


class Paged:
    """A guest with tables at page 1 of private memory, that maps code and one page of data."""

    def __init__(self, store: LocalStore) -> None:
        store.create("mem", 64)
        self.vm: LocalVm = store.vm()
        self.vm.private_slot(0, 0, page(64), "mem")
        self.shared: AnonymousMemory = self.vm.shared_slot(1, page(32), page(8))
        self.code = Code(self.vm)
        for level in range(3):
            self.set_entry(level, HIGH, TABLES + page(level + 1) | P | W)
        self.set_entry(3, CODE_VA, CODE | P)

    def _at(self, level: int, va: int) -> int:
        return TABLES + page(level) + (va >> 39 - 9 * level & 511) * 8

    def set_entry(self, level: int, va: int, entry: int) -> None:
        self.vm.write(self._at(level, va), struct.pack("<Q", entry))

    def entry(self, level: int, va: int) -> int:
        got = self.vm.read(self._at(level, va), 8)
        assert isinstance(got, bytes)
        return int(struct.unpack("<Q", got)[0])

    def begin(self, source: str, data: int, **registers: int) -> Code:
        self.set_entry(3, DATA_VA, data)
        self.vm.write(CODE, assemble(f"{source}\nhlt", CODE_VA))
        self.code.engine.reset()
        self.code.set(cr3=TABLES, rip=CODE_VA, rbx=DATA_VA, rsp=DATA_VA + page(1), **registers)
        return self.code


@pytest.fixture
def paged(store: LocalStore) -> Paged:
    return Paged(store)


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def encrypted(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_a_load_sets_accessed_a_store_sets_dirty(paged: Paged) -> None:
    code = paged.begin("mov (%rbx), %rax", DATA | P | W)
    assert code.run() == HltExit()
    assert paged.entry(3, DATA_VA) == DATA | P | W | A
    assert paged.entry(0, HIGH) & (A | D) == A
    code = paged.begin("mov (%rbx), %rax; mov %rcx, (%rbx)", DATA | P | W, rcx=7)
    assert code.run() == HltExit()
    assert paged.entry(3, DATA_VA) == DATA | P | W | A | D
    assert paged.vm.read(DATA, 8) == struct.pack("<Q", 7)


def test_bit_51_of_an_entry_names_the_shared_alias(paged: Paged) -> None:
    code = paged.begin("mov %rcx, (%rbx)", page(32) | SHARED_BIT | P | W, rcx=7)
    assert code.run() == HltExit()
    assert paged.shared.read(0, 8) == struct.pack("<Q", 7)


@pytest.mark.parametrize(
    ("source", "entry", "error"),
    [
        ("mov (%rbx), %rax", 0, 0),
        ("mov %rax, (%rbx)", 0, 2),
        ("mov %rax, (%rbx)", DATA | P, 3),
        ("jmp *%rbx", DATA | P | W | NX, 0x11),
        ("jmp *%rbx", 0, 0x10),
    ],
)
def test_what_the_tables_do_not_allow_is_a_page_fault(paged: Paged, source: str, entry: int, error: int) -> None:
    code = paged.begin(source, entry)
    got = code.run()
    assert got == ShutdownExit()
    assert "#PF" in got.why
    assert code.get("cr2") == DATA_VA
    assert code.engine.state.error_code == error


def test_a_missing_page_of_the_tables_is_an_exit_and_resumes(paged: Paged) -> None:
    """An EPT violation inside the guest's own walk."""
    code = paged.begin("mov (%rbx), %rax", DATA | P | W, rax=1)
    paged.set_entry(2, DATA_VA, page(64) | P | W)
    code.set(rip=CODE_VA)
    got = code.run()
    assert got == MemoryErrorExit(page(64), page(1), private=True)
    assert code.resume() == MemoryErrorExit(page(64), page(1), private=True)


def test_a_load_of_cr3_takes_effect_at_once(paged: Paged) -> None:
    other = page(20)
    for level in range(3):
        paged.vm.write(
            other + page(level) + (HIGH >> 39 - 9 * level & 511) * 8, struct.pack("<Q", other + page(level + 1) | 3)
        )
    paged.vm.write(other + page(3), struct.pack("<2Q", CODE | P, page(10) | P | W))
    paged.vm.write(DATA, b"A")
    paged.vm.write(page(10), b"B")
    code = paged.begin("mov (%rbx), %al; mov %rcx, %cr3; mov (%rbx), %ah", DATA | P | W, rcx=other, rax=0)
    assert code.run() == HltExit()
    assert code.get("rax") == int.from_bytes(b"AB", "little")


def test_a_cr3_that_the_host_sets_takes_effect_at_the_next_run(paged: Paged) -> None:
    paged.vm.write(page(20) + page(3), struct.pack("<2Q", CODE | P, page(10) | P | W))
    for level in range(3):
        at = page(20) + page(level) + (HIGH >> 39 - 9 * level & 511) * 8
        paged.vm.write(at, struct.pack("<Q", page(20) + page(level + 1) | 3))
    paged.vm.write(DATA, b"A")
    paged.vm.write(page(10), b"B")
    code = paged.begin("mov (%rbx), %al", DATA | P | W, rax=0)
    assert code.run() == HltExit()
    assert code.get("rax") == ord("A")
    code.set(cr3=page(20), rip=CODE_VA)
    assert code.run() == HltExit()
    assert code.get("rax") == ord("B")


def test_invlpg_takes_effect_at_once(paged: Paged) -> None:
    paged.vm.write(DATA, b"A")
    paged.vm.write(page(10), b"B")
    paged.set_entry(3, DATA_VA + page(1), TABLES + page(3) | P | W)
    source = "mov (%rbx), %al; mov %rcx, 0x1008(%rbx); invlpg (%rbx); mov (%rbx), %ah"
    code = paged.begin(source, DATA | P | W, rcx=page(10) | P | W, rax=0)
    assert code.run() == HltExit()
    assert code.get("rax") == int.from_bytes(b"AB", "little")


def test_a_large_page_of_the_guest(paged: Paged) -> None:
    paged.set_entry(2, HIGH, P | W | 0x80)
    paged.vm.write(DATA, b"x")
    code = paged.begin("mov 0x8000(%rbx), %al", 0, rax=0)
    paged.set_entry(2, HIGH, P | W | 0x80)
    code.set(rip=CODE_VA + CODE)
    assert code.run() == HltExit()
    assert code.get("rax") == ord("x")


def test_outsiders_see_what_the_guest_sees(paged: Paged) -> None:
    code = paged.begin("nop", DATA | P | W)
    paged.vm.write(DATA + 4092, b"last")
    assert code.cpus.peek(code.vcpu, DATA_VA + 4092, 8) == b"last", "and no more than that"
    assert code.cpus.poke(code.vcpu, DATA_VA + 2, b"poked")
    assert paged.vm.read(DATA, 8) == b"\0\0poked\0"
    assert not code.cpus.poke(code.vcpu, CODE_VA, b"no"), "it is read-only"
    engine = code.engine
    assert list(code.cpus.memory.translate(code.vcpu, engine, DATA_VA + page(9), Access.READ)) == []
