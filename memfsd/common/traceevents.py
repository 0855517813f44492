"""The events of a trace: names, fields and text, as the kernel's format files declare them.

Those of system `kvm` are the kernel's own (arch/x86/kvm/trace.h, include/trace/events/kvm.h), that of `qemu` is QEMU's,
and `memfsd` and `kvmsim` are ours. A field has the kernel's name, and where people say `gpa` or `reason`, that, too.
"""

import errno
import fnmatch
import re
from dataclasses import dataclass
from typing import Any

from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState

Value = int | str


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """fields: in the order of the text, a %-format of what _ring.c knows. line: from the name to the end."""

    system: str
    name: str
    fields: tuple[str, ...]
    text: str
    pattern: re.Pattern[str]
    line: str

    def is_text(self, field: int) -> bool:
        return str(_CONVERSIONS.findall(self.text)[field]).endswith("s")

    def index(self, field: str) -> int:
        """ValueError when it has no such field."""
        name = field if field in self.fields else _ALSO.get((self.name, field), field)
        return self.fields.index(name)

    def parse(self, text: str) -> dict[str, Value] | None:
        found = self.pattern.fullmatch(text)
        if found is None:
            return None
        return {
            name: value if spec.endswith("s") else int(value, 16 if spec.endswith("x") else 10)
            for name, spec, value in zip(self.fields, _CONVERSIONS.findall(self.text), found.groups(), strict=True)
        }


_CONVERSIONS = re.compile(r"%[0-9]*[usdx]")
_PATTERNS = {"s": "(.*?)", "u": "([0-9]+)", "d": "(-?[0-9]+)", "x": "([0-9a-f]+)"}
_ALSO = {
    ("kvm_page_fault", "gpa"): "fault_address",
    ("kvm_page_fault", "vcpu"): "vcpu_id",
    ("kvm_entry", "vcpu"): "vcpu_id",
    ("kvm_exit", "vcpu"): "vcpu_id",
    ("kvm_exit", "reason"): "exit_reason",
}


def _event(system: str, name: str, fields: str, text: str) -> Event:
    literals, specs = _CONVERSIONS.split(text), _CONVERSIONS.findall(text)
    assert len(specs) == len(fields.split()), name
    pattern = "".join(re.escape(a) + _PATTERNS[b[-1]] for a, b in zip(literals, specs, strict=False))
    compiled = re.compile(pattern + re.escape(literals[-1]))
    return Event(system, name, tuple(fields.split()), text, compiled, f": {name}: {text}\n")


POOL_STATES = tuple(state.name.lower() for state in FrameState)
_MESSAGE = (
    "channel kind id reply errno vm ino peer fds",
    "channel %s kind %s id %u reply %u errno %d vm %s ino %d peer %d fds %u",
)

