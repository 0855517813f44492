"""Instructions whose operand is a device's, or a file's."""

import os
from pathlib import Path

import pytest

from kvmsim.kvm.exits import Exit, HltExit, InternalErrorExit, MmioExit
from kvmsim.kvm.region import MemoryRegion, SlotFlag
from kvmsim.memory.memory import FileMemory
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalVm, alias, page
from tests.support.machine_code import Code

CODE, DEVICE = alias(page(1)), page(40)
EDGE = alias(page(16))


def placed(vm: LocalVm, source: str, **registers: int) -> Code:
    if 0 not in {slot.id for slot in vm.vm.slots[0]}:
        vm.shared_slot(0, 0, page(16))
    return Code(vm).place(f"{source}\nhlt", CODE, **{"rbx": alias(DEVICE), "rsp": alias(page(8)), **registers})


def read(gpa: int, length: int) -> MmioExit:
    return MmioExit(gpa, length, False)


def write(gpa: int, data: bytes) -> MmioExit:
    return MmioExit(gpa, len(data), True, data)


@pytest.mark.parametrize(("suffix", "length"), [("b", 1), ("w", 2), ("l", 4), ("q", 8)])
def test_a_read_takes_its_answer(vm: LocalVm, suffix: str, length: int) -> None:
    register = {"b": "%al", "w": "%ax", "l": "%eax", "q": "%rax"}[suffix]
    code = placed(vm, f"mov{suffix} 3(%rbx), {register}", rax=0)
    assert code.run() == read(DEVICE + 3, length)
    assert code.answer(b"abcdefgh"[:length]) == HltExit()
    assert code.get("rax").to_bytes(8, "little").rstrip(b"\0") == b"abcdefgh"[:length]


@pytest.mark.parametrize(
    ("source", "length", "data", "expected"),
    [
        ("movzbl (%rbx), %eax", 1, b"\xfe", 0xFE),
        ("movzwq (%rbx), %rax", 2, b"\xfe\xff", 0xFFFE),
        ("movsbq (%rbx), %rax", 1, b"\xfe", (1 << 64) - 2),
        ("movswl (%rbx), %eax", 2, b"\xfe\xff", 0xFFFFFFFE),
        ("movslq (%rbx), %rax", 4, b"\xfe\xff\xff\xff", (1 << 64) - 2),
        ("lodsw", 2, b"\x34\x12", 0x1234),
    ],
)
def test_a_read_is_extended_as_the_instruction_says(
    vm: LocalVm, source: str, length: int, data: bytes, expected: int
) -> None:
    code = placed(vm, source, rax=0, rsi=alias(DEVICE))
    assert code.run() == read(DEVICE, length)
    assert code.answer(data) == HltExit()
    assert code.get("rax") == expected


@pytest.mark.parametrize(("suffix", "length"), [("b", 1), ("w", 2), ("l", 4), ("q", 8)])
def test_a_store_and_an_or_have_the_width_of_the_instruction(vm: LocalVm, suffix: str, length: int) -> None:
    code = placed(vm, f"rep stos{suffix}; or{suffix} $0x10, (%rbx)", rdi=alias(DEVICE), rcx=2, rax=0x0807060504030201)
    stored = b"\1\2\3\4\5\6\7\x08"[:length]
    assert code.run() == write(DEVICE, stored)
    assert code.resume() == write(DEVICE + length, stored)
    assert code.resume() == read(DEVICE, length)
    assert code.answer(stored) == write(DEVICE, b"\x11" + stored[1:])
    assert code.resume() == HltExit()


def test_a_write_comes_once(vm: LocalVm) -> None:
    code = placed(vm, "mov %rcx, (%rbx)", rcx=int.from_bytes(b"abcdefgh", "little"))
    assert code.run() == write(DEVICE, b"abcdefgh")
    assert code.resume() == HltExit()


def test_a_read_modify_write_is_one_of_each(vm: LocalVm) -> None:
    code = placed(vm, "lock xadd %ecx, (%rbx)", rcx=5)
    assert code.run() == read(DEVICE, 4)
    assert code.answer(b"\x02\0\0\0") == write(DEVICE, b"\x07\0\0\0")
    assert code.resume() == HltExit()
    assert code.get("rcx") == 2


def test_sixteen_bytes_are_two_exits(vm: LocalVm) -> None:
    code = placed(vm, "movups (%rbx), %xmm1; movups %xmm1, 64(%rbx)")
    assert code.run() == read(DEVICE, 8)
    assert code.answer(b"01234567") == read(DEVICE + 8, 8)
    assert code.answer(b"89abcdef") == write(DEVICE + 64, b"01234567")
    assert code.resume() == write(DEVICE + 72, b"89abcdef")
    assert code.resume() == HltExit()


