"""What kvmsim top shows of a VM: lines of bars, numbers, slots and the map of its pages."""

from typing import Any

from memfsd.common.lines import ALARM, HEAD, Column, Line, bar, pages, rounded, table
from memfsd.common.quote import quoted
from memfsd.uapi.units import PAGE_SIZE

from .memory_map import PageMap, memory_of
from .watching import RATES

Facts = dict[str, Any]
_SLOTS: tuple[Column, ...] = (("SPACE", -7), ("ID", 5), ("GPA", 14), ("SIZE", 5), ("SHOWS", 5), ("FILE", 0))
_LEVELS = (("1g", "1G"), ("2m", "2M"), ("4k", "4K"))
_POOL = (
    ("shared", "s", "green"),
    ("private", "P", "blue"),
    ("pending", ".", "cyan"),
    ("closing", "c", "yellow"),
    ("quarantined", "Q", ALARM),
    ("leaked", "L", ALARM),
)


class VmView:
    """Draws one VM; the map of pages remembers what it showed."""

    def __init__(self) -> None:
        self._map = PageMap()

    def advance(self) -> None:
        """PageMap.advance."""
        self._map.advance()

    def lines(self, facts: Facts, columns: int, rows: int) -> list[Line]:
        lines = [_head(facts), _rates(facts), _memory(facts["memory"]), *_ept(facts["stats"])]
        lines += _store(facts["store"], columns)
        slots = _slots(facts, max((rows - len(lines)) // 3, 2))
        return [*lines, *slots, *self._map.lines(memory_of(facts), columns, rows - len(lines) - len(slots))]


def _head(facts: Facts) -> Line:
    states = [str(vcpu["state"]) for vcpu in facts["vcpus"]]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return [
        (f"{quoted(facts['vm'])} of {facts['pid']}", HEAD),
        ("  running" if facts["running"] else "  stopped", "green" if facts["running"] else "yellow"),
        (f"  policy {facts['policy']}  vcpus {len(states)}: {counted}", ""),
    ]


def _rates(facts: Facts) -> Line:
    line: Line = [("a second", HEAD)]
    for rate in RATES:
        value = facts["per_s"][rate]
        line.append((f" {rate} ", ""))
        line.append((f"{value:.4g}", "bold" if value else ""))
    return line


def _memory(memory: Facts) -> Line:
    line: Line = [("memory  ", HEAD)]
    for name, style in (("private", "blue"), ("shared", "green"), ("punched", "")):
        line += [(f" {name} ", ""), (rounded(memory[name]), style)]
    twice = memory["doubled"]
    return [*line, ("  held twice ", "" if not twice else ALARM), (rounded(twice), "" if not twice else ALARM)]


def _ept(stats: Facts) -> list[Line]:
    lines: list[Line] = []
    for space, style in (("private", "blue"), ("shared", "green")):
        leaves = "  ".join(f"{size} {stats[f'{space}_leaves_{name}']}" for name, size in _LEVELS)
        lines.append(
            [("EPT     ", HEAD), (f" {space:7} ", style), (f"{leaves}  tables {stats[f'{space}_tables']}", "")]
        )
    return lines


def _store(store: Facts | None, columns: int) -> list[Line]:
    if store is None:
        return []
    pool, width = store["pool"], max(columns - 32, 10)
    total = pool["frames"]
    used = rounded((total - pool["free"]) * PAGE_SIZE)
    parts = [(pool.get(state, 0), letter, style) for state, letter, style in _POOL]
    lines = [bar("pool  ", parts, total, width, f"{used} of {rounded(total * PAGE_SIZE)}")]
    for number, node in enumerate(store["nodes"][:4] if len(store["nodes"]) > 1 else []):
        held = node["total"] - node["free"]
        tail = f"{rounded(held * PAGE_SIZE)} of {rounded(node['total'] * PAGE_SIZE)}"
        lines.append(bar(f"node{number} ", [(held, "#", "magenta")], node["total"], width, tail))
    return lines


def _slots(facts: Facts, most: int) -> list[Line]:
    rows = []
    for slot in facts["slots"][: most - 1]:
        shown = sum(segment["size"] for segment in slot["segments"])
        name = slot["file"]
        rows.append(
            (
                (slot["space"], "blue" if slot["space"] == "private" else "green"),
                str(slot["id"]),
                f"{slot['gpa']:#x}",
                rounded(slot["size"]),
                pages(shown // PAGE_SIZE, "" if shown == slot["size"] else "yellow"),
                name if name.endswith("(anonymous)") else quoted(name),
            )
        )
    left_out = facts["slot_count"] - len(rows)
    lines = table(_SLOTS, rows)
    return [*lines, [(f"{left_out} more slots", "")]] if left_out else lines
