"""What a module of tests leaves in the process that runs it: hundreds of modules share one, and its descriptors."""

import contextlib
import gc
import os
import re
import threading
import time
from collections import Counter
from typing import NamedTuple

MAX_DESCRIPTORS = 12
MAX_THREADS = 16
"""Some are made once for all modules, as the threads that run races. One for each test of a module is more."""
SETTLING_S = 20.0
"""For threads that are about to end. Only a module that leaves too much waits."""


class Held(NamedTuple):
    """Descriptors by what they are of, threads by their names."""

    descriptors: Counter[str]
    threads: Counter[str]


def held() -> Held:
    links: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            links[re.sub(r":\[\d+\]", "", os.readlink(f"/proc/self/fd/{fd}"))] += 1
    return Held(links, Counter(thread.name for thread in threading.enumerate()))


def leftovers(before: Held, settling_s: float = SETTLING_S) -> str:
    """What there is more of than before, if it is too much; else ""."""
    deadline = time.monotonic() + settling_s
    while said := _too_much(before, held()):
        gc.collect()
        if time.monotonic() > deadline:
            return said
        time.sleep(0.05)
    return ""


def _too_much(before: Held, now: Held) -> str:
    said = []
    for what, limit, was, there in (
        ("descriptors", MAX_DESCRIPTORS, before.descriptors, now.descriptors),
        ("threads", MAX_THREADS, before.threads, now.threads),
    ):
        if there.total() - was.total() > limit:
            kinds = ", ".join(f"{count} {name}" for name, count in (there - was).most_common(5))
            said.append(f"{there.total() - was.total()} {what} are left, of {limit} at most: {kinds}")
    return "; ".join(said)
