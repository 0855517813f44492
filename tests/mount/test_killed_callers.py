"""Callers killed in the middle of a request: the daemon must serve everybody else, also when the request vanishes
between poll(2) and read(2). Observers keep its threads busy, which widens that window."""

import os
import random
import signal
import threading
import time
from pathlib import Path

from memfsd.common.observer import Observer
from memfsd.common.stores import store_of
from memfsd.uapi.messages import Empty, Kind, ListReply
from tests.support.real_mount import MountFactory, seal

TRIES = int(os.environ.get("MEMFSD_KILLED_CALLERS", "60"))
OBSERVERS = 16


def stat_until_killed(path: Path, after_s: float) -> None:
    pid = os.fork()
    if pid == 0:
        while True:
            os.stat(path)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_killed_callers_stop_nobody(mount: MountFactory) -> None:
    mounted = mount("size=16M")
    path = mounted.path / "f"
    path.touch()
    seal(path)  # so that each stat(2) is a request
    stop = threading.Event()
    lost: list[BaseException] = []

    def ping_until_stopped() -> None:
        try:
            with Observer(store_of(str(mounted.path))) as observer:
                while not stop.is_set():
                    observer.ask(Kind.LIST, Empty(), ListReply)
        except BaseException as error:
            lost.append(error)
            stop.set()

    observers = [threading.Thread(target=ping_until_stopped) for _ in range(OBSERVERS)]
    for thread in observers:
        thread.start()
    moments = random.Random(5)
    done = 0
    with Observer(store_of(str(mounted.path))) as observer:
        try:
            while done < TRIES and not stop.is_set():
                stat_until_killed(path, moments.uniform(0.0005, 0.006))
                observer.ask(Kind.LIST, Empty(), ListReply)  # no FUSE request, which would wake the daemon
                done += 1
        finally:
            stop.set()
            for thread in observers:
                thread.join()
    assert (done, lost) == (TRIES, [])
