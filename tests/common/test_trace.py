"""Trace points: told in order to whoever observes, and the plain code while nobody does."""

import inspect
import socket
from collections.abc import Callable

import pytest

from kvmsim.kvm.faults import Faults
from kvmsim.kvm.mmu.ept import Ept
from kvmsim.kvm.mmu.mmu import Mmu
from kvmsim.kvm.mmu.tlb import Tlb
from kvmsim.kvm.vcpu import Vcpu
from kvmsim.memory.memory import AnonymousMemory
from memfsd.common import packets, trace
from memfsd.core.gmem import GuestMemory
from memfsd.uapi.units import Gfn


class Notebook(trace.Instrument):
    def __init__(self, name: str, said: list[str]) -> None:
        self._name, self._said = name, said

    def bracket_opened(self, start: int, end: int) -> None:
        self._said.append(f"{self._name}: bracket {start}-{end}")

    def tlb_filled(self, tlb: object, key: int) -> None:
        self._said.append(f"{self._name}: filled {key}")


class All(trace.Instrument):
    """Sees every point."""

    def __init__(self) -> None:
        for name in trace.POINTS:
            vars(self)[name] = lambda *_: None


HOT: list[Callable[..., object]] = [
    GuestMemory.get_pfn,
    Mmu.install,
    Ept.map_page,
    Tlb.insert,
    Faults.translate,
    Faults.fault,
    Vcpu.enter,
    AnonymousMemory.read,
    AnonymousMemory.write,
]


@pytest.mark.parametrize("method", HOT, ids=lambda method: method.__qualname__)
def test_the_methods_of_the_fault_path_are_the_plain_ones_while_nobody_observes(method: Callable[..., object]) -> None:
    """Without a look at whether somebody does: that is what a hot point is for."""
    owner, name = method.__qualname__.split(".")
    module = inspect.getmodule(method)

    def current() -> object:
        return vars(vars(module)[owner])[name]

    assert current() is method
    assert "trace" not in method.__code__.co_names, "no test on the way"
    with trace.observed(store=trace.Instrument(), vm=Notebook("cold", [])):
        assert (current() is method) is (owner != "Tlb"), "nor while those who observe have no method for its points"
    with trace.observed(store=All(), vm=All()):
        assert current() is not method
    assert current() is method


@pytest.mark.parametrize("to", [None, trace.Instrument()], ids=["nobody", "no eye for packets"])
def test_without_an_observer_sockets_are_themselves(to: trace.Instrument | None) -> None:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert packets.down(ends[0], to) is ends[0]
    assert packets.up(ends[0], ends[1]) is ends[1]
    assert packets.number_of(ends[0]) == -1
    for end in ends:
        end.close()


def test_who_came_last_is_told_first_and_nobody_after_the_end() -> None:
    said: list[str] = []
    mmu, tlb = Mmu(), Tlb[int]()
    with trace.observed(vm=Notebook("outer", said)):
        mmu.invalidate_begin(Gfn(1), Gfn(2))
        with trace.observed(vm=Notebook("inner", said)):
            mmu.invalidate_begin(Gfn(3), Gfn(4))
            tlb.insert(5, 0)
        tlb.insert(6, 0)
    mmu.invalidate_begin(Gfn(7), Gfn(8))
    tlb.insert(9, 0)
    assert said == [
        "outer: bracket 1-2",
        "inner: bracket 3-4",
        "outer: bracket 3-4",
        "inner: filled 5",
        "outer: filled 5",
        "outer: filled 6",
    ]
    assert trace.vm is None


def test_the_sides_are_observed_by_themselves() -> None:
    said: list[str] = []
    with trace.observed(store=Notebook("store", said)):
        Mmu().invalidate_begin(Gfn(1), Gfn(2))
        Tlb[int]().insert(3, 0)
        assert trace.vm is None
    assert said == []


def test_an_observer_that_fails_leaves_nothing_behind() -> None:
    with pytest.raises(RuntimeError), trace.observed(vm=trace.Instrument()):
        raise RuntimeError
    assert trace.vm is None
    assert "tlb_filled" not in Tlb.insert.__code__.co_names
    assert Tlb.insert.__name__ == "insert"


def test_a_class_that_is_made_while_somebody_observes_is_observed() -> None:
    """Modules are imported when they are needed."""
    said: list[str] = []
    with trace.observed(vm=Notebook("late", said)):

        class Late:
            @trace.hot(trace.Side.VM, before=(trace.Instrument.tlb_filled, lambda to, _, key: to.tlb_filled(None, key)))
            def fill(self, key: int) -> int:
                return key

        assert Late().fill(7) == 7
    assert Late().fill(8) == 8
    assert said == ["late: filled 7"]
