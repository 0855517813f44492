"""Each kind of exit: user space repairs or answers, runs the vCPU again, and the access is completed exactly once."""

import errno
import hashlib
import os

import pytest

from kvmsim.kvm.alias import PRIVATE, SHARED
from kvmsim.kvm.exits import Exit, HltExit, HypercallExit, InternalErrorExit, MemoryErrorExit, MmioExit, ShutdownExit
from kvmsim.kvm.hypercalls import MAP_GPA, RETRY, SUCCESS, Registers
from kvmsim.kvm.kvm_run import exit_of
from kvmsim.kvm.region import MemoryRegion, SlotFlag
from kvmsim.memory.memory import Closed, FileMemory
from memfsd.uapi.units import PAGE_SIZE, Gfn
from tests.support.both_sides import LocalStore, LocalVm, alias, errno_of, page

NOTHING = page(40)


def run(vm: LocalVm) -> object:
    return vm.vcpu.kvm_run()


def answer(vm: LocalVm, data: bytes) -> object:
    """What a device says to the MMIO read that the vCPU is at, and KVM_RUN."""
    vm.vcpu.run.mmio.data[: len(data)] = list(data)
    return vm.vcpu.kvm_run()


def count_writes(vm: LocalVm, gpa: int, pages: int) -> list[tuple[int, bytes]]:
    """Every write that reaches the memory of a new shared slot there: (offset, data)."""
    memory, seen = vm.shared_slot(7, gpa, page(pages)), []
    real = memory.write

    def write(offset: int, data: bytes) -> None:
        seen.append((offset, bytes(data)))
        real(offset, data)

    memory.write = write  # type: ignore[method-assign]
    return seen


# -- MMIO


def test_mmio_read_takes_its_answer_with_the_next_run(vm: LocalVm) -> None:
    assert vm.read(NOTHING, 4, shared=True) == MmioExit(NOTHING, 4, is_write=False)
    assert answer(vm, b"\x01\x02\x03\x04") == b"\x01\x02\x03\x04"
    assert errno_of(vm.vcpu.kvm_run) == "EINVAL", "it is over: there is nothing to run again"


def test_mmio_write_is_completed_by_the_next_run(vm: LocalVm) -> None:
    assert vm.write(NOTHING, b"data", shared=True) == MmioExit(NOTHING, 4, True, b"data")
    assert run(vm) is None
    assert errno_of(vm.vcpu.kvm_run) == "EINVAL"


def test_mmio_is_split_into_eight_bytes_and_each_is_answered(vm: LocalVm) -> None:
    exits = [vm.read(NOTHING + 3, 19, shared=True), answer(vm, b"01234567"), answer(vm, b"89abcdef")]
    assert exits == [
        MmioExit(NOTHING + 3, 8, is_write=False),
        MmioExit(NOTHING + 11, 8, is_write=False),
        MmioExit(NOTHING + 19, 3, is_write=False),
    ]
    assert answer(vm, b"xyz") == b"0123456789abcdefxyz"


def test_mmio_is_split_at_a_page(vm: LocalVm) -> None:
    edge = NOTHING + PAGE_SIZE - 3
    assert vm.write(edge, b"01234567", shared=True) == MmioExit(edge, 3, True, b"012")
    assert run(vm) == MmioExit(edge + 3, 5, True, b"34567")
    assert run(vm) is None


def test_an_answered_fragment_is_not_asked_for_again_when_memory_appears(vm: LocalVm) -> None:
    assert vm.read(NOTHING, 12, shared=True) == MmioExit(NOTHING, 8, is_write=False)
    vm.shared_slot(0, NOTHING, page(1)).write(0, b"memory of a slot")
    assert answer(vm, b"a device") == b"a device" + b"f a ", "the device's, then what the slot holds"


def test_memory_then_a_device_then_memory(vm: LocalVm) -> None:
    """A slot, a hole of a page and a slot: each part is done once, in order."""
    before, after = vm.shared_slot(0, 0, page(1)), vm.shared_slot(1, page(2), page(1))
    data = os.urandom(page(1) + 8)
    exits: list[object] = [vm.write(page(1) - 4, data, shared=True)]
    while exits[-1] is not None:
        assert after.read(0, 4) == bytes(4), "what lies behind the device has not happened"
        exits.append(run(vm))
    assert exits[:-1] == [MmioExit(page(1) + at, 8, True, data[4 + at : 12 + at]) for at in range(0, PAGE_SIZE, 8)]
    assert (before.read(PAGE_SIZE - 4, 4), after.read(0, 4)) == (data[:4], data[-4:])


