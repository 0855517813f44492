"""Who imports whom, room by room, as docs/architecture.md shows it: read from the code, compared by a test.

`python -m tests.support.import_map` writes it into the document.
"""

import graphlib
from collections.abc import Iterable
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "architecture.md"
_BEGIN = "<!-- imports: rendered -->\n```\n"
_END = "```\n<!-- end -->"
Imports = dict[str, set[str]]
"""By module or room: those that it imports, also within functions."""


def imports_of(*packages: str) -> Imports:
    """Between the modules of these packages; what is imported for types alone is left out."""
    graph = grimp.build_graph(*packages, cache_dir=None, exclude_type_checking_imports=True)
    return {module: set(graph.find_modules_directly_imported_by(module)) & graph.modules for module in graph.modules}


def rooms(modules: Imports) -> Imports:
    """The first two names of each module; what imports nothing and is imported by nobody is left out."""
    found: Imports = {}
    for module, imported in modules.items():
        here = _room(module)
        there = {_room(name) for name in imported} - {here}
        found.setdefault(here, set()).update(there)
    used = set().union(*found.values())
    return {room: imported for room, imported in found.items() if imported or room in used}


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def circles(modules: Imports) -> list[str]:
    """The modules of one circle, the first one twice; none: there is no circle."""
    try:
        graphlib.TopologicalSorter(modules).prepare()
    except graphlib.CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def render(modules: Imports) -> str:
    """A line a room, so that each imports only lower ones: those of kvmsim without their package's name."""
    by_room = rooms(modules)
    below: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(by_room).static_order():
        below[room] = 1 + max((below[name] for name in by_room[room]), default=0)
    lines = []
    for package in ("kvmsim", "memfsd"):
        mine = [room for room in by_room if _is_of(room, package)]
        lines.append(f"{package}\n")
        for room in sorted(mine, key=lambda room: (-below[room], room)):
            shown = ", ".join(_short(name, package) for name in _order(by_room[room], below, package))
            lines.append(f"  {_short(room, package):<10} {shown}".rstrip() + "\n")
    return "".join(lines)


def _is_of(room: str, package: str) -> bool:
    return room.startswith(f"{package}.") and not room.endswith("__main__")


def _order(names: Iterable[str], below: dict[str, int], package: str) -> list[str]:
    return sorted(names, key=lambda name: (not _is_of(name, package), -below[name], name))


def _short(room: str, package: str) -> str:
    return room.removeprefix(f"{package}.")


def documented() -> str:
    text = DOCUMENT.read_text()
    begin = text.index(_BEGIN) + len(_BEGIN)
    return text[begin : text.index(_END, begin)]


def main() -> None:
    text = DOCUMENT.read_text()
    begin = text.index(_BEGIN) + len(_BEGIN)
    DOCUMENT.write_text(text[:begin] + render(imports_of("memfsd", "kvmsim")) + text[text.index(_END, begin) :])


if __name__ == "__main__":
    main()
