"""User space alone: nobody is in KVM_RUN, nobody enters, and every vCPU goes on afterwards."""

from functools import partial

from kvmsim.vmm.inhibit import Inhibitor
from tests.support.threads import Beside, Gate, until


def run_through(inhibitor: Inhibitor, gate: Gate) -> None:
    with inhibitor.in_kvm_run():
        gate.wait()


def test_several_run_at_once() -> None:
    inhibitor, gates = Inhibitor(), [Gate(), Gate()]
    threads = [Beside(partial(run_through, inhibitor, gate)) for gate in gates]
    for gate in gates:
        gate.reached()
    for gate, thread in zip(gates, threads, strict=True):
        gate.open()
        thread.result()


def test_alone_kicks_and_waits_for_those_who_run() -> None:
    inhibitor, running, kicks = Inhibitor(), Gate(), []
    thread = Beside(lambda: run_through(inhibitor, running))
    running.reached()

    def alone() -> bool:
        with inhibitor.quiesced(lambda: kicks.append(1)):
            return thread.running and not running.is_open

    waiting = Beside(alone)
    until(lambda: len(kicks) > 1, "it is kicked, and kicked again")
    assert waiting.running
    running.open()
    assert waiting.result() is False


def test_nobody_enters_while_one_is_alone_or_waits_to_be() -> None:
    inhibitor, first, inside, late = Inhibitor(), Gate(), Gate(), Gate()
    thread = Beside(lambda: run_through(inhibitor, first))
    first.reached()

    def alone() -> None:
        with inhibitor.quiesced(lambda: None):
            inside.wait()

    user_space = Beside(alone)
    until(lambda: inhibitor._wanting == 1, "user space waits")
    second = Beside(lambda: run_through(inhibitor, late))
    first.open()
    thread.result()
    inside.reached()
    assert (inhibitor._running, second.running) == (0, True)
    inside.open()
    user_space.result()
    late.reached()
    late.open()
    second.result()


def test_two_are_alone_one_after_the_other() -> None:
    inhibitor, gate, order = Inhibitor(), Gate(), []

    def first() -> None:
        with inhibitor.quiesced(lambda: None):
            gate.wait()
            order.append("first")

    def second() -> None:
        with inhibitor.quiesced(lambda: None):
            order.append("second")

    one = Beside(first)
    gate.reached()
    two = Beside(second)
    until(lambda: inhibitor._wanting == 1, "the second waits")
    gate.open()
    one.result()
    two.result()
    assert order == ["first", "second"]


def test_stopped_nobody_enters_but_one_that_leaves_at_once() -> None:
    inhibitor, gate, asked = Inhibitor(), Gate(), Gate()
    assert inhibitor.stop(lambda: None, 1.0)

    def enter() -> None:
        with inhibitor.in_kvm_run(lambda: asked.is_open):
            gate.wait()

    thread = Beside(enter)
    until(lambda: thread.running, "it waits")
    assert inhibitor._running == 0
    asked.open()
    gate.reached()
    assert inhibitor.is_stopped
    assert not inhibitor.stop(lambda: None, 0.02), "it has not left"
    gate.open()
    thread.result()
    assert inhibitor.stop(lambda: None, 1.0)


def test_stop_kicks_those_who_run_and_cont_lets_all_go_on() -> None:
    inhibitor, gate, kicks = Inhibitor(), Gate(), []
    thread = Beside(lambda: run_through(inhibitor, gate))
    gate.reached()
    stopping = Beside(lambda: inhibitor.stop(lambda: kicks.append(1), 60.0))
    until(lambda: len(kicks) > 1, "it is kicked, and kicked again")
    gate.open()
    assert stopping.result()
    thread.result()
    late = Gate()
    second = Beside(lambda: run_through(inhibitor, late))
    until(lambda: second.running, "it waits")
    inhibitor.cont()
    late.reached()
    late.open()
    second.result()
