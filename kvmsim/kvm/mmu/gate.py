"""Page walks that hold no lock: those of vCPUs that run machine code.

Such a vCPU walks the tables itself and sets ACCESSED and DIRTY, as the hardware does. A gate keeps it out while an
entry changes: no table is reused under a walk, and no flag that it sets is lost.
"""

from collections.abc import Callable
from typing import Any, Protocol

from .ept import Ept

CHANGES = (
    "map_run", "map_page", "map_large", "mark", "mark_range", "zap", "zap_untouched", "split_at", "protect", "age"
)  # fmt: skip
"""Methods of an Ept that change entries."""


class Gate(Protocol):
    """Closed and opened with Mmu.lock held; it nests."""

    def close(self) -> None:
        """Returns when no walk is under way; none begins until `open`."""

    def open(self) -> None: ...


def watch(ept: Ept, gate: Gate) -> None:
    """Whatever changes an entry closes the gate meanwhile. An Ept that nobody walks without the lock pays nothing."""
    for name in CHANGES:
        setattr(ept, name, _gated(ept, name, gate))


def _gated(ept: Ept, name: str, gate: Gate) -> Callable[..., Any]:
    def change(*args: Any, **kwargs: Any) -> Any:
        gate.close()
        try:
            return getattr(type(ept), name)(ept, *args, **kwargs)
        finally:
            gate.open()

    return change