ENTRY = _event("kvm", "kvm_entry", "vcpu_id rip", "vcpu %u, rip 0x%x")
EXIT = _event(
    "kvm",
    "kvm_exit",
    "vcpu_id exit_reason guest_rip info1 info2 intr_info error_code",
    "vcpu %u reason %s rip 0x%x info1 0x%016x info2 0x%016x intr_info 0x%08x error_code 0x%08x",
)
PAGE_FAULT = _event(
    "kvm",
    "kvm_page_fault",
    "vcpu_id guest_rip fault_address error_code",
    "vcpu %u rip 0x%x address 0x%016x error_code 0x%x",
)
MMIO = _event("kvm", "kvm_mmio", "type len gpa val", "mmio %s len %u gpa 0x%x val 0x%x")
PIO = _event("kvm", "kvm_pio", "rw port size count val more", "pio_%s at 0x%x size %d count %d val 0x%x %s")
HYPERCALL = _event("kvm", "kvm_hypercall", "nr a0 a1 a2 a3", "nr 0x%x a0 0x%x a1 0x%x a2 0x%x a3 0x%x")
USERSPACE_EXIT = _event("kvm", "kvm_userspace_exit", "reason number", "reason %s (%d)")
UNMAP = _event("kvm", "kvm_unmap_hva_range", "start end", "mmu notifier unmap range: 0x%x -- 0x%x")
CONVERT = _event("qemu", "kvm_convert_memory", "start size direction", "start 0x%x size 0x%x %s")
MEMORY = _event("kvmsim", "kvmsim_memory", "shared doubled", "shared %u doubled %u")
INSTALLED = _event(
    "kvmsim", "kvmsim_installed", "ino gfn pgoff pfn pages", "ino %d gfn 0x%x pgoff 0x%x pfn 0x%x pages %u"
)
ZAPPED = _event("kvmsim", "kvmsim_zapped", "start end kept", "gfn 0x%x -- 0x%x kept %u")
KICKED = _event("kvmsim", "kvmsim_kicked", "took_ns", "every vcpu was out within %u ns")
FAULT_WAITED = _event("kvmsim", "kvmsim_fault_waited", "gfn", "gfn 0x%x")
VM_SEND = _event("kvmsim", "kvmsim_send", *_MESSAGE)
VM_RECEIVE = _event("kvmsim", "kvmsim_receive", *_MESSAGE)
STORE_SEND = _event("memfsd", "memfsd_send", *_MESSAGE)
STORE_RECEIVE = _event("memfsd", "memfsd_receive", *_MESSAGE)
PAIRED = _event("memfsd", "memfsd_pair", "ino vm", "ino %d vm %s")
BOUND = _event("memfsd", "memfsd_bind", "ino slot gfn pgoff pages", "ino %d slot %u gfn 0x%x pgoff 0x%x pages %u")
UNBOUND = _event("memfsd", "memfsd_unbind", "ino pgoff pages", "ino %d pgoff 0x%x pages %u")
GET_PFN = _event("memfsd", "memfsd_get_pfn", "ino pgoff max_pages", "ino %d pgoff 0x%x max_pages %u")
GRANTED = _event("memfsd", "memfsd_granted", "ino pgoff pfn pages", "ino %d pgoff 0x%x pfn 0x%x pages %u")
POOL = _event("memfsd", "memfsd_pool", " ".join(POOL_STATES), " ".join(f"{state} %u" for state in POOL_STATES))
INVALIDATE_BEGIN = _event(
    "memfsd", "memfsd_invalidate_begin", "ino start end reason", "ino %d pgoff 0x%x -- 0x%x reason %d"
)
UNMAPPED = _event("memfsd", "memfsd_unmapped", "ino", "ino %d acknowledged")
INVALIDATE_END = _event("memfsd", "memfsd_invalidate_end", "ino", "ino %d")
FREED = _event("memfsd", "memfsd_freed", "window pages", "window %d pages %u")
QUARANTINED = _event("memfsd", "memfsd_quarantined", "ino", "ino %d")
DISCONNECTED = _event("memfsd", "memfsd_disconnected", "ino vm why", "ino %d vm %s why %s")
EXITED = _event("memfsd", "memfsd_exited", "ino vm pid said_bye", "ino %d vm %s pid %d said_bye %u")

EVENTS: dict[str, Event] = {value.name: value for value in list(globals().values()) if isinstance(value, Event)}


def chosen(pattern: str) -> list[Event]:
    """As trace-cmd's -e: EVENT, SYSTEM, SYSTEM:EVENT, each with * and ?; EINVAL (Refused) when there is none."""
    system, _, name = pattern.rpartition(":")
    found = [
        event
        for event in EVENTS.values()
        if (fnmatch.fnmatchcase(event.system, system or "*") and fnmatch.fnmatchcase(event.name, name))
        or (not system and fnmatch.fnmatchcase(event.system, name))
        or (not name and event.system == system)
    ]
    if not found:
        raise Refused(errno.EINVAL, f"no event '{pattern}': kvmsim trace list shows them")
    return found


def describe() -> list[dict[str, Any]]:
    return [{"system": e.system, "event": e.name, "fields": list(e.fields), "text": e.text} for e in EVENTS.values()]
