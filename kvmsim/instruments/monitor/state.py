"""What the monitor reads of a VM. Mmu.lock is held in short steps only, so that no fault waits for it."""

import itertools
import os
from typing import Any

from kvmsim.kvm.alias import Alias
from kvmsim.kvm.kvm_run import exit_of
from kvmsim.kvm.vcpu import Vcpu
from kvmsim.machine import VirtualMachine
from kvmsim.shell import info
from memfsd.uapi.limits import MAX_QMP_PAGE
from memfsd.uapi.units import PAGE_SHIFT

Facts = dict[str, Any]
_INSTANT = ("mmu_invalidate_in_progress", "leaves", "tables", "pages_")
"""Parts of the names of counters that go down as well."""


def qom_path(vcpu: Vcpu) -> str:
    return f"/machine/vcpu[{vcpu.id}]"


def cpus(machine: VirtualMachine) -> list[Facts]:
    facts = []
    for vcpu in sorted(machine.vm.vcpus.values(), key=lambda vcpu: vcpu.id):
        exit_ = exit_of(vcpu.run)
        facts.append(
            {
                "cpu-index": vcpu.id,
                "qom-path": qom_path(vcpu),
                "thread-id": os.getpid(),
                "target": "x86_64",
                "state": "running" if vcpu.is_running else "idle" if vcpu.program is None else "under way",
                "exit": exit_ and f"KVM_EXIT_{exit_.reason.name}",
            }
        )
    return facts


def memslots(machine: VirtualMachine, first: int, limit: int) -> Facts:
    slots = [slot for space in machine.vm.slots for slot in space]
    facts = [
        {
            "id": slot.id,
            "space": slot.as_id.name.lower(),
            "gpa": slot.gfn << PAGE_SHIFT,
            "size": slot.page_count << PAGE_SHIFT,
            "flags": int(slot.flags),
            "offset": slot.pgoff << PAGE_SHIFT,
            "file": slot.backing.path,
            "segments": [{"gpa": low << PAGE_SHIFT, "size": high - low << PAGE_SHIFT} for low, high in slot.segments],
        }
        for slot in slots[first : first + limit]
    ]
    more = {"next": first + limit} if first + limit < len(slots) else {}
    return {"slots": facts, "total": len(slots), **more}


def mappings(machine: VirtualMachine, alias: Alias, gpa: int, limit: int) -> Facts:
    found = list(itertools.islice(info.mappings(machine, alias, gpa), limit + 1))
    facts = [
        {
            "gpa": fact["gpa"],
            "size": fact["size"],
            "pfn": fact["pfn"],
            "page-size": fact["page_size"],
            "memory-type": fact["memory_type"],
        }
        for fact in found[:limit]
    ]
    return {"mappings": facts, **({"next": found[limit]["gpa"]} if len(found) > limit else {})}


def memory(machine: VirtualMachine) -> Facts:
    use = machine.vmm.memory_use()
    files = [
        {
            "inode": file.ino,
            "file": file.path,
            "private": file.private << PAGE_SHIFT,
            "doubled": file.doubled << PAGE_SHIFT,
            "punched": file.punched << PAGE_SHIFT,
        }
        for file in use.files
    ]
    return {
        "private": sum(file.private for file in use.files) << PAGE_SHIFT,
        "shared": use.shared << PAGE_SHIFT,
        "doubled": use.doubled_pages << PAGE_SHIFT,
        "punched": sum(file.punched for file in use.files) << PAGE_SHIFT,
        "files": files,
        "held-twice": [
            {"gpa": low << PAGE_SHIFT, "size": high - low << PAGE_SHIFT} for low, high in use.doubled[:MAX_QMP_PAGE]
        ],
    }


def counters(machine: VirtualMachine) -> dict[str, int]:
    """Those of the VM."""
    found: dict[str, int] = {}
    for facts, _ in (info.stats(machine), info.mmu(machine)):
        assert isinstance(facts, dict)
        found |= facts
    return found


def kind_of(counter: str) -> str:
    """As query-stats-schemas has it."""
    is_instant = any(part in counter for part in _INSTANT) and not counter.startswith("zapped")
    return "instant" if is_instant else "cumulative"
