"""Script commands that run vCPUs: exits and resume, hypercalls, and several vCPUs at once."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvmsim.kvm.kvm
import kvmsim.kvm.vcpu
from kvmsim.shell.script.commands import GuestCommand
from kvmsim.shell.script.grammar import FORMS
from kvmsim.shell.vcpu_commands import GUEST_COMMANDS
from memfsd.uapi.units import Gfn
from tests.support.both_sides import LocalStore, alias
from tests.support.machine_code import assemble
from tests.support.script_lines import Lines
from tests.support.threads import Beside, Gate, until


@pytest.fixture
def private(private: Lines) -> Lines:
    """With vCPUs 0 and 1."""
    private.ok("vcpu 1")
    return private


def state(do: Lines, vcpu: int = 0) -> str:
    (found,) = [entry for entry in do.ok("info run").info if entry["vcpu"] == vcpu]  # type: ignore[attr-defined]
    return str(found["state"])


def test_every_command_of_a_guest_can_be_done() -> None:
    assert set(GUEST_COMMANDS) == {
        f.make for f in FORMS if isinstance(f.make, type) and issubclass(f.make, GuestCommand)
    }


# -- exits and resume


def test_an_mmio_read_is_answered_with_data(do: Lines) -> None:
    assert do("read 0x5000 12 shared").exit_fields == {"phys_addr": 0x5000, "len": 8, "is_write": False}
    assert do('resume data="01234567"').exit_fields == {"phys_addr": 0x5008, "len": 4, "is_write": False}
    done = do.ok('resume data="89ab"')
    assert (done.data, done.address) == (b"0123456789ab", 0x5000)


def test_what_is_refused_before_it_begins_leaves_what_is_under_way_as_it_was(do: Lines) -> None:
    do("read 0x5000 2 shared")
    assert do("sha256 0xfffffffff000 8K").errno == "EFAULT"
    done = do.ok('resume data="ab"')
    assert (done.data, done.address) == (b"ab", 0x5000), "told as the read that it is"


def test_an_answer_that_the_exit_does_not_ask_for_is_einval_and_changes_nothing(do: Lines) -> None:
    assert do("resume data=00").errno == "EINVAL", "no exit at all"
    assert do("resume ret=0").errno == "EINVAL"
    do("read 0x5000 2 shared")
    assert do("resume data=00").errno == "EINVAL", "too short"
    assert do("resume data=000000").errno == "EINVAL", "too long"
    assert do("resume ret=0").errno == "EINVAL", "no hypercall"
    assert do.ok("resume data=aabb").data == b"\xaa\xbb"
    do("write 0x5000 0102 shared")
    assert do("resume data=0102").errno == "EINVAL", "a write has no answer"
    do.ok("resume")
    assert do("resume").errno == "EINVAL", "nothing is under way"


def test_a_repaired_access_is_resumed_and_tells_its_result(private: Lines) -> None:
    private.ok('write 60K "tail of the slot"', "slot set 1 shared gpa=0 size=4K", 'write 0 "head" shared')
    assert private("read 0 4100 shared").exit == "KVM_EXIT_MEMORY_ERROR"
    assert state(private) == "under way"
    private.ok("slot set 2 shared gpa=4K size=4K", 'host write 4K "next"')
    assert private.ok("resume").data == b"head" + bytes(4092) + b"next"
    assert state(private) == "idle"


def test_load_and_sha256_go_on_where_they_were(private: Lines, tmp_path: Path, store: LocalStore) -> None:
    content = bytes(range(256)) * 288
    (tmp_path / "big").write_bytes(content)
    store.create("more", 16)
    assert private(f"load 0 {tmp_path}/big").exit_fields["gpa"] == 65536
    private.ok(f"slot set 1 private gpa=64K size=64K file={store.path('more')}")
    assert private.ok("resume").text == f"{len(content)} bytes"
    digest = private.ok(f"sha256 vcpu=1 0 {len(content)}")
    assert digest.data == hashlib.sha256(content).digest()
    private.ok("slot punch 1 gpa=64K size=4K")
    assert private(f"sha256 0 {len(content)}").exit == "KVM_EXIT_MEMORY_ERROR"
    assert private("resume").exit == "KVM_EXIT_MEMORY_ERROR"


def test_the_policy_repairs_and_the_vcpu_goes_on_instead_of_starting_anew(private: Lines) -> None:
    private.ok("policy punch")
    assert private("write 60K " + "ab" * 4100 + " shared").exit_fields["phys_addr"] == 65536
    assert private("resume").ok
    assert private.ok("host read 65532 4").data == b"\xab" * 4
    assert private.ok("info stats").info["converted_to_shared"] == 1  # type: ignore[index]


def test_a_map_of_a_hole_is_the_scripts_to_answer_unless_a_policy_does(private: Lines) -> None:
    hole = {"gpa": 1 << 32, "size": 4096, "private": False, "explicit": True, "illegal": False}
    assert private("map 4G 4K shared").exit_fields == hole
    assert private("resume").exit_fields == hole, "nobody has answered"
    assert private.ok("resume ret=0").ret is None
    assert private("info stats").info["userspace_exits"] == 2  # type: ignore[index]
    private.ok("policy punch", "map 4G 4K shared")


def test_hlt_shutdown_and_internal_error(do: Lines) -> None:
    assert do("hlt").exit == "KVM_EXIT_HLT"
    do.ok("resume")
    assert do("shutdown").exit == "KVM_EXIT_SHUTDOWN"
    assert do("resume").exit == "KVM_EXIT_SHUTDOWN"
    outcome = do("sha256 0x8000000005000 32")
    assert (outcome.exit, outcome.exit_fields) == (
        "KVM_EXIT_INTERNAL_ERROR",
        {"suberror": 1, "insn": "0f38cc06", "gpa": 0x5000},
    )


@pytest.fixture
def booted(do: Lines, tmp_path: Path) -> Callable[[str], Lines]:
    """With a program in shared memory on vCPU 0."""

    def boot(source: str) -> Lines:
        program = tmp_path / "program"
        program.write_bytes(assemble(source, alias(0x1000)))
        do.ok("slot set 0 shared gpa=0 size=64K", f"boot {program} at={alias(0x1000):#x}")
        return do

    return boot


def test_port_io_is_user_spaces_to_serve(booted: Callable[[str], Lines]) -> None:
    do = booted("mov $'o', %al; out %al, $0xe9; in $0x80, %eax; mov %eax, %ebx; mov $'k', %al; out %al, $0xe9; hlt")
    done = do("cpu run")
    assert (done.exit, done.text) == ("KVM_EXIT_HLT", "ok")
    assert do.ok("cpu regs").info["rbx"] == 0xFFFFFFFF  # type: ignore[index]
    counted = do.ok("info stats").info
    assert (counted["io_exits"], counted["userspace_exits"]) == (3, 4)  # type: ignore[index]


def test_port_io_that_is_left_to_the_script(booted: Callable[[str], Lines]) -> None:
    do = booted("mov $'a', %al; out %al, $0xe9; mov $0x7f1, %dx; in %dx, %ax; out %al, $0xe9; hlt")
    do.ok("ioport 0x7f0 exit count=8")
    reached = do("cpu run")
    assert (reached.exit, reached.text) == ("KVM_EXIT_IO", "a")
    assert reached.exit_fields == {"direction": 0, "size": 2, "port": 0x7F1, "count": 1}
    assert do("resume ret=0").errno == "EINVAL"
    short = do("resume data=62")
    assert (short.errno, short.reason) == ("EINVAL", "the IN is of 2 bytes: give as many in data=, not 1")
    do.ok("ioport 0xe9 exit")
    assert do("resume data=6263").exit_fields == {"direction": 1, "size": 1, "port": 0xE9, "count": 1, "data": "62"}
    assert do("resume data=00").errno == "EINVAL", "an OUT has no answer"
    assert do("resume").exit == "KVM_EXIT_HLT"


def test_a_step_over_port_io(booted: Callable[[str], Lines]) -> None:
    do = booted("out %al, $0x80; in $0x80, %al; hlt")
    do.ok("cpu step", "cpu step 1")
    assert do.ok("cpu regs").info["rip"] == alias(0x1004)  # type: ignore[index]
    assert do("cpu step").exit == "KVM_EXIT_HLT"


def test_a_kick_ends_a_loop_of_port_io(booted: Callable[[str], Lines]) -> None:
    do = booted("1: out %al, $0xe9; jmp 1b")
    do.ok("start cpu run")
    until(lambda: do.executor.current.vmm.ports.has_printed(do.executor.current.vm.vcpu(0)), "it prints")
    do.ok("kick")
    ended = do("join")
    assert (ended.errno, set(ended.text)) == ("EINTR", {"\0"}), "with what was printed until then"


def test_tdvmcall_tells_both_registers(do: Lines) -> None:
    do.ok("slot set 0 shared gpa=0 size=4M")
    done = do.ok("tdvmcall 0x10001 0x8000000000000 4M")
    assert (done.ret, done.info) == (0, {"r10": 0, "r11": 0x8000000400000})
    bad = do("tdvmcall 0x10001 1 4K")
    assert (bad.ok, bad.ret, bad.reason) == (False, (1 << 63) + 2, "R10=0x8000000000000002 (alignment error) R11=0x1")
    assert do("tdvmcall 0x10002").ret == (1 << 63) + 3
    assert do("tdvmcall 0x10001").ret == 1 << 63


def test_hypercalls_that_user_space_asked_for(do: Lines) -> None:
    refused = do("hypercall 12 0 1 16")
    assert (refused.ok, refused.ret, refused.reason) == (False, (1 << 64) - 1000, "RAX=0xfffffffffffffc18 (-1000)")
    do.ok("cap exit_hypercall 0x1000")
    fields = {"nr": 12, "a0": 0, "a1": 1, "a2": 16, "a3": 0, "a4": 0, "a5": 0}
    assert do("hypercall 12 0 1 16").exit_fields == fields
    assert do.ok("resume ret=5").ret == 5
    assert do("tdvmcall 0x10001 0 4K").exit_fields == fields
    assert do("resume ret=11").ret == 1, "EAGAIN is the guest's to retry"
    assert do("map 0 4K private").exit == "KVM_EXIT_HYPERCALL"
    assert do("resume ret=22").errno == "EINVAL"


def test_info_run_shows_what_user_space_sees(do: Lines) -> None:
    do("vcpu 1")
    do("write vcpu=1 0x5000 0102 shared")
    shown = do.ok("info run")
    assert shown.text.splitlines() == [
        "vcpu 0: idle, immediate_exit=0",
        "vcpu 1: under way, immediate_exit=0 KVM_EXIT_MMIO phys_addr=0x5000 len=2 is_write=1 data=0102",
    ]


# -- several at once


@pytest.fixture
def held(private: Lines, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """vCPU 1 stops in its first fault until the gate opens."""
    gate = Gate()
    kvm = private.executor.current.kvm
    real = kvm.faults.fault

    def fault(vcpu: kvmsim.kvm.vcpu.Vcpu, *arguments: object, **named: object) -> object:
        if vcpu.id == 1 and not gate.is_open:
            gate.wait()
        return real(vcpu, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(kvm.faults, "fault", fault)
    yield gate
    gate.open()


def test_start_runs_beside_the_script_and_join_tells_its_result(private: Lines, held: Gate) -> None:
    private.ok("start read vcpu=1 4K 4")
    held.reached()
    assert state(private, 1) == "running"
    private.ok('write 4K "beside"')
    held.open()
    assert private.ok("join vcpu=1").data == b"besi"
    assert private("join vcpu=1").errno == "EINVAL", "once"


def test_a_vcpu_with_a_started_command_is_busy_until_it_is_joined(private: Lines, held: Gate) -> None:
    private.ok("start touch vcpu=1 0 64K")
    for line in ("read vcpu=1 0 1", "start read vcpu=1 0 1", "resume vcpu=1", "hlt vcpu=1"):
        assert private(line).errno == "EBUSY"
    held.open()
    private.ok("join vcpu=1", "read vcpu=1 0 1")


def test_join_tells_an_exit_and_resume_goes_on(private: Lines) -> None:
    private.ok("start read vcpu=1 1M 4 shared")
    assert private("join vcpu=1").exit == "KVM_EXIT_MMIO"
    private.ok("start resume vcpu=1 data=01020304")
    assert private.ok("join vcpu=1").data == b"\x01\x02\x03\x04"


def test_join_tells_a_refusal(private: Lines) -> None:
    private.ok("start read vcpu=1 0x1000000000000 4", "start load 0 /nowhere/at/all")
    assert private("join vcpu=1").errno == "EFAULT"
    missing = private("join")
    assert (missing.errno, "/nowhere/at/all" in missing.reason) == ("ENOENT", True)


def test_starting_what_can_not_be_started_starts_nothing(private: Lines) -> None:
    assert private("start read vcpu=7 0 4").errno == "EINVAL"
    assert private("start resume vcpu=1 ret=0").errno == "EINVAL"
    assert private("join vcpu=1").errno == "EINVAL"


def test_a_kick_ends_it_with_eintr_and_resume_goes_on(private: Lines, held: Gate) -> None:
    private.ok("start read vcpu=1 4K 4")
    held.reached()
    private.ok('write 4K "data"', "kick vcpu=1")
    held.open()
    interrupted = private("join vcpu=1")
    assert (interrupted.errno, "run it again" in interrupted.reason) == ("EINTR", True)
    assert private.ok("resume vcpu=1").data == b"data"
    private.ok("kick vcpu=1")
    assert private("read vcpu=1 0 1").errno == "EINTR", "a vCPU that is not running leaves when it is run next"
    assert private.ok("resume vcpu=1").data == b"\0"


def test_the_script_goes_on_with_another_vm_meanwhile(private: Lines, held: Gate) -> None:
    private.ok("start read vcpu=1 4K 4", "vm other")
    assert private("join vcpu=1").errno == "EINVAL", "another VM's vCPU"
    assert private("read 4K 4").exit == "KVM_EXIT_MEMORY_ERROR"
    held.open()


def test_the_end_of_a_script_waits_for_no_vcpu_that_can_leave(private: Lines, held: Gate) -> None:
    private.ok("start touch vcpu=1 0 64K")
    held.reached()
    kvm = private.executor.current
    vcpu = kvm.vm.vcpu(1)
    closing = Beside(private.executor.close)
    until(lambda: bool(vcpu.run.immediate_exit), "it is asked to leave")
    held.open()
    closing.result()
    assert not vcpu.is_running
    assert vcpu.program is None


def test_two_vcpus_want_the_same_page_converted_and_both_get_it(private: Lines) -> None:
    """The second one's exit finds that the first one's handler has done it."""
    private.ok("policy punch")
    for round_ in range(8):
        gpa = f"{round_ * 4}K"
        private.ok(f'start write vcpu=1 {gpa} "one" shared', f'start write {gpa} "two" shared')
        assert private("join vcpu=1").ok
        assert private("join").ok
        assert private.ok(f"host read {gpa} 3").data in (b"one", b"two")


def test_two_vcpus_that_want_a_page_both_ways_both_get_on(private: Lines) -> None:
    private.ok("policy punch")
    for _ in range(8):
        private.ok('start write vcpu=1 4K "public" shared', 'start write 4K "secret"')
        assert private("join vcpu=1").ok
        assert private("join").ok
    assert private.ok("info memory").info["doubled"] == 0  # type: ignore[index]


# -- prefault


def test_prefault_shows_what_is_left_and_each_errno(private: Lines) -> None:
    done = private.ok("prefault 0 64K")
    assert (done.info, done.text) == ({"gpa": 65536, "size": 0}, "gpa=0x10000 size=0x0")
    assert private.ok("prefault vcpu=1 60K 8K").info == {"gpa": 65536, "size": 4096}
    assert private("prefault 64K 4K").errno == "ENOENT"
    assert private("prefault 0 4K shared").errno == "ENOENT"
    assert private("prefault 0 0").errno == "EINVAL"
    private.ok("kick")
    assert private("prefault 0 4K").errno == "EINTR"
    private.ok("prefault 0 4K")


def test_a_kick_that_cuts_prefault_short_is_spent(private: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = private.executor.current.kvm.faults
    real = faults.first_unmapped

    def kicked(gfn: Gfn, end: Gfn, *, shared: bool) -> Gfn:
        private.ok("kick")
        return real(gfn, end, shared=shared)

    monkeypatch.setattr(faults, "first_unmapped", kicked)
    info = private.ok("prefault 0 64K").info
    assert 0 < info["size"] < 65536  # type: ignore[index]
    assert private("read 0 1").ok, "the next command is not interrupted"


def test_prefault_goes_on_after_user_space_s_own_kick(private: Lines) -> None:
    """As for a conversion on another vCPU's thread: nobody has asked for EINTR."""
    private.executor.current.vm.vcpu(0).request_exit()
    assert private.ok("prefault 0 64K").info == {"gpa": 65536, "size": 0}
