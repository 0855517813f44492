"""Which cells there are, and how they are shown."""

from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from kvmsim.instruments.race import points
from memfsd.uapi.messages import Kind

from .model import Cell, Fault, Outcome
from .scenarios import SCENARIOS
from .traps import NAMES

_NO_ATTRIBUTES = "the scenarios here are of the thread's ABI, in which there are no attributes"
_UNSENT = {
    Kind.STAT: "no command of kvmsim sends STAT",
    Kind.PING: "no command of kvmsim sends PING",
    Kind.ATTRIBUTES: _NO_ATTRIBUTES,
}
UNREACHABLE = {
    name: why for kind, why in _UNSENT.items() for name, _ in points.message_points() if name.endswith(kind.name)
} | {
    "attributes stored": _NO_ATTRIBUTES,
    "pages converted": _NO_ATTRIBUTES,
    "Debugger.lock taken": "no scenario here executes machine code",
    "VirtualMachine.cpus taken": "no scenario here executes machine code",
    "VCPU.running taken": "no scenario here is written in Python",
    "VM.names taken": "no scenario here is written in Python",
    "Debugger.changed waited for": "no scenario here executes machine code",
    points.MACHINE_CODE: "no scenario here executes machine code",
    "Turns.lock taken": "no scenario here executes machine code",
    "Turns.changed waited for": "no scenario here executes machine code",
    "vm up receive nothing in time": "kvmsim waits for the store's calls as long as there is a store",
}
"""Points that no real process comes to, and why."""

_MAP_POINTS = ("page map written", f"{points.PAGE_MAP.shown} read", f"{points.PAGE_MAP.shown} written")
NO_PAGE_MAP = dict.fromkeys(_MAP_POINTS, "there are no page maps with --no-op page-map")

WITHOUT_CONNECTION = {"FileMemory.using taken"}
"""kvmsim comes there when it has ended its pairings: there is nothing to cut."""

FIRST = {"Questions.answered waited for"}
"""Points that are surely reached once: who waits for the answers about two files is woken once, or twice."""

MET = {hold.until: s.name for s in SCENARIOS for hold in s.holds if hold.until.endswith(" waited for")}
"""Who waits depends on who comes first, but where a scenario makes them meet: in others such a point is an accident."""
MET[points.RETRY.name] = MET["Mmu.ended waited for"]

Census = dict[str, dict[str, int]]
"""How often each scenario reaches each point while its VM runs: [point][scenario]."""
Results = dict[Cell, Outcome]

COLUMNS: tuple[tuple[Fault, str], ...] = (
    *((fault, victim) for victim in ("vm", "store") for fault in (Fault.KILL, Fault.STOP, Fault.STOP_LONG)),
    (Fault.CUT, ""),
)
"""(fault, victim). A cut connection has two ends, and no victim."""


def merge(parts: Iterable[tuple[str, dict[str, int]]]) -> Census:
    """From (scenario, how often it reaches each point)."""
    census: Census = {}
    for scenario, reached in parts:
        for point, count in reached.items():
            census.setdefault(point, {})[scenario] = count
    return census


def unreachable(*, page_map: bool) -> dict[str, str]:
    """Points that no real process comes to, and why."""
    return UNREACHABLE if page_map else UNREACHABLE | NO_PAGE_MAP


def unexplained(census: Census, *, page_map: bool) -> list[str]:
    """Points that were not reached without a reason, or reached in spite of it."""
    reasons = unreachable(page_map=page_map)
    return [name for name, _ in NAMES if (name in census) == (name in reasons)]


def cells(census: Census, *, everything: bool) -> list[Cell]:
    """Every point with SIGKILL of each and a cut socket; a stop, which costs seconds, once for each group of points.

    everything: the stops at each point too, and all of it the first time that the point is reached, too.
    """
    found: list[Cell] = []
    stopped: set[tuple[str, Fault, str]] = set()
    for name, side in NAMES:
        for place, (scenario, nth) in enumerate(_places(name, census.get(name, {}), everything=everything)):
            for fault, victim in COLUMNS:
                if fault in (Fault.STOP, Fault.STOP_LONG) and not everything:
                    once = (group_of(name), fault, victim)
                    if once in stopped or (fault is Fault.STOP_LONG and victim != side):
                        continue
                    stopped.add(once)
                if fault is Fault.STOP_LONG and place:
                    continue
                found.append(Cell(name, side, scenario, nth, fault, victim or side))
    return found