def test_a_repeated_move_is_an_exit_each(vm: LocalVm) -> None:
    code = placed(vm, "rep movsw", rsi=alias(page(4)), rdi=alias(DEVICE), rcx=3)
    vm.write(page(4), b"abcdef", shared=True)
    exits: list[object] = [code.run(), code.resume(), code.resume(), code.resume()]
    assert exits == [*(write(DEVICE + 2 * at, b"abcdef"[2 * at : 2 * at + 2]) for at in range(3)), HltExit()]
    assert (code.get("rcx"), code.get("rdi")) == (0, alias(DEVICE + 6))


def test_from_a_device_to_a_device(vm: LocalVm) -> None:
    code = placed(vm, "movsb", rsi=alias(DEVICE), rdi=alias(DEVICE + page(4)))
    assert code.run() == read(DEVICE, 1)
    assert code.answer(b"x") == write(DEVICE + page(4), b"x")
    assert code.resume() == HltExit()


def test_half_memory_half_device(vm: LocalVm) -> None:
    """In the order of addresses; the half that is memory is written as memory."""
    memory = vm.shared_slot(0, 0, page(16))
    code = placed(vm, "add %rcx, (%rbx)", rbx=EDGE - 4, rcx=1)
    vm.write(page(16) - 4, b"\xff\xff\xff\xff", shared=True)
    assert code.run() == read(page(16), 4)
    assert code.answer(b"\0\0\0\0") == write(page(16), b"\x01\0\0\0")
    assert memory.read(page(16) - 4, 4) == bytes(4)
    assert code.resume() == HltExit()


def test_a_call_through_a_device_pushes_once(vm: LocalVm) -> None:
    code = placed(vm, "lea 1f(%rip), %rdx; call *(%rbx)\n1: mov (%rsp), %rax", rsp=alias(page(8)))
    assert code.run() == read(DEVICE, 8)
    target = code.get("rdx")
    assert code.answer(target.to_bytes(8, "little")) == HltExit()
    assert (code.get("rax"), code.get("rsp")) == (target, alias(page(8)) - 8)


def test_a_write_to_a_readonly_slot_is_mmio(vm: LocalVm) -> None:
    code = placed(vm, "incb (%rbx)", rbx=alias(page(20)))
    vm.shared_slot(1, page(20), page(1), SlotFlag.READONLY)
    assert code.run() == write(page(20), b"\x01")
    assert code.resume() == HltExit()


def test_memory_that_appears_takes_the_access(vm: LocalVm) -> None:
    code = placed(vm, "mov (%rbx), %rax", rax=1)
    assert code.run() == read(DEVICE, 8)
    vm.shared_slot(1, DEVICE, page(1))
    assert code.run() == HltExit(), "what was under way is abandoned: the instruction begins again"
    assert code.get("rax") == 0


def test_code_in_a_device_is_not_emulated(vm: LocalVm) -> None:
    code = placed(vm, "jmp *%rbx")
    got = code.run()
    assert isinstance(got, InternalErrorExit)
    assert got.gpa == DEVICE


def test_a_stack_where_nothing_is_exits_as_mmio(vm: LocalVm) -> None:
    code = placed(vm, "push %rcx", rsp=alias(DEVICE + 8), rcx=9)
    assert code.run() == write(DEVICE, b"\x09" + bytes(7))
    assert code.resume() == HltExit()
    assert code.get("rsp") == alias(DEVICE)


@pytest.fixture
def file_memory(vm: LocalVm, tmp_path: Path) -> Path:
    """A file as shared memory, at 20 pages: read and written by system calls."""
    path = tmp_path / "shared"
    path.write_bytes(bytes(range(256)) * 32)
    memory = FileMemory(os.open(path, os.O_RDWR))
    vm.vmm.memory.set_shared_slot(MemoryRegion.shared(3, page(20), page(2)), memory, owned=True)
    return path


@pytest.mark.parametrize("offset", [0, 100, PAGE_SIZE - 4])
def test_code_reads_and_writes_a_file(vm: LocalVm, file_memory: Path, offset: int) -> None:
    before = file_memory.read_bytes()
    code = placed(
        vm, "mov (%rbx), %rax; lock add %rcx, (%rbx); movups (%rbx), %xmm0", rbx=alias(page(20)) + offset, rcx=1
    )
    assert code.run() == HltExit()
    old = int.from_bytes(before[offset : offset + 8], "little")
    assert code.get("rax") == old
    expected = before[:offset] + (old + 1).to_bytes(8, "little") + before[offset + 8 :]
    assert file_memory.read_bytes() == expected


def test_code_does_not_run_from_a_file(vm: LocalVm, file_memory: Path) -> None:
    code = placed(vm, "jmp *%rbx", rbx=alias(page(20)))
    got: Exit | None = code.run()
    assert isinstance(got, InternalErrorExit)
