"""Machine code against a store that takes memory away: R6 to R8 with real code, encrypted and not."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kvmsim.cpu import guests
from kvmsim.cpu.x86.layout import MAX_COPIES
from kvmsim.kvm.exits import HltExit, MachineCheckExit
from kvmsim.kvm.tampering import tamper
from kvmsim.shell.image import read_program
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore, LocalVm, opened_store, page
from tests.support.machine_code import Code
from tests.support.threads import Beside, until

CODE, DATA = page(1), page(8)
SIZE = page(4096)


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def encrypted(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def store(tmp_path: Path, encrypted: bool) -> Iterator[LocalStore]:
    with opened_store(tmp_path, 4096, encrypted=encrypted) as opened:
        yield opened


@pytest.fixture
def mem(store: LocalStore) -> LocalVm:
    store.create("mem", 4096)
    vm = store.vm()
    vm.private_slot(0, 0, SIZE, "mem")
    return vm


def guest(vm: LocalVm, name: str, vcpu: int = 0) -> Code:
    code = Code(vm, vcpu)
    assert code.cpus.boot(code.vcpu, read_program(f"guest:{name}", None, None)) is None
    return code


def run(code: Code) -> tuple[object, str]:
    """Under user space's policy, which converts."""
    result = code.vm.vmm.run(code.vcpu, code.run)
    return result, code.console()


def test_hello(mem: LocalVm) -> None:
    assert run(guest(mem, "hello")) == (HltExit(), "hello from vCPU 0x0\n")


@pytest.mark.parametrize(("policy", "under"), [("punch", "kept"), ("overlay", "freed")])
def test_the_conversion_loop(mem: LocalVm, policy: str, under: str) -> None:
    """Not with `recreate`, which takes the guest's own code away with the slot."""
    mem.vmm.set_policy(policy, under)
    code = guest(mem, "convert")
    assert run(code) == (HltExit(), "convert: ok\n")
    assert mem.vmm.tally.to_shared_pages == 8 * 16


def test_an_overlay_that_keeps_the_page_below_is_seen_by_the_guest(mem: LocalVm) -> None:
    mem.vmm.set_policy("overlay")
    printed = run(guest(mem, "convert"))[1]
    assert printed == "convert: a new private page is not zero at 0x800000\nconvert: failed\n"


def test_the_conversion_loop_with_retries(mem: LocalVm) -> None:
    """A vCPU that is wanted back between the chunks of MapGPA answers RETRY: the guest goes on where R11 says."""
    mem.vmm.set_policy("punch")
    code = guest(mem, "convert")
    running = Beside(lambda: run(code))
    while running.running:
        mem.vmm._kick_all()
    assert running.result() == (HltExit(), "convert: ok\n")


def test_a_misbehaving_guest_is_refused_and_ends_alone(mem: LocalVm) -> None:
    result, printed = run(guest(mem, "misbehave"))
    assert type(result).__name__ == "ShutdownExit"
    assert printed.count("refused\n") == 7
    assert "NOT" not in printed
    assert run(guest(mem, "hello"))[0] == HltExit()


@pytest.mark.parametrize("name", ["spinlock", "ring"])
def test_two_vcpus(mem: LocalVm, name: str) -> None:
    mem.vmm.set_policy("punch")
    mem.vm.create_vcpu(1)
    both = [guest(mem, name, number) for number in range(2)]
    running = [Beside(partial(run, code)) for code in both]
    results = [one.result() for one in running]
    assert [exit_ for exit_, _ in results] == [HltExit()] * 2
    assert "".join(printed for _, printed in results) == f"{name}: ok\n"


def test_code_that_is_punched_under_it_is_gone(store: LocalStore, mem: LocalVm) -> None:
    """What was executed and has changed hands is not executed again, from whatever cache."""
    code = guest(mem, "punched")
    running = Beside(lambda: run(code))
    until(lambda: code.has_printed(), "it runs")
    store.punch("mem", 512, 1)
    assert running.result() == (HltExit(), "punched: running\npunched: gone\n")


def test_nothing_is_stored_after_the_acknowledgement(store: LocalStore, mem: LocalVm) -> None:
    """The counter is in the page that is punched: it begins at 0 again, every time, however hot its translation is."""
    code = Code(mem).place("1: incq (%rbx); cmpq $0, (%rdx); je 1b; hlt", CODE, rbx=DATA, rdx=page(9))
    running = Beside(code.run)
    window = mem.link().memory
    for _ in range(50):
        until(lambda: code.vcpu.guest_lock.locked(), "it is in guest mode")
        store.punch("mem", 8, 1)
    free = store.free_count
    assert free > 0
    code.vcpu.request_exit()
    with pytest.raises(Exception, match="kicked"):
        running.result()
    code.vcpu.run.immediate_exit = 0
    before = int.from_bytes(_read(mem, DATA), "little")
    store.punch("mem", 8, 1)
    assert _read(mem, DATA) == bytes(8)
    assert before < 1 << 40
    assert window is mem.link().memory