def sampled(every: list[Cell]) -> list[Cell]:
    """The stops; each kill and cut once for each group of points; and one of those at every other point, in turn."""
    chosen: list[Cell] = []
    groups: set[tuple[str, Fault, str]] = set()
    turn = 0
    for _, group in groupby(every, lambda cell: cell.point):
        at_point = list(group)
        stops = [cell for cell in at_point if cell.fault in (Fault.STOP, Fault.STOP_LONG)]
        others = [cell for cell in at_point if cell not in stops]
        new = [cell for cell in others if (group_of(cell.point), cell.fault, cell.victim) not in groups]
        groups |= {(group_of(cell.point), cell.fault, cell.victim) for cell in new}
        if not new:
            turn += 1
            new = [others[turn % len(others)]]
        chosen += [cell for cell in at_point if cell in stops or cell in new]
    return chosen


def outlasts(cell: Cell) -> bool:
    """Somebody is silent for longer than the deadlines: they are shortened for it."""
    return cell.fault is Fault.STOP_LONG or next(s.stops for s in SCENARIOS if s.name == cell.scenario)


def _places(point: str, reached: dict[str, int], *, everything: bool) -> list[tuple[str, int]]:
    """(scenario, which time). The scenarios' order is that of preference, those first that come there with a VM."""
    known = sorted(
        (scenario.name for scenario in SCENARIOS if scenario.name in reached),
        key=lambda name: (name != MET.get(point), not reached[name]),
    )
    if not known:
        return []
    name = known[0]
    middle = 1 if point in FIRST else _middle(name, reached[name])
    return [(name, nth) for nth in dict.fromkeys((middle, 1) if everything else (middle,))]


def _middle(scenario: str, count: int) -> int:
    """Threads that are held meet once: there the first time is the one to rely on."""
    varies = next(bool(s.holds) for s in SCENARIOS if s.name == scenario)
    if varies or not count:
        return 1
    return 2 if count == 2 else (count + 1) // 2  # the first of two is often before there is a pairing


def class_of(point: str) -> str:
    """A row of the short table."""
    words = point.split()
    if words[0] in ("store", "vm") and words[1] in ("down", "up"):
        return f"{words[1]}: {words[-1]}" if words[-1].isupper() else f"{words[1]}: end of the connection"
    if point.endswith(" taken"):
        return f"{_side(point)}: a lock taken"
    if point.endswith(("waited for", "wait_dead", "fault retried")):
        return f"{_side(point)}: a wait"
    if point.endswith((" read", " written")):
        return f"{_side(point)}: a field without a lock"
    return f"{_side(point)}: {point}"


def group_of(point: str) -> str:
    """Classes that are alike: all packets sent on a channel by a side, all its locks."""
    words = point.split()
    if words[0] in ("store", "vm") and words[1] in ("down", "up"):
        return " ".join(words[:3])
    class_ = class_of(point)
    return _side(point) if class_.endswith(point) else class_


def _side(point: str) -> str:
    return {"store": "memfsd", "vm": "kvmsim"}[dict(NAMES)[point]]


def render(results: Results, *, short: bool) -> str:
    """A Markdown table: point (or class of points) x fault, and what came of it."""
    rows: dict[str, dict[tuple[str, str], Counter[str]]] = {}
    for cell, outcome in results.items():
        row = class_of(cell.point) if short else cell.point
        column = (cell.fault.value, "" if cell.fault is Fault.CUT else cell.victim)
        text = outcome.text if outcome.ok else f"**BROKEN**: {outcome.text}"
        rows.setdefault(row, {}).setdefault(column, Counter())[text] += 1
    columns = [(fault.value, victim) for fault, victim in COLUMNS]
    heads = [f"{_VICTIMS[victim]}{fault}" for fault, victim in columns]
    lines = [f"| point | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    lines += [
        f"| {row} | {' | '.join(_cell(found.get(column)) for column in columns)} |" for row, found in rows.items()
    ]
    return "\n".join(lines)


_VICTIMS = {"vm": "kvmsim: ", "store": "memfsd: ", "": ""}


def _cell(found: Counter[str] | None) -> str:
    if not found:
        return "-"
    return "; ".join(text if count == 1 else f"{text} ({count})" for text, count in sorted(found.items()))


def summary(results: Results) -> str:
    broken = sum(not outcome.ok for outcome in results.values())
    points_ = len({cell.point for cell in results})
    counts = Counter(cell.fault.value for cell in results)
    kinds = ", ".join(f"{count} {fault}" for fault, count in counts.items())
    return f"death table: {len(results)} cells at {points_} points ({kinds}), {broken} broken"