def test_touch_of_a_device_reads_a_byte_and_writes_it_back(vm: LocalVm) -> None:
    assert vm.touch(NOTHING, page(2), shared=True) == MmioExit(NOTHING, 1, is_write=False)
    assert answer(vm, b"\x2a") == MmioExit(NOTHING, 1, True, b"\x2a")
    assert run(vm) == MmioExit(NOTHING + PAGE_SIZE, 1, is_write=False)
    assert answer(vm, b"\x2b") == MmioExit(NOTHING + PAGE_SIZE, 1, True, b"\x2b")
    assert run(vm) is None


def test_touch_of_a_readonly_slot_goes_on_behind_it(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(1), SlotFlag.READONLY).write(0, b"rom")
    assert vm.touch(0, page(1), shared=True) == MmioExit(0, 1, True, b"r")
    assert run(vm) is None
    assert vm.read(0, 3, shared=True) == b"rom"


# -- MEMORY_ERROR


def test_memory_error_repaired_by_a_slot_completes_the_write_once(vm: LocalVm, store: LocalStore) -> None:
    store.create("file", 4)
    local = store.vm()
    assert local.write(page(1) + 8, b"late") == MemoryErrorExit(page(1), PAGE_SIZE, private=True)
    assert run(local) == MemoryErrorExit(page(1), PAGE_SIZE, private=True), "not repaired: the same exit"
    local.private_slot(0, 0, page(4), "file")
    assert run(local) is None
    assert local.read(page(1) + 8, 4) == b"late"


def test_memory_error_in_the_middle_leaves_the_part_before_it_done_once(store: LocalStore) -> None:
    """Private memory cannot be watched, so the same with shared slots over a private one."""
    store.create("file", 8)
    local = store.vm()
    local.private_slot(0, 0, page(8), "file")
    seen = count_writes(local, 0, 2)
    data = bytes(range(256)) * 48
    assert local.write(0, data, shared=True) == MemoryErrorExit(page(2), PAGE_SIZE, private=False)
    assert seen == [(0, data[: page(2)])]
    local.shared_slot(8, page(2), page(1))
    assert run(local) is None
    assert seen == [(0, data[: page(2)])], "the part before the exit has not been done again"
    assert local.read(0, len(data), shared=True) == data


def test_memory_error_of_a_full_pool_goes_on_when_memory_is_free(small_store: LocalStore) -> None:
    small_store.create("file", 40)
    local = small_store.vm()
    local.private_slot(0, 0, page(40), "file")
    stopped = local.touch(0, page(40))
    assert isinstance(stopped, MemoryErrorExit) and stopped.errno == errno.ENOSPC
    small_store.punch("file", 0, 16)
    assert run(local) is None
    assert list(local.vm.mmu.epts[PRIVATE].runs(Gfn(32), Gfn(40))) != []


def test_memory_error_of_a_hole_in_a_slot_goes_on_when_it_is_filled(store: LocalStore) -> None:
    store.create("file", 4)
    local = store.vm()
    local.private_slot(0, 0, page(4), "file")
    assert local.write(0, b"a" * page(4)) is None
    local.vmm.memory.punch_slot(0, page(1), page(1))
    assert local.read(page(1) - 2, page(1) + 4) == MemoryErrorExit(page(1), PAGE_SIZE, private=True)
    local.vmm.memory.fill_slot(0, Gfn(1), Gfn(2))
    assert run(local) == b"aa" + bytes(page(1)) + b"aa"


def test_memory_error_of_a_short_file_is_at_the_page_that_is_missing(vm: LocalVm, tmp_path: object) -> None:
    path = f"{tmp_path}/short"
    with open(path, "wb") as file:
        file.write(b"x" * page(2))
    fd = os.open(path, os.O_RDWR)
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(0, 0, page(4)), FileMemory(fd), owned=True)
    why = "EFAULT: the memory of this page cannot be reached: past the end of the file"
    expected = MemoryErrorExit(page(2), PAGE_SIZE, False, errno=errno.EFAULT, why=why)
    assert vm.write(0, b"y" * page(3), shared=True) == expected
    os.truncate(path, page(4))
    assert run(vm) is None
    with open(path, "rb") as file:
        assert file.read() == b"y" * page(3) + bytes(page(1))


def test_explicit_memory_error_looks_at_the_slots_again(vm: LocalVm) -> None:
    expected = MemoryErrorExit(0, page(4), private=False, explicit=True)
    assert vm.guest.map(vm.vcpu, 0, page(4), private=False) == expected
    vm.shared_slot(0, 0, page(3))
    assert run(vm) == expected, "not all of it is covered"
    vm.delete(0, private=False)
    vm.shared_slot(0, 0, page(4))
    assert run(vm) is None
    assert vm.vm.mmu.epts[SHARED].leaf_count == 4