def test_pages_that_are_taken_while_code_verifies_them(store: LocalStore, mem: LocalVm) -> None:
    """Pages beside those of the guest come and go; what it has written stays."""
    code = guest(mem, "touch")
    running = Beside(lambda: run(code))
    while running.running:
        for pgoff in range(2100, 2300, 7):
            store.allocate("mem", pgoff, 3)
            store.punch("mem", pgoff, 3)
    assert running.result() == (HltExit(), "touch: ok\n")


def test_a_new_private_page_is_zero_for_code(store: LocalStore, mem: LocalVm) -> None:
    code = Code(mem).place("1: mov (%rbx), %rax; movq $-1, (%rbx); hlt; jmp 1b", CODE, rbx=DATA)
    assert code.run() == HltExit()
    for _ in range(5):
        store.punch("mem", 8, 1)
        assert code.resume() == HltExit()
        assert code.get("rax") == 0
    assert code.resume() == HltExit()
    assert code.get("rax") == (1 << 64) - 1


def test_the_store_keeps_what_code_has_touched(store: LocalStore, mem: LocalVm) -> None:
    """ACCESSED as a CPU sets it: RECLAIM takes what was granted and never touched, and nothing else."""
    code = Code(mem).place("1: movq $7, (%rbx); add $0x3000, %rbx; dec %rcx; jnz 1b; hlt", CODE, rbx=DATA, rcx=40)
    assert code.run() == HltExit()
    store.reclaim()
    for number in range(40):
        assert _read(mem, DATA + number * 0x3000) == (7).to_bytes(8, "little")


def test_what_code_does_is_seen_by_other_accesses_and_the_other_way_round(mem: LocalVm) -> None:
    code = Code(mem).place("1: mov (%rbx), %rax; inc %rax; mov %rax, (%rbx); hlt; jmp 1b", CODE, rbx=DATA)
    mem.vm.create_vcpu(1)
    other = mem.vm.vcpu(1)
    assert mem.guest.write(other, DATA, (41).to_bytes(8, "little")) is None
    assert code.run() == HltExit()
    assert mem.guest.read(other, DATA, 8) == (42).to_bytes(8, "little")
    assert mem.guest.write(other, DATA, (1).to_bytes(8, "little")) is None
    assert code.resume() == HltExit()
    assert mem.guest.read(other, DATA, 8) == (2).to_bytes(8, "little")


def test_more_pages_than_there_are_copies(mem: LocalVm) -> None:
    pages = 3 * MAX_COPIES
    source = "1: mov %rcx, (%rbx); add $4096, %rbx; dec %rcx; jnz 1b; hlt"
    code = Code(mem).place(source, CODE, rbx=DATA, rcx=pages)
    assert code.run() == HltExit()
    for number in range(pages):
        assert _read(mem, DATA + number * PAGE_SIZE) == (pages - number).to_bytes(8, "little")


def test_plaintext_is_in_no_window_while_code_runs(store: LocalStore, mem: LocalVm, encrypted: bool) -> None:
    """The page is written over and over; whoever has the window reads it at the same time."""
    secret = int.from_bytes(b"PLAINTXT", "little")
    code = Code(mem).place("1: mov %rax, (%rbx); jmp 1b", CODE, rbx=DATA, rax=secret)
    running = Beside(code.run)
    until(lambda: code.engine.state.fills > 2, "it has written")
    seen = set()
    for _ in range(200):
        seen.add(b"PLAINTXT" in os.pread(mem.link().memory.fd, page(64), 0))
    code.vcpu.request_exit()
    with pytest.raises(Exception, match="kicked"):
        running.result()
    code.vcpu.run.immediate_exit = 0
    assert seen == ({False} if encrypted else seen)
    assert _read(mem, DATA) == b"PLAINTXT"


def test_a_page_that_was_tampered_with_is_a_machine_check(mem: LocalVm, encrypted: bool) -> None:
    if not encrypted:
        return
    code = Code(mem).place("mov (%rbx), %rax; hlt", CODE, rbx=DATA)
    assert mem.write(DATA, b"good") is None
    tamper(mem.vm, DATA, b"bad")
    got = code.run()
    assert isinstance(got, MachineCheckExit)
    assert got.gpa == DATA
    assert mem.write(DATA, bytes(PAGE_SIZE)) is None
    assert code.run() == HltExit()
    assert code.get("rax") == 0


def test_the_peer_that_dies_leaves_exits(store: LocalStore, mem: LocalVm) -> None:
    code = Code(mem).place("1: incq (%rbx); jmp 1b", CODE, rbx=DATA)
    running: Beside[object] = Beside(code.run)
    until(lambda: code.vcpu.guest_lock.locked(), "it is in guest mode")
    store.is_broken = True
    store.hang_up("mem")
    assert type(running.result()).__name__ == "MemoryErrorExit"


def test_every_program_that_comes_along_is_tried_here() -> None:
    text = Path(__file__).read_text()
    names = [line.split()[0] for line in (guests.__doc__ or "").splitlines()[2:] if line]
    assert names
    assert [name for name in names if f'"{name}"' not in text] == []


def _read(vm: LocalVm, gpa: int) -> bytes:
    got = vm.read(gpa, 8)
    assert isinstance(got, bytes)
    return got
