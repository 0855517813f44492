"""What `info TOPIC` shows: facts for programs, and lines for people."""

import errno
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kvmsim.kvm.alias import PRIVATE, SHARED, Alias
from kvmsim.kvm.hypercalls import SHARED_BIT
from kvmsim.kvm.kvm_run import exit_of
from kvmsim.kvm.mmu.eptentry import (
    ACCESSED,
    AGED,
    DIRTY,
    EXECUTE,
    INDEX,
    LARGE,
    LEVEL_BITS,
    MAX_GFN_EPT,
    MEMORY_TYPE_UC,
    MEMORY_TYPE_WB,
    READ,
    TOP_LEVEL,
    WRITE,
    entry_memory_type,
    entry_pfn,
)
from kvmsim.kvm.statistics import LEAF_SIZES, statistics
from kvmsim.machine import VirtualMachine
from kvmsim.vmm.hva import HostAddressSpace
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn, GfnRange, HostPfn, format_size

from .script.outcome import format_exit

Answer = tuple[object, str]

_MEMORY_TYPES = {MEMORY_TYPE_UC: "UC", MEMORY_TYPE_WB: "WB"}
_MOST_MAPPINGS = 65536
_MOST_DOUBLED = 8
"""Named; all are counted."""
_STEP_PAGES = 1 << 13
"""Looked at with Mmu.lock held, of one EPT."""


def slots(machine: VirtualMachine) -> Answer:
    """Slots of both address spaces; a punched slot with what it still shows."""
    facts: list[dict[str, Any]] = []
    for space in machine.vm.slots:
        for slot in space:
            backing = slot.backing
            facts.append(
                {
                    "id": slot.id,
                    "space": slot.as_id.name.lower(),
                    "gpa": slot.gfn << PAGE_SHIFT,
                    "size": slot.page_count << PAGE_SHIFT,
                    "flags": int(slot.flags),
                    "offset": slot.pgoff << PAGE_SHIFT,
                    "file": backing.path,
                    "segments": [[low << PAGE_SHIFT, high << PAGE_SHIFT] for low, high in slot.segments],
                }
            )
    lines = [f"{'SPACE':8} {'ID':>6} {'GPA':>14} {'SIZE':>8} {'OFFSET':>10}  FILE"]
    for f in facts:
        lines.append(
            f"{f['space']:8} {f['id']:>6} {f['gpa']:>#14x} {format_size(f['size']):>8} {f['offset']:>#10x}"
            f"  {_file(f['file'])}"
        )
        if len(f["segments"]) != 1 or f["segments"][0] != [f["gpa"], f["gpa"] + f["size"]]:
            lines += [f"{'':8} {'shows':>6} {low:>#14x} {format_size(high - low):>8}" for low, high in f["segments"]]
    return facts, "\n".join(lines)


def ept(machine: VirtualMachine) -> Answer:
    """Mapped runs of both EPTs, a run of leaves of one size each, with the frame numbers of the memory behind them
    (EPFNs for private ones)."""
    mapped = itertools.chain(mappings(machine, SHARED), mappings(machine, PRIVATE))
    facts = list(itertools.islice(mapped, _MOST_MAPPINGS))
    lines = [f"{'SPACE':8} {'GPA':>14} {'SIZE':>8} {'PFN':>10} {'PAGE':>4} TYPE"]
    lines += [
        f"{f['space']:8} {f['gpa']:>#14x} {format_size(f['size']):>8} {f['pfn']:>#10x} {format_size(f['page_size']):>4}"
        f" {f['memory_type']}"
        for f in facts
    ]
    return facts, "\n".join(lines)


_FLAGS = {"r": READ, "w": WRITE, "x": EXECUTE, " large": LARGE, " accessed": ACCESSED, " dirty": DIRTY, " aged": AGED}


