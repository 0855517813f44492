"""A VM as the API has it: slots, conversions, callbacks, names, ends."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvmsim
from kvmsim.machine import VirtualMachine
from tests.support.both_sides import LocalStore, errno_of

PAGE = 4096


@pytest.fixture
def alone() -> Iterator[kvmsim.VM]:
    """Without a store."""
    with kvmsim.VM() as vm:
        yield vm


def test_what_a_slot_shows_is_what_was_set(api: kvmsim.VM, store: LocalStore) -> None:
    api.set_user_memory_region(3, 1 << 30, 4 * PAGE, flags=kvmsim.SlotFlag.LOG_DIRTY_PAGES)
    api.punch_slot(0, 2 * PAGE, PAGE)
    shared, private = api.memory_slots
    assert shared == kvmsim.MemorySlot(
        3,
        False,
        1 << 30,
        4 * PAGE,
        kvmsim.SlotFlag.LOG_DIRTY_PAGES,
        0,
        "(anonymous)",
        ((1 << 30, (1 << 30) + 4 * PAGE),),
    )
    assert private.file == store.path("file")
    assert private.shows == ((0, 2 * PAGE), (3 * PAGE, 64 * PAGE))


def test_a_shared_slot_logs_moves_and_goes(alone: kvmsim.VM) -> None:
    vcpu, logs = alone.create_vcpu(), kvmsim.SlotFlag.LOG_DIRTY_PAGES
    alone.set_user_memory_region(0, 0, 4 * PAGE, flags=logs)
    vcpu.write(PAGE, b"x", shared=True)
    assert alone.get_dirty_log(0) == [(PAGE, PAGE)]
    assert alone.get_dirty_log(0) == []
    alone.set_user_memory_region(0, 16 * PAGE, 4 * PAGE)
    assert vcpu.read(17 * PAGE, 1, shared=True) == b"x"
    assert errno_of(alone.get_dirty_log, 0) == "ENOENT"
    alone.delete_memory_region(0, private=False)
    assert alone.memory_slots == []
    assert errno_of(alone.delete_memory_region, 0, private=False) == "EINVAL"


def test_userspace_memory_is_a_file_too(alone: kvmsim.VM, tmp_path: Path) -> None:
    (tmp_path / "shared").write_bytes(bytes(PAGE))
    alone.set_user_memory_region(0, 0, PAGE, userspace=tmp_path / "shared")
    alone.create_vcpu().write(5, b"seen by the host", shared=True)
    assert (tmp_path / "shared").read_bytes()[5:21] == b"seen by the host"
    assert alone.read_guest(5, 4) == b"seen"
    alone.write_guest(5, b"SEEN")
    assert alone.read_guest(5, 4) == b"SEEN"


def test_a_descriptor_is_a_file(alone: kvmsim.VM, tmp_path: Path) -> None:
    with (tmp_path / "shared").open("w+b") as file:
        file.truncate(PAGE)
        alone.set_user_memory_region(0, 0, PAGE, userspace=file.fileno())
    alone.write_guest(0, b"by descriptor")
    assert (tmp_path / "shared").read_bytes()[:13] == b"by descriptor"


@pytest.mark.parametrize(
    ("arguments", "named", "number"),
    [
        ((0, 0, 0), {}, "EINVAL"),
        ((0, 1, PAGE), {}, "EINVAL"),
        ((0, 0, PAGE), {"userspace": "/nowhere"}, "ENOENT"),
        ((0, 0, PAGE), {"guest_memfd": "/nowhere"}, "ENOENT"),
        ((0, 0, PAGE), {"guest_memfd": "/etc/passwd", "userspace": "/etc/passwd"}, "EINVAL"),
    ],
)
def test_a_slot_that_cannot_be_is_refused(
    alone: kvmsim.VM, arguments: tuple[int, int, int], named: dict[str, Any], number: str
) -> None:
    assert errno_of(alone.set_user_memory_region, *arguments, **named) == number
    assert alone.memory_slots == []


def test_the_host_does_not_reach_private_memory(api: kvmsim.VM) -> None:
    assert errno_of(api.read_guest, 0, 4) == "EFAULT"
    assert errno_of(api.write_guest, 0, b"x") == "EFAULT"


def test_user_space_converts_unasked(api: kvmsim.VM, vcpu: kvmsim.VCPU) -> None:
    api.set_policy("punch")
    vcpu.write(0, b"private")
    assert api.convert(PAGE, 2 * PAGE, private=False) == 2 * PAGE
    vcpu.write(PAGE, b"shared", shared=True)
    assert api.read_guest(PAGE, 6) == b"shared"
    assert api.convert(PAGE, 2 * PAGE, private=True) == 2 * PAGE
    assert (vcpu.read(0, 7), vcpu.read(PAGE, 6)) == (b"private", bytes(6))
    assert api.memory()["doubled"] == 0


def test_what_cannot_be_converted_is_refused(api: kvmsim.VM) -> None:
    assert errno_of(api.convert, 0, PAGE, private=False) == "EINVAL", "policy none"
    api.set_policy("punch")
    assert errno_of(api.convert, 1, PAGE, private=False) == "EINVAL"
    assert errno_of(api.convert, 0, 0, private=False) == "EINVAL"
    assert errno_of(api.convert, 64 * PAGE, PAGE, private=False) == "EINVAL"


class Refusing:
    """A design that converts nothing."""

    name = "refusing"

    def to_shared(self, start: int, end: int) -> int | None:
        return None

    to_private = to_shared


def test_a_design_of_ones_own_is_the_policy(api: kvmsim.VM, vcpu: kvmsim.VCPU) -> None:
    seen: list[object] = []

    def make(memory: kvmsim.GuestMemory, copy: kvmsim.SharedCopy, tally: kvmsim.Tally) -> kvmsim.Design:
        seen.extend((memory, copy, tally))
        return Refusing()

    api.set_design(make)
    assert api.policy == "refusing"
    assert seen[0] is api.machine.vmm.memory
    vcpu.load(lambda cpu: cpu.map_gpa(0, PAGE, private=False))
    assert isinstance(vcpu.run(), kvmsim.MemoryErrorExit)
    api.set_policy("punch")
    assert vcpu.run() == kvmsim.HltExit()


def test_a_design_does_not_take_the_name_of_a_policy(api: kvmsim.VM) -> None:
    class Punch(Refusing):
        name = "punch"

    assert errno_of(api.set_design, lambda *_: Punch()) == "EEXIST"
    assert api.policy == "none"


def test_callbacks_come_in_the_words_of_the_monitor(api: kvmsim.VM, vcpu: kvmsim.VCPU, store: LocalStore) -> None:
    heard: list[kvmsim.Event] = []
    api.set_policy("punch")
    ends = [api.on(name, heard.append) for name in ("INVALIDATE", "CONVERSION", "MEMORY_ERROR")]
    vcpu.write(0, b"x")
    store.punch("file", 0, 1)
    api.convert(PAGE, PAGE, private=False)
    vcpu.load(lambda cpu: cpu.map_gpa(1 << 40, PAGE, private=True))
    vcpu.run()
    assert [event.name for event in heard] == ["INVALIDATE", "CONVERSION", "MEMORY_ERROR"]
    invalidate, conversion, memory_error = (event.data for event in heard)
    assert (invalidate["offset"], invalidate["size"], invalidate["reason"]) == (0, PAGE, "punch")
    assert conversion == {"vm": "api", "gpa": PAGE, "size": PAGE, "private": False}
    assert (memory_error["gpa"], memory_error["explicit"]) == (1 << 40, True)
    for end in ends:
        end()
    api.convert(PAGE, PAGE, private=True)
    assert len(heard) == 3


def test_a_callback_that_fails_disturbs_nobody(
    api: kvmsim.VM, vcpu: kvmsim.VCPU, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", hooked.append)

    def fail(event: kvmsim.Event) -> None:
        raise ZeroDivisionError(event.name)

    api.on("INVALIDATE", fail)
    vcpu.write(0, b"x")
    store.punch("file", 0, 1)
    assert vcpu.read(0, 1) == b"\0"
    assert [str(hook.exc_value) for hook in hooked] == ["INVALIDATE"]
    assert errno_of(api.on, "NOTHING", fail) == "EINVAL"


def test_another_vms_events_are_not_its_own(api: kvmsim.VM, store: LocalStore) -> None:
    heard: list[kvmsim.Event] = []
    api.on("CONVERSION", heard.append)
    store.create("other", 4)
    with kvmsim.VM.of(VirtualMachine("other", 10, store.pair)) as other:
        other.set_policy("punch")
        other.set_user_memory_region(0, 0, 4 * PAGE, guest_memfd=store.path("other"))
        other.convert(0, PAGE, private=False)
    assert heard == []


def test_a_name_is_of_one_open_vm() -> None:
    with kvmsim.VM("mine") as vm:
        assert vm.name == "mine"
        assert errno_of(kvmsim.VM, "mine") == "EEXIST"
        with kvmsim.VM() as first, kvmsim.VM() as second:
            assert first.name != second.name
    with kvmsim.VM("mine"):
        pass
    vm.close()


@pytest.mark.parametrize(
    "named",
    [{"policy": "no"}, {"policy": "overlay", "under": "no"}, {"max_slots": 0}, {"memory_encryption": "rot13"}],
)
def test_a_vm_that_cannot_be_leaves_nothing(named: dict[str, Any]) -> None:
    assert errno_of(kvmsim.VM, "never", **named) == "EINVAL"
    kvmsim.VM("never").close()


def test_vcpus_are_created_once(alone: kvmsim.VM) -> None:
    vcpus = alone.create_vcpu(), alone.create_vcpu(7)
    assert errno_of(alone.create_vcpu) == "EEXIST"
    assert errno_of(alone.create_vcpu, 7) == "EEXIST"
    assert errno_of(alone.create_vcpu, 100_000) == "EINVAL"
    assert alone.vcpus == vcpus


def test_stop_holds_vcpus_and_cont_lets_them_go(api: kvmsim.VM) -> None:
    api.stop()
    assert api.is_stopped
    api.cont()
    assert not api.is_stopped


def test_the_ept_is_seen(api: kvmsim.VM, vcpu: kvmsim.VCPU) -> None:
    vcpu.write(5 * PAGE, b"x")
    assert [(m.private, m.gpa, m.size, m.page_size) for m in api.ept(private=True)] == [(True, 5 * PAGE, PAGE, PAGE)]
    assert list(api.ept(private=False)) == []


def test_tampering_needs_a_frame(api: kvmsim.VM, vcpu: kvmsim.VCPU) -> None:
    assert errno_of(api.tamper, 0, b"x") == "ENOENT"
    vcpu.write(0, b"abc")
    api.tamper(1, b"X")
    assert vcpu.read(0, 3) == b"aXc"


def test_every_name_of_the_package_is_there() -> None:
    assert {name: getattr(kvmsim, name) for name in kvmsim.__all__}.keys() == set(kvmsim.__all__)
    with pytest.raises(AttributeError):
        kvmsim.nothing  # noqa: B018 - to see it refused
