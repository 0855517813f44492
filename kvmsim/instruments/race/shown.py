"""Which page of which file a GFN of a VM may show, and when: by the slots that were made and deleted."""

from dataclasses import dataclass

from .history import History, Page


@dataclass(slots=True)
class _Slot:
    """start, end: of the time in which it may have been there, as the history counts."""

    vm: str
    id: int
    file: str
    gfn: int
    pgoff: int
    pages: int
    start: int
    end: float = float("inf")


class SlotHistory:
    """Which slots showed a page of a file at each moment of a run."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._slots: list[_Slot] = []

    def making(self, vm: str, id_: int, file: str, gfn: int, pgoff: int, pages: int) -> _Slot:
        """A slot is about to be there."""
        slot = _Slot(vm, id_, file, gfn, pgoff, pages, self._history.tick())
        self._slots.append(slot)
        return slot

    def refused(self, slot: _Slot) -> None:
        self._slots.remove(slot)

    def deleted(self, vm: str, id_: int) -> None:
        for slot in self._there(vm, id_):
            slot.end = self._history.tick()

    def released(self, vm: str, file: str) -> None:
        """Its slots show nothing any more."""
        for slot in self._slots:
            if (slot.vm, slot.file) == (vm, file) and slot.end == float("inf"):
                slot.end = self._history.tick()

    def of_slot(self, vm: str, id_: int) -> list[Page]:
        return [(slot.file, slot.pgoff + index) for slot in self._there(vm, id_) for index in range(slot.pages)]

    def at(self, vm: str, gfn: int, since: float = float("inf")) -> list[Page]:
        """Now; or each that there may have been since then."""
        return [
            (slot.file, slot.pgoff + gfn - slot.gfn)
            for slot in self._slots
            if slot.vm == vm and slot.gfn <= gfn < slot.gfn + slot.pages and slot.end >= since
        ]

    def _there(self, vm: str, id_: int) -> list[_Slot]:
        return [slot for slot in self._slots if (slot.vm, slot.id) == (vm, id_) and slot.end == float("inf")]
