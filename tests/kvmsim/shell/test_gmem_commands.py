"""guest_memfd in scripts: files by name, slots with both memories, attributes, exits."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsim.shell.execute import Executor
from memfsd.uapi.abi import GMEM_6_18
from tests.support.both_sides import opened_store
from tests.support.script_lines import Lines


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    with opened_store(tmp_path, 64, abi=GMEM_6_18) as store:
        store.create_memfd("g", 16)
        run = Lines(store=store)
        run.executor.close()
        run.executor = Executor(8, pair=store.pair, abi=GMEM_6_18)
        run.ok(f"gmem open g file={store.path('g')}")
        yield run
        run.executor.close()


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
