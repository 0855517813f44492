"""What becomes of trace points in a trace."""

from pathlib import Path

from memfsd.uapi.units import Gfn
from tests.support.traced import events, fault, tracing


def test_a_vcpu_is_in_the_guest_from_entry_to_exit(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with tracing(path, ("kvm", "")) as to:
        to.guest_entered("vm0", 0)
        to.guest_entered("vm0", 0)
        fault(to, 1)
        to.fault_begun("vm0", 0, Gfn(9), 4, True, False)
        to.userspace_exit("vm0", 0, "MMIO", 6, {"is_write": False, "len": 4, "phys_addr": 0x9004})
        to.mmio_read("vm0", 0, 0x9004, b"\x34\x12\0\0")
        to.run_done("vm0", 0)
        to.hypercall("vm0", 0, 12, (1, 2), False)
        to.run_done("vm0", 0)
        to.userspace_exit("vm0", 0, "INTR", 10, {})
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
        to.userspace_exit("vm0", 0, "IO", 2, out)
        to.guest_entered("vm0", 0)
        to.userspace_exit("vm0", 0, "IO", 2, {"direction": 0, "size": 1, "port": 0x80, "count": 3})
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
        to.userspace_exit("vm0", 0, "HLT", 5, {})
        to.hypercall("vm0", 0, 12, (), True)
    names = [line.split()[0] for line in events(tmp_path / "trace")]
    assert names == ["kvm_entry:", "kvm_exit:", "kvm_userspace_exit:", "kvm_entry:", "kvm_exit:", "kvm_hypercall:"]
    assert "reason HLT" in events(tmp_path / "trace")[1]
    assert "reason TDCALL" in events(tmp_path / "trace")[4]