# -- HYPERCALL, HLT, SHUTDOWN, INTERNAL_ERROR


def test_hypercall_returns_what_user_space_answered(vm: LocalVm) -> None:
    vm.vm.exit_hypercalls = 1 << 11
    assert vm.guest.vmcall(vm.vcpu, 11, (1, 2)) == HypercallExit(11, (1, 2))
    vm.vcpu.run.hypercall.ret = 77
    assert run(vm) == 77
    assert errno_of(vm.vcpu.kvm_run) == "EINVAL"


def test_hlt_is_left_by_the_next_run(vm: LocalVm) -> None:
    assert vm.guest.hlt(vm.vcpu) == HltExit()
    assert run(vm) is None
    assert errno_of(vm.vcpu.kvm_run) == "EINVAL", "halted once"


def test_shutdown_faults_again_until_something_else_is_started(vm: LocalVm) -> None:
    assert vm.guest.shutdown(vm.vcpu) == ShutdownExit()
    assert run(vm) == ShutdownExit()
    vm.shared_slot(0, 0, page(1))
    assert vm.read(0, 1, shared=True) == b"\0"


def test_internal_error_goes_on_when_there_is_memory(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(1)).write(0, b"a" * PAGE_SIZE)
    exit_ = InternalErrorExit(b"\x0f\x38\xcc\x06", page(1))
    assert vm.guest.sha256(vm.vcpu, alias(0), page(2)) == exit_
    assert run(vm) == exit_, "KVM can still not emulate it"
    vm.shared_slot(1, page(1), page(1)).write(0, b"b" * PAGE_SIZE)
    digest = run(vm)
    assert digest == vm.guest.sha256(vm.vcpu, alias(0), page(2)), "the first page went in once"


# -- what kvm_run says, and who may run


def test_kvm_run_holds_the_last_exit_and_is_clear_after_the_end(vm: LocalVm) -> None:
    vm.write(NOTHING, b"data", shared=True)
    assert exit_of(vm.vcpu.run) == MmioExit(NOTHING, 4, True, b"data")
    run(vm)
    assert exit_of(vm.vcpu.run) is None


def test_something_new_abandons_what_is_under_way(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(1))
    vm.read(NOTHING, 16, shared=True)
    assert vm.read(0, 1, shared=True) == b"\0"
    assert exit_of(vm.vcpu.run) is None
    assert errno_of(vm.vcpu.kvm_run) == "EINVAL"


def test_vcpus_have_exits_of_their_own(vm: LocalVm) -> None:
    other = vm.vm.create_vcpu(1)
    assert vm.read(NOTHING, 2, shared=True) == MmioExit(NOTHING, 2, is_write=False)
    assert vm.guest.hlt(other) == HltExit()
    assert exit_of(vm.vcpu.run) == MmioExit(NOTHING, 2, is_write=False)
    assert (answer(vm, b"ab"), other.kvm_run()) == (b"ab", None)


# -- immediate_exit


def test_immediate_exit_runs_nothing_and_the_next_run_does(vm: LocalVm) -> None:
    memory = vm.shared_slot(0, 0, page(1))
    for action in (
        lambda: vm.write(0, b"one", shared=True),
        lambda: vm.write(0, b"1" * page(1), shared=True),
        lambda: vm.guest.vmcall(vm.vcpu, 1, ()),
        lambda: vm.guest.hlt(vm.vcpu),
        lambda: vm.guest.shutdown(vm.vcpu),
    ):
        vm.vcpu.request_exit()
        assert errno_of(action) == "EINTR"
        assert errno_of(vm.vcpu.kvm_run) == "EINTR", "it stays set until user space clears it"
        assert memory.read(0, 1) == b"\0"
        vm.vcpu.run.immediate_exit = 0
    vm.vcpu.request_exit()
    assert errno_of(vm.write, 0, b"last", shared=True) == "EINTR"
    vm.vcpu.run.immediate_exit = 0
    assert run(vm) is None
    assert vm.read(0, 4, shared=True) == b"last"


def test_immediate_exit_completes_what_user_space_has_answered_first(vm: LocalVm) -> None:
    """KVM's documented way to finish an MMIO without letting the guest run on."""
    vm.read(NOTHING, 2, shared=True)
    vm.vcpu.request_exit()
    assert answer(vm, b"ab") == b"ab"
    vm.vcpu.run.immediate_exit = 0
    vm.read(NOTHING, 10, shared=True)
    vm.vcpu.request_exit()
    vm.vcpu.run.mmio.data[:8] = list(b"01234567")
    assert errno_of(vm.vcpu.kvm_run) == "EINTR"
    vm.vcpu.run.immediate_exit = 0
    assert run(vm) == MmioExit(NOTHING + 8, 2, is_write=False)
    assert answer(vm, b"89") == b"0123456789"


