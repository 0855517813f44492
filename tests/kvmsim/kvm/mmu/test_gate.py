"""Whatever changes an entry closes the gate of those who walk without a lock."""

from collections.abc import Callable

from kvmsim.kvm.mmu.ept import ACCESSED, Ept
from kvmsim.kvm.mmu.gate import CHANGES, watch
from memfsd.uapi.units import Gfn, HostPfn


class Gate:
    def __init__(self) -> None:
        self.depth = self.closed_count = 0

    def close(self) -> None:
        self.depth += 1
        self.closed_count += 1

    def open(self) -> None:
        self.depth -= 1


def test_each_change_closes_it_and_looking_does_not() -> None:
    ept, gate = Ept(), Gate()
    watch(ept, gate)
    changes: dict[str, Callable[[], object]] = {
        "map_page": lambda: ept.map_page(Gfn(1), HostPfn(1)),
        "map_run": lambda: ept.map_run(Gfn(512), HostPfn(512), 4, accessed=1),
        "map_large": lambda: ept.map_large(Gfn(1024), HostPfn(1024), 9),
        "mark": lambda: ept.mark(Gfn(1), ACCESSED),
        "mark_range": lambda: ept.mark_range(Gfn(0), Gfn(8), ACCESSED),
        "age": lambda: ept.age(Gfn(0), Gfn(8)),
        "protect": lambda: ept.protect(Gfn(0), Gfn(8)),
        "split_at": lambda: ept.split_at([Gfn(1025)]),
        "zap_untouched": lambda: ept.zap_untouched(Gfn(0), Gfn(2048)),
        "zap": lambda: ept.zap(Gfn(0), Gfn(2048)),
    }
    assert set(changes) == set(CHANGES)
    for name, change in changes.items():
        before = gate.closed_count
        change()
        assert gate.closed_count > before, name
        assert gate.depth == 0
    before = gate.closed_count
    ept.walk(Gfn(1))
    ept.first_missing(Gfn(0), Gfn(8))
    list(ept.runs(Gfn(0), Gfn(8)))
    assert gate.closed_count == before


def test_every_method_that_writes_words_is_known() -> None:
    """A new one has to be listed: those that only look are."""
    looking = {"walk", "lookup", "first_missing", "next_present", "touched", "accessed", "runs", "leaf_runs"}
    methods = {name for name, value in vars(Ept).items() if callable(value) and not name.startswith("_")}
    assert methods == looking | set(CHANGES)


def test_it_opens_when_a_change_is_refused() -> None:
    ept, gate = Ept(4), Gate()
    watch(ept, gate)
    try:
        ept.map_run(Gfn(0), HostPfn(0), 4096)
    except Exception:
        refused = True
    assert refused
    assert gate.depth == 0
