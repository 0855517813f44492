"""P3: kvmsim's page table and TLB by themselves, each against what numpy or a dict takes for the same. The value is the
worst of three, as a part of its target."""

from statistics import median
from time import perf_counter

import numpy as np

from benchlib.figure import Figure, Progress
from kvmsim.kvm.mmu.ept import Ept
from kvmsim.kvm.region import MemoryRegion
from kvmsim.machine import VirtualMachine
from kvmsim.memory.memory import AnonymousMemory
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn, HostPfn

MAP_TARGET = 1.0
"""numpy makes the words and writes them, once each: so does the EPT, in tables that stay in the cache."""
TRANSLATE_TARGET = 5.0
"""dict.get is one call of C; Faults.translate is a call of Python around the same look-up."""
LOOKUP_TARGET = 15.0
"""numpy.take loads once; a walk does it four times, each load waiting for the one before, with the index made of it."""
_MAPPED_BYTES = 1 << 30
_SEED = 1


def measure(progress: Progress, rounds: int = 15, count: int = 100_000) -> Figure:
    """count translations and lookups in each round, and one map of 1 GiB, each in turn with its peer."""
    ept, peer = Ept(), _Peer(count)
    ours: list[tuple[float, float, float]] = []
    theirs: list[tuple[float, float, float]] = []
    with Translating() as translating:
        for number in range(rounds + 1):
            progress.round(number, rounds)
            ours.append((_map_s(ept), translating.hit_s(count), _lookup_s(ept, count)))
            theirs.append((peer.write_s(), peer.get_s(count), peer.take_s()))
    # The first round makes the tables; from then on they are warm.
    ratios = [
        median(mine[which] / its[which] for mine, its in zip(ours[1:], theirs[1:], strict=True)) for which in range(3)
    ]
    mapped, translated, looked_up = (median(round_[which] for round_ in ours[1:]) for which in range(3))
    return Figure(
        what="page table: the worst of map, translate and lookup, each / its peer, against its target",
        unit="of its target",
        target=1.0,
        at_most=True,
        value=max(ratios[0] / MAP_TARGET, ratios[1] / TRANSLATE_TARGET, ratios[2] / LOOKUP_TARGET),
        parts={
            "map_ratio": ratios[0],
            "map_target": MAP_TARGET,
            "map_entries_per_s": (_MAPPED_BYTES >> PAGE_SHIFT) / mapped,
            "translate_ratio": ratios[1],
            "translate_target": TRANSLATE_TARGET,
            "translate_hit_ns": translated / count * 1e9,
            "lookup_ratio": ratios[2],
            "lookup_target": LOOKUP_TARGET,
            "lookup_per_s": count / looked_up,
            "rounds": rounds,
        },
    )


class _Peer:
    """The same without a page table: words, a dict, an array."""

    def __init__(self, count: int) -> None:
        self._page_count = _MAPPED_BYTES >> PAGE_SHIFT
        self._words = np.zeros(self._page_count, np.uint64)
        self._dict: dict[int, object] = {0: self}
        self._places = np.random.default_rng(_SEED).integers(0, self._page_count, count)

    def write_s(self) -> float:
        """Seconds in which numpy writes as many words, made of the same numbers."""
        start = perf_counter()
        frames = np.arange(self._page_count, dtype=np.uint64)
        frames <<= np.uint64(PAGE_SHIFT)
        np.bitwise_or(frames, np.uint64(7), out=self._words)
        return perf_counter() - start

    def get_s(self, count: int) -> float:
        get = self._dict.get
        start = perf_counter()
        for _ in range(count):
            get(0)
        return perf_counter() - start

    def take_s(self) -> float:
        start = perf_counter()
        np.take(self._words, self._places)
        return perf_counter() - start


def _map_s(ept: Ept) -> float:
    """Seconds of one map of 1 GiB, over tables that a zap has just given back."""
    page_count = _MAPPED_BYTES >> PAGE_SHIFT
    ept.zap(Gfn(0), Gfn(page_count))
    start = perf_counter()
    ept.map_run(Gfn(0), HostPfn(0), page_count)
    return perf_counter() - start


def _lookup_s(ept: Ept, count: int) -> float:
    gfns = np.random.default_rng(_SEED).integers(0, _MAPPED_BYTES >> PAGE_SHIFT, count)
    start = perf_counter()
    entries = ept.lookup(gfns)
    elapsed_s = perf_counter() - start
    assert entries.all(), "a mapped page was not found"
    return elapsed_s


class Translating:
    """A VM that has touched one page of shared memory."""

    def __init__(self) -> None:
        self._machine = VirtualMachine("bench", 1)

    def __enter__(self) -> "Translating":
        memory = AnonymousMemory(PAGE_SIZE)
        self._machine.kvm.slots.set_shared_slot(MemoryRegion.shared(0, 0, PAGE_SIZE), memory, owned=True)
        assert self._machine.guest.write(self._machine.vm.vcpu(0), 0, b"x", shared=True) is None
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.close()

    def hit_s(self, count: int) -> float:
        """Seconds of so many Faults.translate that hit the TLB, the loop around them included."""
        translate, vcpu = self._machine.kvm.faults.translate, self._machine.vm.vcpu(0)
        misses = vcpu.tlb.insert_count
        start = perf_counter()
        for _ in range(count):
            translate(vcpu, 0, shared=True, write=False)
        elapsed_s = perf_counter() - start
        assert vcpu.tlb.insert_count == misses, "the TLB missed"
        return elapsed_s