def ept_walk(machine: VirtualMachine, gpa: int) -> Answer:
    """The hardware's walk to a GPA: the entry of each level, raw. A GPA with the SHARED bit is looked up in the EPT of
    the shared alias alone, one without in both. EFAULT (Refused) where no guest has addresses."""
    aliases = (SHARED,) if gpa & SHARED_BIT else (SHARED, PRIVATE)
    gfn = Gfn((gpa & ~SHARED_BIT) >> PAGE_SHIFT)
    if gfn >= MAX_GFN_EPT:
        raise Refused(errno.EFAULT, f"gpa {gpa:#x} is past the guest's addresses: choose a lower one")
    facts: list[dict[str, Any]] = []
    lines: list[str] = []
    vm = machine.vm
    for alias in aliases:
        with vm.mmu.lock:
            path = vm.mmu.epts[alias].path(gfn)
            leaf = vm.mmu.epts[alias].walk(gfn)
            frame = vm.physmap.find(entry_pfn(leaf))[1] if leaf else None
        levels = [
            {"level": TOP_LEVEL + 1 - depth, "index": gfn >> (TOP_LEVEL - depth) * LEVEL_BITS & INDEX, "entry": entry}
            for depth, entry in enumerate(path)
        ]
        facts.append({"space": alias.name.lower(), "gpa": gfn << PAGE_SHIFT, "levels": levels, "pfn": frame})
        lines += [f"{alias.name.lower()}, gpa {gfn << PAGE_SHIFT:#x}", f"{'LEVEL':>5} {'INDEX':>5} {'ENTRY':>18}"]
        for depth, entry in enumerate(path):
            level, index = levels[depth]["level"], levels[depth]["index"]
            lines.append(f"{level:>5} {index:>5} {entry:>#18x}  {_entry(entry, level)}")
        if leaf:
            lines[-1] += f", pfn {frame:#x} at this gpa"
    return facts, "\n".join(lines)


def _entry(entry: int, level: int) -> str:
    if not entry:
        return "not present"
    flags = "".join(name for name, bit in _FLAGS.items() if entry & bit)
    if level > 1 and not entry & LARGE:
        return f"{flags}, table"
    size = format_size(PAGE_SIZE << (level - 1) * LEVEL_BITS)
    return f"{flags}, {size} {_MEMORY_TYPES[entry_memory_type(entry)]}"


def mappings(machine: VirtualMachine, alias: Alias, start: int = 0) -> Iterator[dict[str, Any]]:
    """Mapped runs of one EPT from a GPA on. Mmu.lock is held for short ranges only, so that no fault and no
    acknowledgement waits for it: what changes meanwhile may be seen in part."""
    vm = machine.vm
    held: _Mapped | None = None
    at = Gfn(start >> PAGE_SHIFT)
    while at < MAX_GFN_EPT:
        found: list[_Mapped] = []
        with vm.mmu.lock:
            ept = vm.mmu.epts[alias]
            at = ept.next_present(at)
            stop = min(at + _STEP_PAGES, MAX_GFN_EPT)
            for order, (gfn, pfn, count) in ept.leaf_runs(at, stop):
                found.append(_Mapped(order, gfn, pfn, vm.physmap.find(pfn)[1], count, entry_memory_type(ept.walk(gfn))))
        at = stop
        for run in found:
            if held is not None and held.goes_on_in(run):
                held = held._replace(page_count=held.page_count + run.page_count)
                continue
            if held is not None:
                yield held.facts(alias)
            held = run
    if held is not None:
        yield held.facts(alias)


class _Mapped(NamedTuple):
    """A run of leaves of one size; frame: the first one's, in its memory."""

    order: int
    gfn: Gfn
    pfn: HostPfn
    frame: int
    page_count: int
    memory_type: int

    def goes_on_in(self, after: "_Mapped") -> bool:
        """It was cut where a step ended."""
        end = self.order, self.gfn + self.page_count, self.pfn + self.page_count, self.memory_type
        return end == (after.order, after.gfn, after.pfn, after.memory_type)

    def facts(self, alias: Alias) -> dict[str, Any]:
        return {
            "space": alias.name.lower(),
            "gpa": self.gfn << PAGE_SHIFT,
            "size": self.page_count << PAGE_SHIFT,
            "pfn": self.frame,
            "page_size": PAGE_SIZE << self.order,
            "memory_type": _MEMORY_TYPES[self.memory_type],
        }


