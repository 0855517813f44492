"""guest_memfd in scripts: files by name, slots with both memories, attributes, exits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmsim.shell.execute import Executor
from memfsd.uapi.abi import GMEM_6_18, GMEM_INPLACE, Abi, GmemFlag
from tests.support.both_sides import opened_store
from tests.support.script_lines import Lines


@contextmanager
def opened(tmp_path: Path, abi: Abi) -> Iterator[Lines]:
    """A guest_memfd of 16 pages, open as `g`, on a store of 64."""
    with opened_store(tmp_path, 64, abi=abi) as store:
        store.create_memfd("g", 16)
        run = Lines(store=store)
        run.executor.close()
        run.executor = Executor(8, pair=store.pair, abi=abi)
        run.ok(f"gmem open g file={store.path('g')}")
        yield run
        run.executor.close()


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    with opened(tmp_path, GMEM_6_18) as run:
        yield run


@pytest.fixture
def in_place(tmp_path: Path) -> Iterator[Lines]:
    with opened(tmp_path, GMEM_INPLACE) as run:
        yield run


def test_a_slot_has_both_memories_and_the_attribute_chooses(lines: Lines) -> None:
    lines.ok("slot set2 0 gpa=2M size=64K gmem=g", 'write 2M "shared" shared', "attributes 2M 8K private")
    assert lines("read 2M 6 shared").exit == "KVM_EXIT_MEMORY_FAULT"
    lines.ok('write 2M "secret"')
    fault = lines("read 0x202000 4")
    assert (fault.exit, fault.errno) == ("KVM_EXIT_MEMORY_FAULT", "EFAULT")
    assert fault.exit_fields == {"flags": 8, "gpa": 0x202000, "size": 4096}
    assert lines.ok("info attributes").info == {
        "kept_by": "vm",
        "ranges": [{"gpa": 2 << 20, "size": 8192, "attributes": "private"}],
    }
    lines.ok("attributes 2M 8K shared")
    assert lines("read 2M 6 shared").data == b"shared"
    lines.ok("slot delete2 0")
    assert lines("read 2M 6 shared").exit == "KVM_EXIT_MMIO"


def test_names_are_descriptors(lines: Lines) -> None:
    assert lines("slot set2 0 gpa=0 size=4K gmem=other").errno == "EBADF"
    assert lines("gmem close other").errno == "EBADF"
    assert lines("gmem open g file=x").errno == "EEXIST"
    assert lines("gmem open h file=/nowhere").errno == "ENOENT"
    lines.ok("gmem dup g h", "gmem close g", "slot set2 0 gpa=0 size=64K gmem=h hva=0")
    assert lines("read 0 1 shared").exit == "KVM_EXIT_UNKNOWN"
    lines.ok("attributes 0 64K private", "touch 0 64K")
    (open_,) = lines.ok("info gmem").info["open"]  # type: ignore[index]
    assert open_["gmem"] == "h"
    lines.ok("gmem close h")
    assert lines("read 0 1").exit == "KVM_EXIT_MEMORY_FAULT"


def test_the_calls_of_two_address_spaces_are_enotty_and_the_other_way_round(lines: Lines) -> None:
    assert lines("slot set 0 shared gpa=0 size=4K").errno == "ENOTTY"
    assert lines("slot delete 0 shared").errno == "ENOTTY"
    assert lines("gmem attributes g 0 4K private").errno in ("ENOTTY", "EINVAL"), "attributes are the VM's"
    thread = Executor(8)
    lines.executor.close()
    lines.executor = thread
    for line in ("slot set2 0 gpa=0 size=4K", "slot delete2 0", "attributes 0 4K private"):
        assert lines(line).errno == "ENOTTY"


def test_pre_fault_follows_the_attributes(lines: Lines) -> None:
    lines.ok("slot set2 0 gpa=0 size=64K gmem=g", "attributes 0 64K private")
    assert lines.ok("prefault 0 128K").info == {"gpa": 64 << 10, "size": 64 << 10}
    assert lines("prefault 64K 4K").errno == "ENOENT"
    assert lines("prefault 0 0").errno == "EINVAL"


def private(*ranges: tuple[int, int]) -> list[tuple[int, int]]:
    return [(start << 12, pages << 12) for start, pages in ranges]


def test_attributes_in_the_file_are_shown_with_and_without_a_slot(in_place: Lines) -> None:
    """They were not shown at all."""

    def shown() -> list[tuple[int, int]]:
        info = in_place.ok("info attributes").info
        assert info["kept_by"] == "file"  # type: ignore[index]
        assert {each["attributes"] for each in info["ranges"]} <= {"private"}  # type: ignore[index]
        return [(each["offset"], each["size"]) for each in info["ranges"]]  # type: ignore[index]

    assert shown() == private((0, 16))
    assert in_place.store is not None
    in_place.store.convert("g", 1, 2, private=False)
    in_place.ok("slot set2 0 gpa=2M size=32K offset=32K gmem=g")
    assert shown() == private((0, 1), (3, 13))
    in_place.store.convert("g", 0, 16, private=False)
    assert shown() == []


def test_pre_fault_in_place_asks_the_file_and_is_enoent_without_a_slot(in_place: Lines) -> None:
    """It was EFAULT."""
    in_place.ok("slot set2 0 gpa=0 size=64K gmem=g")
    assert in_place.store is not None
    in_place.store.convert("g", 4, 4, private=False)
    assert in_place.ok("prefault 0 128K").info == {"gpa": 64 << 10, "size": 64 << 10}
    assert in_place.ok("info mmu").info["shared_leaves"] == 4  # type: ignore[index]
    for line in ("prefault 64K 4K", "prefault 64K 4K shared", "prefault 1M 8K"):
        assert in_place(line).errno == "ENOENT"


def test_a_full_pool_is_enomem_for_a_guest_and_for_pre_fault(lines: Lines) -> None:
    assert lines.store is not None
    lines.store.create_memfd("other", 64)
    lines.store.allocate("other", 0, 64)
    lines.ok("slot set2 0 gpa=0 size=64K gmem=g", "attributes 0 64K private")
    fault = lines("touch 0 4K")
    assert (fault.exit, fault.errno) == ("KVM_EXIT_MEMORY_FAULT", "ENOMEM")
    assert fault.exit_fields == {"flags": 8, "gpa": 0, "size": 4096}
    assert lines("prefault 0 4K").errno == "ENOMEM"
    lines.store.punch("other", 0, 64)
    lines.ok("resume", "prefault 0 64K")


def test_a_vm_has_private_memory_or_files_that_are_born_shared(lines: Lines) -> None:
    """Linux: only a VM without private memory may have INIT_SHARED, as long as attributes are the VM's."""
    store = lines.store
    assert store is not None
    for name in ("shared", "later"):
        store.create_memfd(name, 16, GmemFlag.MMAP | GmemFlag.INIT_SHARED)
    lines.ok(f"gmem open s file={store.path('shared')}", "slot set2 0 gpa=0 size=64K gmem=s", 'write 0 "data" shared')
    assert lines("attributes 0 4K private").errno == "EINVAL"
    lines.ok("attributes 0 4K shared")
    assert lines("read 0 4 shared").data == b"data"
    lines.ok("vm second", "attributes 1M 4K private")
    assert lines(f"gmem open l file={store.path('later')}").errno == "EINVAL"
    lines.ok("vm third", f"gmem open l file={store.path('later')}", "slot set2 0 gpa=0 size=64K gmem=l")


def test_in_place_a_file_that_is_born_shared_becomes_private(in_place: Lines) -> None:
    assert in_place.store is not None
    in_place.store.create_memfd("shared", 16, GmemFlag.MMAP | GmemFlag.INIT_SHARED)
    in_place.ok(f"gmem open s file={in_place.store.path('shared')}", "slot set2 0 gpa=0 size=64K gmem=s")
    in_place.store.convert("shared", 0, 1, private=True)
    in_place.ok('write 0 "secret"')
