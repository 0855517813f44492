"""Each script command, from the line to its outcome."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from kvmsim.kvm.exits import ExitReason
from kvmsim.kvm.region import SlotFlag
from kvmsim.shell.script import commands, values
from kvmsim.shell.script.grammar import EXIT_REASONS, FORMS, INFO_TOPICS
from memfsd.uapi.limits import MAX_SLOTS, MAX_VMS
from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.script_lines import Lines
from tests.support.threads import until


def test_every_command_of_the_language_can_be_done(do: Lines) -> None:
    made = {form.make for form in FORMS if not form.name.startswith("expect")}
    by_runner = {commands.Repeat, commands.End, commands.Quiet}
    assert made == set(do.executor._handlers) | by_runner
    assert set(INFO_TOPICS) == set(do.executor._topics)


def test_the_language_and_the_simulator_name_the_same_things() -> None:
    assert {*EXIT_REASONS, "INTR"} == {reason.name for reason in ExitReason}, "INTR is the errno EINTR of KVM_RUN"
    assert (values.MEM_LOG_DIRTY_PAGES, values.MEM_READONLY) == (SlotFlag.LOG_DIRTY_PAGES, SlotFlag.READONLY)


# -- VMs and vCPUs


def test_vm_makes_a_vm_and_it_is_current(do: Lines) -> None:
    do.ok("slot set 0 shared gpa=0 size=4K", "write 0 aa shared", "vm other")
    assert do("read 0 1 shared").exit == "KVM_EXIT_MMIO", "the other one has no slot"
    assert [(vm["vm"], vm["current"], vm["slots"]) for vm in do.ok("info vms").info] == [  # type: ignore[attr-defined]
        ("vm0", False, 1),
        ("other", True, 0),
    ]


def test_vm_goes_back_to_a_vm_that_is_there(do: Lines) -> None:
    do.ok("slot set 0 shared gpa=0 size=4K", "write 0 aa shared", "vm other", "vm vm0")
    assert do("read 0 1 shared").data == b"\xaa"
    do.ok("vm other")
    assert do("read 0 1 shared").exit == "KVM_EXIT_MMIO"


def test_a_command_names_its_vm_and_the_current_one_stays(do: Lines) -> None:
    do.ok("vm other", "slot set 0 shared gpa=0 size=8K vm=vm0", "vcpu 2 vm=vm0", "write vm=vm0 0 aa shared")
    assert do("read 0 1 shared").exit == "KVM_EXIT_MMIO"
    do.ok("start touch 0 8K shared vcpu=2 vm=vm0")
    assert do("join vcpu=2").errno == "EINVAL", "nothing was started in the current VM"
    do.ok("join vcpu=2 vm=vm0", "host write 1 bb vm=vm0", "policy punch vm=vm0")
    assert do("read vcpu=2 0 2 shared vm=vm0").data == b"\xaa\xbb"
    assert do("info slots").info == []
    assert len(do("info slots vm=vm0").info) == 1  # type: ignore[arg-type]
    do.ok("vm third")
    vms = do("info vms").info
    assert [vm["policy"] for vm in vms] == ["punch", "none", "none"]  # type: ignore[attr-defined]
    missing = do("read 0 1 vm=nobody")
    assert (missing.errno, missing.reason) == ("ENOENT", "there is no VM nobody: create it with 'vm nobody'")
    assert len(do("info vms").info) == 3, "vm= makes none"  # type: ignore[arg-type]


def test_vms_are_limited(do: Lines) -> None:
    for number in range(1, MAX_VMS):
        do.ok(f"vm vm{number}")
    assert do("vm one-more").errno == "ENOSPC"


def test_vcpus_share_memory_and_have_exits_of_their_own(do: Lines) -> None:
    do.ok("slot set 0 shared gpa=0 size=4K", "vcpu 3", "write vcpu=3 0 abcd shared")
    assert do("read vcpu=0 0 2 shared").data == b"\xab\xcd"
    assert do("read vcpu=1 0 2 shared").errno == "EINVAL"
    assert do("vcpu 3").errno == "EEXIST"
    assert do("vcpu 256").errno == "EINVAL"


# -- slots


def test_shared_slots_of_anonymous_memory_and_of_files(do: Lines, tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.write_bytes(b"a" * 4096 + b"b" * 4096)
    do.ok("slot set 0 shared gpa=0 size=4K", f"slot set 1 shared gpa=4K size=4K file={path} offset=4K")
    assert do("read 4090 12 shared").data == bytes(6) + b"b" * 6
    do.ok('write 4K "guest" shared')
    assert path.read_bytes()[4096:4101] == b"guest"
    do.ok("slot delete 1 shared")
    assert do("slot delete 1 shared").errno == "EINVAL"
    assert do("read 4K 1 shared").exit == "KVM_EXIT_MMIO"


def test_a_slot_on_a_file_that_can_not_be_opened_is_refused_with_its_errno(do: Lines, tmp_path: Path) -> None:
    missing = do(f"slot set 0 shared gpa=0 size=4K file={tmp_path}/missing")
    assert (missing.errno, "missing" in missing.reason) == ("ENOENT", True)
    assert do(f"slot set 0 shared gpa=0 size=4K file={tmp_path}").errno == "EISDIR"
    (tmp_path / "plain").write_bytes(b"")
    plain = do(f"slot set 0 private gpa=0 size=4K file={tmp_path}/plain")
    assert plain.errno == "EINVAL"


def test_a_file_slot_that_reaches_behind_its_file_exits_instead_of_crashing(do: Lines, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x" * 4096)
    do.ok(f"slot set 0 shared gpa=0 size=8K file={tmp_path}/short", "read 0 1 shared")
    outcome = do("read 4K 1 shared")
    assert (outcome.exit, outcome.exit_fields["errno"]) == ("KVM_EXIT_MEMORY_ERROR", 14)
    assert do("host read 4K 1").errno == "EFAULT"
    assert do("touch 0 8K shared").exit == "KVM_EXIT_MEMORY_ERROR"


def test_slot_flags(do: Lines) -> None:
    do.ok("slot set 0 shared gpa=0 size=4K flags=readonly")
    assert do("slot set 1 shared gpa=8K size=4K flags=4").errno == "EINVAL"
    outcome = do("write 0 0102 shared")
    assert (outcome.exit, outcome.exit_fields["data"], outcome.exit_fields["is_write"]) == (
        "KVM_EXIT_MMIO",
        "0102",
        True,
    )


def test_max_slots_of_the_command_line_is_the_cap() -> None:
    lines = Lines(max_slots=1)
    lines.ok("slot set 0 shared gpa=0 size=4K")
    assert lines("slot set 1 shared gpa=4K size=4K").errno == "EINVAL"
    lines.executor.close()


def test_slot_punch_and_size_0(private: Lines) -> None:
    private.ok('write 0 "data"', "slot punch 0 gpa=4K size=4K")
    assert private("read 4K 1").exit == "KVM_EXIT_MEMORY_ERROR"
    assert private("read 0 4").data == b"data"
    assert private("slot punch 0 gpa=4K size=4K").errno == "EINVAL"
    private.ok("slot set 0 private gpa=0 size=0 file=any")
    assert private("slot delete 0 private").errno == "EINVAL"


# -- the guest


def test_read_write_touch_map(private: Lines) -> None:
    private.ok('write 4094 "across"', "touch 0 64K", "map 0 64K private")
    assert private("read 4094 6").data == b"across"
    assert private("map 0 64K shared").exit_fields == {
        "gpa": 0,
        "size": 65536,
        "private": False,
        "explicit": True,
        "illegal": False,
    }
    assert private("map 1 4K private").errno == "EINVAL"
    assert private("touch 60K 8K").exit_fields["gpa"] == 65536


def test_load_and_sha256_agree_with_the_host(private: Lines, tmp_path: Path) -> None:
    content = os.urandom(50001)
    (tmp_path / "kernel").write_bytes(content)
    loaded = private.ok(f"load 0x123 {tmp_path}/kernel")
    assert loaded.text == "50001 bytes"
    digest = private.ok("sha256 0x123 50001")
    assert (digest.data, digest.text) == (hashlib.sha256(content).digest(), hashlib.sha256(content).hexdigest())
    assert private("sha256 0 68K").exit == "KVM_EXIT_MEMORY_ERROR"
    assert private(f"load 0 {tmp_path}/missing").errno == "ENOENT"
    (tmp_path / "large").write_bytes(bytes(70000))
    assert private(f"load 0 {tmp_path}/large").exit_fields["gpa"] == 65536
    (tmp_path / "empty").write_bytes(b"")
    assert private.ok(f"load 0 {tmp_path}/empty").text == "0 bytes"


def test_a_shared_slot_is_refused_before_memory_is_made_for_it(do: Lines) -> None:
    assert do("slot set 0 shared gpa=0 size=7T flags=0x10").errno == "EINVAL"
    assert do("slot set 0 shared gpa=1 size=8191T").errno == "EINVAL"
    do.ok("slot set 1 shared gpa=4K size=4K")
    assert do("slot set 0 shared gpa=0 size=4T").errno == "EEXIST"


def test_host_read_and_write(private: Lines) -> None:
    private.ok("slot set 0 shared gpa=128K size=4K", 'host write 128K "hello"')
    assert private("host read 128K 5").data == b"hello"
    assert private("read 128K 5 shared").data == b"hello"
    illegal = private("host read 0 1")
    assert (illegal.exit, illegal.exit_fields["illegal"]) == ("KVM_EXIT_MEMORY_ERROR", True)
    assert private("host write 0 00").exit == "KVM_EXIT_MEMORY_ERROR"
    assert private("host read 1M 1").errno == "EFAULT"


def test_policy_punch_converts_and_later_vms_have_it_too(private: Lines) -> None:
    private.ok("policy punch", 'write 4K "public" shared')
    assert private("host read 4K 6").data == b"public"
    assert private("read 4K 6").data == bytes(6), "private again, and zero"
    private.ok("vm next")
    vms = private.ok("info vms").info
    assert [vm["policy"] for vm in vms] == ["punch", "punch"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("topic", INFO_TOPICS)
def test_info_is_for_people_and_for_programs(private: Lines, topic: str) -> None:
    private.ok("policy punch", "slot set 1 shared gpa=1M size=4K", "touch 0 64K", 'write 4K "x" shared', "touch 8K 4K")
    private.ok("hva anon 4K")
    outcome = private.ok(f"info {topic}")
    assert json.loads(json.dumps(outcome.info)) == outcome.info
    assert outcome.info
    assert outcome.text


def test_info_tells_the_truth(private: Lines) -> None:
    private.ok("policy punch", "touch 0 64K", 'write 4K "x" shared')
    slots = {(slot["space"], slot["id"]): slot for slot in private.ok("info slots").info}  # type: ignore[attr-defined]
    assert slots["private", 0]["segments"] == [[0, 4096], [8192, 65536]]
    assert slots["shared", MAX_SLOTS - 1]["gpa"] == 4096
    assert private.ok("info memory").info == {
        "private_mapped": page(15),
        "private_populated": page(15),
        "shared_populated": page(1),
        "doubled": 0,
        "punched": page(1),
    }
    ept = private.ok("info ept").info
    assert sum(run["size"] for run in ept if run["space"] == "private") == page(15)  # type: ignore[attr-defined]
    stats = private.ok("info stats").info
    assert stats["converted_to_shared"] == 1 and stats["pf_fixed"] > 0  # type: ignore[index]
    mmu = private.ok("info mmu").info
    assert mmu["private_leaves"] == 15 and mmu["mmu_invalidate_in_progress"] == 0  # type: ignore[index]


def test_info_tells_the_size_of_leaves_and_what_became_of_them(private: Lines) -> None:
    private.ok("slot set 1 shared gpa=4M size=6M", "touch 4M 6M shared", "slot set 1 shared gpa=4M size=0")
    private.ok("slot set 1 shared gpa=1G size=2M", "touch 0 64K", 'write 1G "x" shared', "slot punch 0 gpa=8K size=4K")
    runs = [(run["space"], run["gpa"], run["size"], run["page_size"]) for run in private.ok("info ept").info]  # type: ignore[attr-defined]
    assert runs == [
        ("shared", 1 << 30, 2 << 20, 2 << 20),
        ("private", 0, page(2), page(1)),
        ("private", page(3), page(13), page(1)),
    ]
    mmu = private.ok("info mmu").info
    assert [mmu[f"shared_leaves_{size}"] for size in ("4k", "2m", "1g")] == [0, 1, 0]  # type: ignore[index]
    stats = private.ok("info stats").info
    assert [stats[f"zapped_{size}"] for size in ("4k", "2m", "1g")] == [1, 3, 0]  # type: ignore[index]
    assert (stats["zapped"], stats["tlb_flush"], stats["tlb_ranged_flush"]) == (3 * 512 + 1, 1, 1)  # type: ignore[index]


# -- beside the guest


@pytest.mark.parametrize(
    ("command", "status", "text"), [("true", 0, ""), ("exit 3", 3, ""), ("echo hi; false", 1, "hi")]
)
def test_sh_answers_with_the_status_and_the_output(do: Lines, command: str, status: int, text: str) -> None:
    outcome = do(f"sh {command}")
    assert (outcome.ok, outcome.status, outcome.text) == (status == 0, status, text)


def test_a_lost_store_is_an_exit_or_ehostdown_never_a_crash(store: LocalStore, private: Lines) -> None:
    private.ok("touch 0 64K")
    store.hang_up("file")
    outcome = private("read 0 1")
    assert (outcome.exit, outcome.exit_fields["errno"]) == ("KVM_EXIT_MEMORY_ERROR", 5)
    assert outcome.reason
    assert "the store" in private.ok("info vms").info[0]["stores"][0]  # type: ignore[index]
    assert private(f"slot set 1 private gpa=1M size=4K file={store.path('file')}").errno == "EHOSTDOWN"
    private.ok("slot delete 0 private", "slot set 0 shared gpa=0 size=4K", "read 0 1 shared")


def test_closing_ends_every_vm(store: LocalStore) -> None:
    store.create("file", 4)
    store.create("other", 4)
    lines = Lines(store=store)
    lines.ok(
        f"slot set 0 private gpa=0 size=16K file={store.path('file')}",
        "touch 0 16K",
        "vm second",
        f"slot set 0 private gpa=0 size=16K file={store.path('other')}",
        "touch 0 16K",
    )
    assert store.free_count == 1024 - 8
    lines.executor.close()
    assert LocalVm(store).kvm.pairings.links == {}
    until(lambda: store.free_count == 1024, "BYE frees all frames")