def mmu(machine: VirtualMachine) -> Answer:
    """The invalidation sequence, and the sizes of the page tables: all leaves, and those of each size."""
    mmu = machine.vm.mmu
    with mmu.lock:
        facts = {"mmu_invalidate_seq": mmu.invalidate_seq, "mmu_invalidate_in_progress": mmu.in_progress}
        for space, ept in (("shared", mmu.epts[SHARED]), ("private", mmu.epts[PRIVATE])):
            facts[f"{space}_leaves"] = ept.leaf_count
            facts |= {f"{space}_leaves_{size}": n for size, n in zip(LEAF_SIZES, ept.leaf_counts, strict=True)}
            facts[f"{space}_tables"] = ept.table_count
    return facts, _lines(facts)


def memory(machine: VirtualMachine) -> Answer:
    """Bytes mapped and held, those held twice, and those that punched slots do not show."""
    vm = machine.vm
    with vm.mmu.lock:
        private = vm.mmu.epts[PRIVATE].page_count
    use = machine.vmm.memory_use()
    facts = {
        "private_mapped": private * PAGE_SIZE,
        "private_populated": sum(file.private for file in use.files) * PAGE_SIZE,
        "shared_populated": use.shared * PAGE_SIZE,
        "doubled": use.doubled_pages * PAGE_SIZE,
        "punched": sum(file.punched for file in use.files) * PAGE_SIZE,
    }
    text = _lines({key: format_size(value) for key, value in facts.items()})
    for low, high in use.doubled[:_MOST_DOUBLED]:
        where = f"{low << PAGE_SHIFT:#x}: {format_size(high - low << PAGE_SHIFT)}"
        text += f"\nwarning: {where} are held twice, private and shared: punch the file there, or the shared memory"
    return facts, text


def attributes(machine: VirtualMachine) -> Answer:
    """GPAs that are private by the VM's memory attributes; or pages of its files, where these keep the attributes."""
    kept = machine.vm.abi.attributes.value
    facts: list[dict[str, Any]]
    if machine.vm.rules.asks_file:
        facts = list(itertools.islice(_attributes_of_files(machine), _MOST_MAPPINGS))
        lines = [f"{'INODE':>8} {'OFFSET':>14} {'SIZE':>8} ATTRIBUTES"]
        lines += [f"{f['inode']:>8} {f['offset']:>#14x} {format_size(f['size']):>8} {f['attributes']}" for f in facts]
    else:
        facts = [
            {"gpa": start << PAGE_SHIFT, "size": end - start << PAGE_SHIFT, "attributes": "private"}
            for start, end in machine.kvm.attributes.ranges()
        ]
        lines = [f"{'GPA':>14} {'SIZE':>8} ATTRIBUTES"]
        lines += [f"{f['gpa']:>#14x} {format_size(f['size']):>8} {f['attributes']}" for f in facts]
    return {"kept_by": kept, "ranges": facts}, "\n".join([f"kept by: {kept}", *lines])


def _attributes_of_files(machine: VirtualMachine) -> Iterator[dict[str, Any]]:
    for link in list(machine.kvm.pairings.links.values()):
        for start, end in machine.kvm.attributes.of_file(link, link.size >> PAGE_SHIFT):
            yield {
                "inode": link.file.inode,
                "offset": start << PAGE_SHIFT,
                "size": end - start << PAGE_SHIFT,
                "attributes": "private",
            }


def gmem(facts: list[dict[str, Any]]) -> Answer:
    """User space's open guest_memfds."""
    lines = [f"{'GMEM':10} {'INODE':>8} FILE"]
    lines += [f"{quoted(f['gmem']):10} {f['inode']:>8} {quoted(f['file'])}" for f in facts]
    return {"open": facts}, "\n".join(lines)


def run(machine: VirtualMachine) -> Answer:
    """kvm_run of each vCPU, as user space sees it, and what the vCPU does."""
    facts: list[dict[str, Any]] = []
    lines = []
    for vcpu in list(machine.vm.vcpus.values()):
        state = "running" if vcpu.is_running else "idle" if vcpu.program is None else "under way"
        exit_ = exit_of(vcpu.run)
        facts.append(
            {
                "vcpu": vcpu.id,
                "state": state,
                "immediate_exit": vcpu.run.immediate_exit,
                "exit_reason": vcpu.run.exit_reason,
                "exit": exit_ and f"KVM_EXIT_{exit_.reason.name}",
                "exit_fields": exit_.fields() if exit_ else {},
            }
        )
        shown = format_exit(f"KVM_EXIT_{exit_.reason.name}", exit_.fields()) if exit_ else ""
        lines.append(f"vcpu {vcpu.id}: {state}, immediate_exit={vcpu.run.immediate_exit} {shown}".rstrip())
    return facts, "\n".join(lines)


