"""The picture of imports in docs/architecture.md is the code's, and it has no circle and no room too many."""

from pathlib import Path

import pytest

from tests.support import import_map
from tests.support.import_map import ROOT, circles, documented, imports_of, render, rooms

MOST_ROOMS = 11
"""Packages at the top of kvmsim, so that one screen shows them, with machine and cli."""


def test_the_document_shows_the_imports() -> None:
    assert documented() == render(imports_of("memfsd", "kvmsim")), "python -m tests.support.import_map"


def test_there_is_no_circle_between_modules_or_rooms() -> None:
    modules = imports_of("memfsd", "kvmsim")
    assert circles(modules) == []
    assert circles(rooms(modules)) == []


@pytest.mark.parametrize("package", sorted(path.parent.name for path in ROOT.glob("tools/*/__init__.py")))
def test_there_is_no_circle_in_the_tools(package: str) -> None:
    assert circles(imports_of(package)) == []


def test_kvmsim_is_seen_on_one_screen() -> None:
    top = [opening.parent.name for opening in (ROOT / "kvmsim").glob("*/__init__.py")]
    assert len(top) <= MOST_ROOMS, top


def test_every_room_opens_with_a_map() -> None:
    """The docstring of a package names each of its modules and packages."""
    openings = [*ROOT.glob("memfsd/**/__init__.py"), *ROOT.glob("kvmsim/**/__init__.py")]
    texts = {opening.parent: opening.read_text() for opening in openings}
    missing = [
        f"{room.relative_to(ROOT)}: {name}" for room in texts for name in _inside(room) if name not in texts[room]
    ]
    assert missing == []


def _inside(package: Path) -> list[str]:
    return sorted(
        path.stem
        for path in package.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and not path.name.startswith("__")
    )


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert import_map.rooms({"p.a.x": {"p.b.y"}, "p.b.y": {"p.b.z"}, "p.c": set()}) == {"p.a": {"p.b"}, "p.b": set()}
