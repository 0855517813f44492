"""What memfs top shows: lines of bars and tables."""

from typing import Any

from memfsd.common.lines import ALARM, HEAD, Cell, Column, Line, bar, cut, pages, plain, rounded, table
from memfsd.common.quote import quoted
from memfsd.uapi.units import PAGE_SIZE, format_size

__all__ = ["plain", "view"]

Facts = dict[str, Any]
_STATES = {
    "shared": ("s", "green"),
    "private": ("P", "blue"),
    "pending": (".", "cyan"),
    "closing": ("c", "yellow"),
    "moving": ("m", "yellow"),
    "quarantined": ("Q", ALARM),
    "leaked": ("L", ALARM),
    "poisoned": ("X", "red"),
    "offline": ("o", "bright_black"),
}
"""Letter and style of each state of a frame, in the order of the bar."""
_FILES: tuple[Column, ...] = (
    ("INODE", 5),
    ("SIZE", 5),
    ("HELD", 5),
    ("PENDING", 7),
    ("PUNCHED", 7),
    ("TWICE", 5),
    ("FAULTS/s", 8),
    ("INVAL/s", 7),
    ("VM", -4),
    ("NAME", 0),
)
_VMS: tuple[Column, ...] = (
    ("PID", 7),
    ("STATE", -6),
    ("PRIVATE", 7),
    ("PENDING", 7),
    ("SHARED", 7),
    ("TWICE", 7),
    ("PUNCHED", 7),
    ("LEAKED", 7),
    ("VM", 0),
)
_MOST_NODES = 8


def view(facts: Facts, columns: int, rows: int) -> list[Line]:
    """Bars, VMs, then as many files as there is room for."""
    lines = [*_pool(facts, columns), *_nodes(facts["nodes"], columns)]
    vms = facts["vms"]
    if vms:
        lines += table(_VMS, [_vm(vm) for vm in vms[: max(rows // 4, 1)]])
    files = facts["files"][: max(rows - len(lines) - 2, 1)]
    left_out = facts["sealed_files"] - len(files)
    lines.append(
        [(f"{facts['sealed_files']} sealed files{_swap(facts['swap'])}", "")]
        + ([(f", {left_out} not shown", "")] if left_out else [])
    )
    return [*lines, *table(_FILES, [_file(file) for file in files])]


def _pool(facts: Facts, columns: int) -> list[Line]:
    pool = facts["pool"]
    total = sum(pool.values())
    head = f"memfsd {quoted(facts['mount'])}: pool {format_size(total * PAGE_SIZE)}"
    said: Line = [(head, HEAD), (f": free {format_size(pool.get('free', 0) * PAGE_SIZE)}", "")]
    for state, (_, style) in _STATES.items():
        if pool.get(state):
            said.append((f"  {state} {format_size(pool[state] * PAGE_SIZE)}", style))
    parts = [(pool.get(state, 0), letter, style) for state, (letter, style) in _STATES.items()]
    return [said, bar("pool ", parts, total, max(columns - 7, 10))]


def _nodes(nodes: list[Facts], columns: int) -> list[Line]:
    if len(nodes) < 2:
        return []
    lines = []
    for number, node in enumerate(nodes[:_MOST_NODES]):
        used = node["total"] - node["free"]
        tail = f"{rounded(used * PAGE_SIZE)} of {rounded(node['total'] * PAGE_SIZE)}"
        lines.append(bar(f"node{number}", [(used, "#", "magenta")], node["total"], max(columns - 26, 10), tail))
    return lines


def _swap(swap: Facts) -> str:
    if not swap["total"]:
        return ""
    return f"; swap {format_size(swap['used'] * PAGE_SIZE)} of {format_size(swap['total'] * PAGE_SIZE)}"


def _vm(vm: Facts) -> tuple[Cell, ...]:
    return (
        str(vm["pid"]),
        (vm["state"], "" if vm["state"] == "paired" else ALARM),
        pages(vm["private"], "blue"),
        pages(vm["pending"], "cyan"),
        pages(vm["vm_shared"], "green"),
        pages(vm["held_twice"], ALARM),
        pages(vm["punched"]),
        pages(vm["leaked"], ALARM),
        quoted(vm["vm"]),
    )


def _file(file: Facts) -> tuple[Cell, ...]:
    owner = file["owner"]
    vm = "-" if owner is None else cut(quoted(owner["vm"]), 16)
    state = "" if owner is None or owner["state"] == "paired" else f" ({owner['state']})"
    return (
        str(file["inode"]),
        rounded(file["size"]),
        pages(file["frames"]),
        pages(file["pending"], "cyan"),
        pages(file["punched"]),
        pages(file["held_twice"], ALARM),
        f"{file['faults_per_s']:.5g}",
        f"{file['invalidations_per_s']:.5g}",
        (vm + state, ALARM if state == " (cut)" else ""),
        quoted(file["name"]) if file["name"] else "(unlinked)",
    )