def stats(machine: VirtualMachine) -> Answer:
    """Counters since the VM was made: KVM's by its own names, then those of user space."""
    tally = machine.vmm.tally
    facts = {
        **statistics(machine.kvm),
        "converted_to_shared": tally.to_shared_pages,
        "converted_to_private": tally.to_private_pages,
        "lost_pages": tally.lost_pages,
        "unreturned_pages": tally.unreturned_pages,
        "rolled_back": tally.rolled_back,
    }
    return facts, _lines(facts)


def registers(values: Mapping[str, int]) -> Answer:
    """Of a vCPU that runs machine code."""
    cells = [f"{name:>6}={value:#018x}" for name, value in values.items()]
    return dict(values), "\n".join("  ".join(cells[at : at + 4]) for at in range(0, len(cells), 4))


def disassembly(found: Sequence[tuple[int, bytes, str]]) -> Answer:
    """Instructions: address, bytes, text."""
    facts = [{"address": at, "bytes": raw.hex(), "text": text} for at, raw, text in found]
    lines = [f"{at:#x}:  {raw.hex(' '):<30} {text}" for at, raw, text in found]
    return facts, "\n".join(lines) if found else "no memory is there"


def dirty(ranges: list[GfnRange]) -> Answer:
    """A dirty log: ranges of GFNs that were written."""
    facts = [{"gpa": start << PAGE_SHIFT, "size": end - start << PAGE_SHIFT} for start, end in ranges]
    lines = [f"{'GPA':>14} {'SIZE':>8}"] + [f"{f['gpa']:>#14x} {format_size(f['size']):>8}" for f in facts]
    return facts, "\n".join(lines) if facts else "no page was written"


def hva(spaces: list[HostAddressSpace], *, dump: bool = False) -> Answer:
    """Mappings of simulated host processes; dump: only what a core dump holds."""
    facts: list[dict[str, Any]] = [
        {
            "process": space.process,
            "hva": vma.start,
            "size": vma.size,
            "flags": list(vma.flags),
            "file": vma.name,
        }
        for space in spaces
        for vma in (space.dump() if dump else space)
    ]
    lines = [f"{'PROCESS':8} {'HVA':>14} {'SIZE':>8}  FILE, FLAGS"]
    for f in facts:
        flags = "|".join(f["flags"])
        lines.append(
            f"{quoted(f['process']):8} {f['hva']:>#14x} {format_size(f['size']):>8}  {_file(f['file'])}, {flags}"
        )
    return facts, "\n".join(lines)


def vms(machines: Mapping[str, VirtualMachine], current: VirtualMachine) -> Answer:
    """All VMs of the process; `*` marks the current one."""
    facts: list[dict[str, Any]] = [
        {
            "vm": name,
            "current": machine is current,
            "vcpus": sorted(machine.vm.vcpus),
            "slots": len(machine.vm.slots[SHARED]) + len(machine.vm.slots[PRIVATE]),
            "policy": machine.vmm.policy,
            "stores": [link.lost or "connected" for link in list(machine.kvm.pairings.links.values())],
        }
        for name, machine in list(machines.items())
    ]
    lines = [
        f"{'*' if f['current'] else ' '} {quoted(f['vm'])}:"
        f" vcpus {f['vcpus']}, {f['slots']} slots, policy {f['policy']}"
        + "".join(f", store {store}" for store in f["stores"])
        for f in facts
    ]
    return facts, "\n".join(lines)


def _file(name: str) -> str:
    return name if name.endswith("(anonymous)") else quoted(name)


def _lines(facts: dict[str, Any]) -> str:
    width = max(len(key) for key in facts)
    return "\n".join(f"{key:>{width}}  {value}" for key, value in facts.items())
