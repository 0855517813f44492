"""A module of tests that leaves descriptors or threads behind fails, and says which."""

import os
import threading

from tests.support.leftovers import MAX_DESCRIPTORS, MAX_THREADS, held, leftovers


def test_descriptors_are_named() -> None:
    before, many = held(), 2 * MAX_DESCRIPTORS
    fds = [os.memfd_create("left") for _ in range(many)]
    said = leftovers(before, settling_s=0.0)
    for fd in fds:
        os.close(fd)
    assert f"descriptors are left, of {MAX_DESCRIPTORS} at most: {many} /memfd:left (deleted)" in said
    assert leftovers(before) == ""


def test_threads_are_named_and_those_that_are_about_to_end_are_waited_for() -> None:
    before, many, end = held(), 2 * MAX_THREADS, threading.Event()
    for _ in range(many):
        threading.Thread(target=end.wait, name="waits", daemon=True).start()
    said = leftovers(before, settling_s=0.0)
    end.set()
    assert f"threads are left, of {MAX_THREADS} at most: {many} waits" in said
    assert leftovers(before) == ""
