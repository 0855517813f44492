"""Operands of instructions, and their text."""

import pytest

from kvmsim.cpu.x86.decode import TDCALL, Operand, is_cut, lines, operands
from tests.support.machine_code import assemble

REGISTERS = {"rax": 0x1010, "rbx": 0x2000, "rsi": 0x3000, "rdi": 0x4000, "rsp": 0x8000, "rcx": 5, "rip": 0}
REGISTERS |= {"fs_base": 0x100, "gs_base": 0x200}
RIP = 0x100


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mov (%rbx), %rax", [Operand(0x2000, 8, True, False)]),
        ("movb $1, 3(%rbx,%rcx,2)", [Operand(0x200D, 1, False, True)]),
        ("lock cmpxchg %rsi, (%rbx)", [Operand(0x2000, 8, True, True)]),
        ("movups %xmm0, -8(%rbx)", [Operand(0x1FF8, 16, False, True)]),
        ("push (%rbx)", [Operand(0x2000, 8, True, False), Operand(0x7FF8, 8, False, True)]),
        ("pop (%rbx)", [Operand(0x8000, 8, True, False), Operand(0x2000, 8, False, True)]),
        ("rep movsl", [Operand(0x4000, 4, False, True), Operand(0x3000, 4, True, False)]),
        ("rep stosq", [Operand(0x4000, 8, False, True)]),
        ("lodsb", [Operand(0x3000, 1, True, False)]),
        ("mov (%ebx), %eax", [Operand(0x2000, 4, True, False)]),
        ("mov 0x50(%rip), %ax", [Operand(RIP + 7 + 0x50, 2, True, False)]),
        ("xlatb", [Operand(0x2010, 1, True, False)]),
        ("mov %fs:(%rbx), %eax", [Operand(0x2100, 4, True, False)]),
        ("gs lodsb", [Operand(0x3200, 1, True, False)]),
        ("lea (%rbx), %rax", []),
        ("nop", []),
    ],
)
def test_operands(source: str, expected: list[Operand]) -> None:
    found = operands(assemble(source), RIP, REGISTERS.__getitem__)
    assert found is not None
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_what_is_no_instruction_has_no_operands() -> None:
    assert operands(b"\x06", RIP, REGISTERS.__getitem__) is None


def test_an_instruction_may_be_cut() -> None:
    code = assemble("movabs $0x1122334455667788, %rax")
    assert [is_cut(code[:size]) for size in (1, 9, 10)] == [True, True, False]


def test_lines() -> None:
    code = assemble("nop; mov $1, %eax") + TDCALL + b"\x06"
    assert [(at, text) for at, _, text in lines(code, 0x1000, 10)] == [
        (0x1000, "nop"),
        (0x1001, "mov eax,1"),
        (0x1006, "tdcall"),
        (0x100A, "(bad)"),
    ]
    assert len(list(lines(code, 0x1000, 2))) == 2
