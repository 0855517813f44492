"""What a slot's refusal leaves where its checks meet the outside: the file, the pairing, the memory a slot has."""

import errno
import os
from pathlib import Path

import pytest

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.region import MemoryRegion, SlotFlag
from kvmsim.memory.memory import AnonymousMemory
from kvmsim.shell.execute import Executor
from kvmsim.shell.script.repeat import parse_script
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore, LocalVm, errno_of, page

END = 1 << 48


def test_a_gpa_that_does_not_exist_pairs_nothing_and_keeps_no_file_open(store: LocalStore) -> None:
    file = store.create("file", 4)
    local = store.vm()
    before = len(os.listdir("/proc/self/fd"))
    assert errno_of(local.private_slot, 0, END, page(4), "file") == "EINVAL"
    assert len(os.listdir("/proc/self/fd")) <= before
    assert file.guest is not None and file.guest.pairing is None
    store.vm("other").private_slot(0, 0, page(4), "file")


def test_a_gpa_that_does_not_exist_comes_after_overlap_and_after_the_file(store: LocalStore) -> None:
    store.create("file", 8)
    local = store.vm()
    local.private_slot(0, END - PAGE_SIZE, PAGE_SIZE, "file")
    assert errno_of(local.private_slot, 1, END - PAGE_SIZE, page(4), "file", page(4)) == "EEXIST"
    assert errno_of(local.private_slot, 1, END, page(4), "no such file") == "ENOENT"


def test_a_shared_slot_that_can_not_move_past_the_end_stays_where_it_is(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(2))
    vm.write(0, b"data", shared=True)
    assert (
        errno_of(vm.kvm.slots.set_shared_slot, MemoryRegion.shared(0, END - PAGE_SIZE, page(2)), None, owned=True)
        == "EINVAL"
    )
    assert vm.read(0, 4, shared=True) == b"data"


def test_a_private_slot_is_deleted_whatever_flags_and_offset_say(store: LocalStore) -> None:
    store.create("file", 4)
    local = store.vm()
    for flags, offset in ((0, 1), (SlotFlag.LOG_DIRTY_PAGES, 0), (SlotFlag.GUEST_MEMFD, page(100))):
        local.private_slot(0, 0, page(4), "file")
        local.private_slot(0, 0, 0, "", offset, flags)
        assert len(local.vm.slots[PRIVATE]) == 0
    local.private_slot(0, 0, page(4), "file")
    for flags, offset in ((SlotFlag.GUEST_MEMFD, 1), (5, 0), (8, 0)):
        assert errno_of(local.private_slot, 0, 0, 0, "", offset, flags) == "EINVAL"


def test_a_shared_slot_keeps_the_memory_it_was_made_with(vm: LocalVm) -> None:
    memory, other = vm.shared_slot(0, 0, page(1)), AnonymousMemory(page(1))
    for gpa, flags in ((0, 0), (page(8), 0), (0, 1)):
        assert (
            errno_of(
                vm.kvm.slots.set_shared_slot, MemoryRegion.shared(0, gpa, page(1), flags=flags), other, owned=False
            )
            == "EINVAL"
        )
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(0, page(8), page(1)), memory, owned=False)
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(0, 0, 0), other, owned=False)
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(0, 0, page(1)), other, owned=False)
    vm.delete(0, private=False)
    other.close()


def test_a_script_can_not_put_another_file_under_a_slot(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(name.encode().ljust(PAGE_SIZE))
    execute = Executor(max_slots=8)

    def slot_set(file: str, *more: str) -> None:
        line = " ".join(["slot set 0 shared gpa=0 size=4K", f"file={tmp_path / file}", *more])
        (command,) = parse_script(line.encode())
        assert execute(command).ok

    try:
        slot_set("first")
        slot_set("first", "flags=1")
        with pytest.raises(Refused, match="is backed by other memory") as refused:
            slot_set("second")
        assert refused.value.errno == errno.EINVAL
    finally:
        execute.close()
