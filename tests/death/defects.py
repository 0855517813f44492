"""Mistakes that the table must see, put into the worker before it forks memfsd and kvmsim."""

from collections.abc import Callable
from typing import Any

from .model import Cell, Fault


def _silence_acknowledges() -> None:
    from memfsd.store.invalidator import Invalidator

    begin = Invalidator._begin

    def broken(self: Invalidator, *arguments: Any) -> Any:
        self.disconnect = lambda peer, why: None  # type: ignore[method-assign]
        return begin(self, *arguments)[0], None

    Invalidator._begin = broken  # type: ignore[assignment, method-assign]


def _frames_stay_with_the_dead() -> None:
    from memfsd.core.service import Service

    Service.release_guest = lambda self, ino: []  # type: ignore[method-assign]


def _a_lost_store_is_an_exception() -> None:
    from kvmsim.store.link import StoreLink

    def broken(self: StoreLink, why: str) -> Exception:
        return RuntimeError(why)

    StoreLink._broken = broken  # type: ignore[assignment, method-assign]


DEFECTS: dict[str, tuple[Callable[[], None], Cell]] = {
    "silence acknowledges": (
        _silence_acknowledges,
        Cell("store down receive GET_PFN", "store", "life", 2, Fault.STOP_LONG, "vm"),
    ),
    "frames stay with the dead": (
        _frames_stay_with_the_dead,
        Cell("store down receive GET_PFN", "store", "life", 1, Fault.KILL, "vm"),
    ),
    "a lost store is an exception": (
        _a_lost_store_is_an_exception,
        Cell("store down receive GET_PFN", "store", "life", 1, Fault.KILL, "store"),
    ),
}
"""How to make it, and a cell that must be broken then, and whole without."""
