"""Traces of a VM's points, and what is in them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memfsd.common import trace
from memfsd.common.traceevents import POOL_STATES
from memfsd.common.tracefile import TraceFile, open_trace, wanted
from memfsd.common.tracing import Tracing
from memfsd.uapi.units import Gfn


@contextmanager
def tracing(path: Path, *chosen: tuple[str, str], warn: Callable[[str], None] = print) -> Iterator[Tracing]:
    to = Tracing(TraceFile(open_trace(str(path)), "kvmsim", wanted(chosen), warn), "kvmsim")
    try:
        with trace.observed(vm=to):
            yield to
    finally:
        to.close()


def events(path: Path) -> list[str]:
    """Event and fields, without time."""
    return [line.split(": ", 1)[1] for line in path.read_text().splitlines() if not line.startswith("#")]


def fault(to: Tracing, gfn: int, vcpu: int = 0) -> None:
    to.fault_begun("vm0", vcpu, Gfn(gfn), 0, False, True)
    to.guest_entered("vm0", vcpu)


STORE_PID, VM_PID = 100, 200


def store_line(us: int, text: str) -> str:
    return f"          memfsd-{STORE_PID}     [000] .....     1.{us:06}: {text}\n"


def vm_line(us: int, text: str, task: str = "vm0/0") -> str:
    return f"{task:>16}-{VM_PID}     [001] .....     1.{us:06}: {text}\n"


def vm_exit(us: int, reason: str = "EPT_VIOLATION", task: str = "vm0/0") -> str:
    rest = f"reason {reason} rip 0x0 info1 0x{0:016x} info2 0x{0:016x} intr_info 0x{0:08x} error_code 0x{0:08x}"
    return vm_line(us, f"kvm_exit: vcpu {task[-1]} {rest}", task)


def vm_entry(us: int, task: str = "vm0/0") -> str:
    return vm_line(us, f"kvm_entry: vcpu {task[-1]}, rip 0x0", task)


def message(side: str, verb: str, kind: str, reply: int, peer: int) -> str:
    return f"{side}_{verb}: channel up kind {kind} id 7 reply {reply} errno 0 vm vm0 ino 2 peer {peer} fds 0"


def write_traces(place: Path) -> tuple[Path, Path]:
    """A store and a VM with two vCPUs: a fault, an access of a device, and an invalidation."""
    store, vm = place / "store.trace", place / "vm.trace"
    begin = "INVALIDATE_BEGIN"
    others = "".join(f" {state} 0" for state in POOL_STATES[4:])
    pool = f"memfsd_pool: free {{}} shared 0 private {{}} pending {{}}{others}"
    store.write_text(
        f"# tracer: nop\n# side: memfsd pid: {STORE_PID} clock: mono\n"
        + store_line(20, "memfsd_get_pfn: ino 2 pgoff 0x1 max_pages 15")
        + store_line(22, pool.format(60, 1, 3))
        + store_line(200, "memfsd_invalidate_begin: ino 2 pgoff 0x1 -- 0x2 reason 1")
        + store_line(201, message("memfsd", "send", begin, 0, VM_PID))
        + store_line(240, message("memfsd", "receive", begin, 1, VM_PID))
        + store_line(245, pool.format(61, 0, 3))
        + store_line(250, "memfsd_invalidate_end: ino 2")
    )
    vm.write_text(
        f"# tracer: nop\n# side: kvmsim pid: {VM_PID} clock: mono\n"
        + vm_entry(1)
        + vm_exit(10)
        + vm_line(11, "kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000000001000 error_code 0x100000002")
        + vm_entry(30)
        + vm_entry(40, "vm0/1")
        + vm_exit(50, "EPT_VIOLATION", "vm0/1")
        + vm_line(51, "kvm_mmio: mmio unsatisfied-read len 4 gpa 0xc0000000 val 0x0", "vm0/1")
        + vm_line(52, "kvm_userspace_exit: reason KVM_EXIT_MMIO (6)", "vm0/1")
        + vm_entry(150, "vm0/1")
        + vm_line(210, message("kvmsim", "receive", begin, 0, STORE_PID), "vm0")
        + vm_line(220, "kvmsim_zapped: gfn 0x1 -- 0x2 kept 0", "vm0")
        + vm_line(230, message("kvmsim", "send", begin, 1, STORE_PID), "vm0")
        + vm_line(260, "kvmsim_memory: shared 2 doubled 1", "vm0")
    )
    return store, vm