def test_map_gpa_between_chunks_gives_way_and_the_guest_goes_on(vm: LocalVm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second chunk's first fault is never reached: RETRY, then the vCPU leaves before the guest's next call."""
    vm.shared_slot(0, 0, 8 << 20)
    leave_after(vm, 1, monkeypatch)
    assert errno_of(vm.guest.map, vm.vcpu, 0, 8 << 20, private=False) == "EINTR"
    assert vm.vm.mmu.epts[SHARED].page_count == 512, "one chunk"
    vm.vcpu.run.immediate_exit = 0
    assert run(vm) is None
    assert vm.vm.mmu.epts[SHARED].page_count == 2048


def test_map_gpa_answers_retry_and_where_to_go_on(vm: LocalVm, monkeypatch: pytest.MonkeyPatch) -> None:
    vm.shared_slot(0, 0, 8 << 20)
    start = page(3)
    leave_after(vm, 1, monkeypatch)
    stopped = vm.guest.tdvmcall(vm.vcpu, Registers(r11=MAP_GPA, r12=alias(start), r13=6 << 20))
    assert isinstance(stopped, Registers)
    assert (stopped.r10, stopped.r11) == (RETRY, alias(start + (2 << 20)))
    vm.vcpu.run.immediate_exit = 0
    done = vm.guest.tdvmcall(vm.vcpu, Registers(r11=MAP_GPA, r12=stopped.r11, r13=4 << 20))
    assert isinstance(done, Registers)
    assert (done.r10, done.r11) == (SUCCESS, alias(start + (6 << 20)))


def leave_after(vm: LocalVm, faults: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """User space asks vCPU 0 to leave during its fault of that number."""
    real, left = vm.kvm.faults.fault, [faults]

    def fault(*arguments: object, **named: object) -> Exit | None:
        left[0] -= 1
        if left[0] == 0:
            vm.vcpu.request_exit()
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(vm.kvm.faults, "fault", fault)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "gone"), Closed()], ids=["cannot be read", "closed meanwhile"])
def test_what_lies_before_memory_that_fails_goes_into_a_digest_once(
    vm: LocalVm, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """The second of two runs fails, when the first one has been digested."""
    first, second = vm.shared_slot(0, 0, page(1)), vm.shared_slot(1, page(1), page(1))
    assert vm.touch(0, page(2), shared=True) is None
    first.write(0, b"a" * PAGE_SIZE)
    second.write(0, b"b" * PAGE_SIZE)
    read, errors = second.read, [error] * 2

    def failing(offset: int, length: int) -> bytes:
        if errors:
            raise errors.pop()
        return read(offset, length)

    monkeypatch.setattr(second, "read", failing)
    digest: object = vm.guest.sha256(vm.vcpu, alias(0), page(2))
    if not isinstance(error, Closed):
        assert isinstance(digest, MemoryErrorExit)
        digest = run(vm)
    assert digest == hashlib.sha256(b"a" * PAGE_SIZE + b"b" * PAGE_SIZE).digest()


def test_what_was_written_before_memory_that_fails_is_in_a_log_that_was_taken_meanwhile(
    vm: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = vm.shared_slot(0, 0, page(1), SlotFlag.LOG_DIRTY_PAGES)
    second = vm.shared_slot(1, page(1), page(1))
    assert vm.touch(0, page(2), shared=True) is None
    logs: list[object] = []

    def taken_before(offset: int, data: bytes) -> None:
        logs.append(vm.vmm.memory.get_dirty_log(0))

    def failing(offset: int, data: bytes) -> None:
        raise OSError(errno.EIO, "gone")

    for memory, write in ((first, taken_before), (second, failing)):
        monkeypatch.setattr(memory, "waits", True)
        monkeypatch.setattr(memory, "write", write)
    assert isinstance(vm.write(0, bytes(page(2)), shared=True), MemoryErrorExit)
    assert logs == [[(0, 1)]]
    assert vm.vmm.memory.get_dirty_log(0) == [(0, 1)]


@pytest.mark.parametrize("gpa", [0, 100, page(2), 1 << 48])
def test_an_access_of_no_bytes_asks_for_no_memory(vm: LocalVm, gpa: int) -> None:
    """Neither where there is none nor at the end of addresses."""
    vm.shared_slot(0, 0, page(1))
    assert vm.read(gpa, 0, shared=True) == b""
    assert vm.write(gpa, b"", shared=True) is None
    assert vm.vm.mmu.fault_count == 0
