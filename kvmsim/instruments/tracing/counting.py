"""Events counted, as kvm_stat(1) does: by name, and by what they are about; or by VM."""

import re
from collections.abc import Iterable

from .reader import LOST, Happening

_ABOUT = {
    "kvm_exit": "exit_reason",
    "kvm_userspace_exit": "reason",
    "kvm_mmio": "type",
    "kvm_pio": "rw",
    "memfsd_receive": "kind",
    "kvmsim_receive": "kind",
}
"""The field that an event is also counted by, as NAME(VALUE)."""
_STATISTICS = {"kvm_exit": "exits", "kvm_page_fault": "pf_taken", "kvm_hypercall": "hypercalls"}
MAX_NAMES = 4096


class Counting:
    """Of one VM if it is named; only names in which `wanted` is found. by_vm: one name for each VM."""

    def __init__(self, wanted: re.Pattern[str] | None = None, vm: str = "", *, by_vm: bool = False) -> None:
        self._wanted, self._vm, self._by_vm = wanted, vm, by_vm
        self.totals: dict[str, int] = {}

    def add(self, it: Happening) -> None:
        if it.name == LOST:
            self._count("lost events", int(it.values["count"]))
        elif not self._vm or vm_of(it) == self._vm:
            for name in [vm_of(it) or it.side] if self._by_vm else _names(it):
                self._count(name, 1)

    def _count(self, name: str, count: int) -> None:
        known = name in self.totals or len(self.totals) < MAX_NAMES
        if known and (self._wanted is None or self._wanted.search(name)):
            self.totals[name] = self.totals.get(name, 0) + count


def vm_of(it: Happening) -> str:
    """The VM that a happening is about, "" if it is about none: also in the trace of a store."""
    if it.side == "memfsd":
        name = str(it.values.get("vm", ""))
        return "" if name == "-" else name
    return "" if it.task == it.side else it.vm


def count(happenings: Iterable[Happening], counting: Counting) -> dict[str, int]:
    for it in happenings:
        counting.add(it)
    return counting.totals


def _names(it: Happening) -> list[str]:
    """Statistics by the kernel's names, then the event, then what it is about."""
    names = [_STATISTICS[it.name]] if it.name in _STATISTICS else []
    if it.name == "kvm_mmio" and it.values.get("type") != "read":
        names.append("mmio_exits")
    if it.name == "kvm_userspace_exit" and it.values.get("reason") == "KVM_EXIT_IO":
        names.append("io_exits")
    if it.name == "kvm_userspace_exit":
        names.append("signal_exits" if it.values.get("reason") == "restart" else "userspace_exits")
    names.append(it.name)
    if (about := it.values.get(_ABOUT.get(it.name, ""))) is not None:
        names.append(f"{it.name}({about})")
    return names
