"""Locks are taken in the order that docs/architecture.md gives. Runs last: over all that the tests before it did."""

import threading

import pytest

from tests.support.lock_order import Recorder, check, documented, reachable, render, rings


def test_the_document_has_no_ring() -> None:
    assert rings(documented()) == []


def test_every_lock_of_this_run_was_taken_in_the_documents_order() -> None:
    check()


def taken_by_the_product(lock: threading.Lock) -> None:
    """As if the code of this function were not a test's."""
    scope: dict[str, object] = {"lock": lock}
    exec(compile("lock.acquire()", "product.py", "exec"), scope)


def test_a_wrong_order_is_seen() -> None:
    recorder = Recorder()
    one, two = recorder.lock("one"), recorder.lock("two")
    for first, second in ((one, two), (two, one)):
        assert rings(recorder.order) == []
        taken_by_the_product(first)
        assert second.acquire(blocking=False), "a try waits for nobody"
        second.release()
        taken_by_the_product(second)
        second.release()
        first.release()
    assert rings(recorder.order) == ["one", "two"]
    with pytest.raises(AssertionError):
        render(recorder.order)


def test_what_a_test_or_another_thread_holds_gives_no_order() -> None:
    recorder = Recorder()
    one, two = recorder.lock("one"), recorder.lock("two")
    with one:
        taken_by_the_product(two)
        two.release()
    thread = threading.Thread(target=taken_by_the_product, args=(one,))
    thread.start()
    thread.join()
    taken_by_the_product(two)
    for lock in (one, two):
        lock.release()
    assert recorder.order == {"one": set(), "two": set()}


def test_the_two_sides_have_no_order() -> None:
    recorder = Recorder()
    store, vm = recorder.lock("Service.lock"), recorder.lock("Mmu.lock")
    taken_by_the_product(store)
    taken_by_the_product(vm)
    for lock in (store, vm):
        lock.release()
    assert recorder.order == {"Service.lock": set(), "Mmu.lock": set()}


def test_lines_follow_from_the_edges() -> None:
    order = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": set()}
    assert render(order) == "a > b\nb > c\nc\nd\n"
    assert reachable(order, "a") == {"b", "c"}
