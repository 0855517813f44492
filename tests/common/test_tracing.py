"""What becomes of trace points in a trace."""

import time
from pathlib import Path

import pytest

from kvmsim.kvm.faults import Faults
from kvmsim.kvm.mmu.ept import Ept
from kvmsim.kvm.mmu.tlb import Tlb
from kvmsim.memory.memory import AnonymousMemory
from memfsd.common.trace import Connection
from memfsd.uapi.framing import encode_failure, encode_request
from memfsd.uapi.messages import PROTOCOL_VERSION, Hello, Kind, Role
from memfsd.uapi.proof import NONCE_BYTES
from memfsd.uapi.units import Gfn
from tests.support.traced import events, fault, tracing


def test_a_vcpu_is_in_the_guest_from_entry_to_exit(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with tracing(path, ("kvm", "")) as to:
        to.guest_entered("vm0", 0)
        to.guest_entered("vm0", 0)
        fault(to, 1)
        to.fault_begun("vm0", 0, Gfn(9), 4, True, False)
        to.userspace_exit("vm0", 0, "MMIO", 6, {"is_write": False, "len": 4, "phys_addr": 0x9004}.copy)
        to.mmio_read("vm0", 0, 0x9004, b"\x34\x12\0\0")
        to.run_done("vm0", 0)
        to.hypercall("vm0", 0, 12, (1, 2), False)
        to.run_done("vm0", 0)
        to.userspace_exit("vm0", 0, "INTR", 10, {}.copy)
    assert [line.split()[0] for line in events(path)] == [
        "kvm_entry:",
        *("kvm_exit:", "kvm_page_fault:", "kvm_entry:"),
        *("kvm_exit:", "kvm_page_fault:", "kvm_mmio:", "kvm_userspace_exit:", "kvm_mmio:", "kvm_entry:"),
        *("kvm_exit:", "kvm_hypercall:", "kvm_entry:"),
        *("kvm_exit:", "kvm_userspace_exit:"),
    ]
    assert "kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000000009004 error_code 0x100000004" in events(path)
    assert "kvm_mmio: mmio read len 4 gpa 0x9004 val 0x1234" in events(path)
    assert events(path)[-1] == "kvm_userspace_exit: reason restart (4)"


def test_port_io(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with tracing(path, ("kvm", "")) as to:
        to.guest_entered("vm0", 0)
        out: dict[str, int | str] = {"direction": 1, "size": 2, "port": 0x3F8, "count": 1, "data": "4161"}
        to.userspace_exit("vm0", 0, "IO", 2, out.copy)
        to.guest_entered("vm0", 0)
        to.userspace_exit("vm0", 0, "IO", 2, {"direction": 0, "size": 1, "port": 0x80, "count": 3}.copy)
        to.port_read("vm0", 0, 0x80, 1, 3, b"\x07\x08\x09")
    left = "rip 0x0 info1 {:#018x} info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000"
    assert events(path) == [
        "kvm_entry: vcpu 0, rip 0x0",
        f"kvm_exit: vcpu 0 reason IO_INSTRUCTION {left.format(0x3F80001)}",
        "kvm_pio: pio_write at 0x3f8 size 2 count 1 val 0x6141 ",
        "kvm_userspace_exit: reason KVM_EXIT_IO (2)",
        "kvm_entry: vcpu 0, rip 0x0",
        f"kvm_exit: vcpu 0 reason IO_INSTRUCTION {left.format(0x800008)}",
        "kvm_userspace_exit: reason KVM_EXIT_IO (2)",
        "kvm_pio: pio_read at 0x80 size 1 count 3 val 0x7 (...)",
    ]


def test_faults_of_an_ioctl_are_no_exits_of_a_guest(tmp_path: Path) -> None:
    with tracing(tmp_path / "trace", ("kvm", "")) as to:
        to.guest_entered("vm0", 0)
        to.ioctl_begun("vm0", 0)
        fault(to, 1)
        to.ioctl_ended("vm0", 0)
    assert [line.split()[0] for line in events(tmp_path / "trace")] == ["kvm_entry:"]


def test_a_call_after_an_exit_that_was_abandoned_comes_from_the_guest(tmp_path: Path) -> None:
    with tracing(tmp_path / "trace", ("kvm", "")) as to:
        to.guest_entered("vm0", 0)
        to.userspace_exit("vm0", 0, "HLT", 5, {}.copy)
        to.hypercall("vm0", 0, 12, (), True)
    names = [line.split()[0] for line in events(tmp_path / "trace")]
    assert names == ["kvm_entry:", "kvm_exit:", "kvm_userspace_exit:", "kvm_entry:", "kvm_exit:", "kvm_hypercall:"]
    assert "reason HLT" in events(tmp_path / "trace")[1]
    assert "reason TDCALL" in events(tmp_path / "trace")[4]


def test_points_that_are_no_events_of_a_trace_are_not_in_the_code_of_a_fault(tmp_path: Path) -> None:
    def current() -> list[object]:
        return [Ept.map_page, Tlb.insert, Faults.translate, AnonymousMemory.read, AnonymousMemory.write]

    plain, fault_ = current(), Faults.fault
    with tracing(tmp_path / "trace"):
        assert current() == plain
        assert Faults.fault is not fault_
    assert Faults.fault is fault_


def test_memory_is_counted_for_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a look at every shared page: with many of them a conversion would be a look and little else."""
    now_ns = 10**9
    counted = []

    def held() -> tuple[int, int]:
        nonlocal now_ns
        now_ns += 1_000_000
        counted.append(now_ns)
        return len(counted), 0

    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns)
    with tracing(tmp_path / "trace", ("kvm_convert_memory", ""), ("kvmsim_memory", "")) as to:
        for gfn in range(1000):
            to.converted("vm0", Gfn(gfn), Gfn(gfn + 1), True, held)
            now_ns += 1_000_000
    said = [line.split()[0] for line in events(tmp_path / "trace")]
    assert said[:2] == ["kvm_convert_memory:", "kvmsim_memory:"]
    assert said.count("kvm_convert_memory:") == 1000
    assert 2 <= said.count("kvmsim_memory:") == len(counted) <= 6


def test_memory_is_not_counted_when_nobody_wants_to_know(tmp_path: Path) -> None:
    with tracing(tmp_path / "trace", ("kvm_convert_memory", "")) as to:
        to.converted("vm0", Gfn(0), Gfn(1), True, lambda: pytest.fail("counted"))
    assert len(events(tmp_path / "trace")) == 1


def test_packets_are_named_by_their_headers_and_what_is_none_is_no_event(tmp_path: Path) -> None:
    connection = Connection(peer=7)
    hello = Hello(PROTOCOL_VERSION, Role.GUEST, "vm0", [], b"", bytes(NONCE_BYTES))
    with tracing(tmp_path / "trace") as to:
        to.packet_received("down", connection, b"short", 0)
        to.packet_received("down", connection, (1 << 32 | 0x7FFF).to_bytes(8, "big"), 0)
        to.packet_sent("down", connection, encode_request(1, Kind.HELLO, hello), 0)
        to.packet_received("down", connection, encode_failure(2, Kind.GET_PFN, 5, "no"), 1)
    tail = "ino -1 peer 7 fds"
    assert events(tmp_path / "trace") == [
        f"kvmsim_send: channel down kind HELLO id 1 reply 0 errno 0 vm vm0 {tail} 0",
        f"kvmsim_receive: channel down kind GET_PFN id 2 reply 1 errno 5 vm vm0 {tail} 1",
    ]
