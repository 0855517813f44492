"""Workers end with the command that started them, and are no reason to wait forever when they die."""

import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvmsim.instruments.race import exhaustive, order, spread, workers
from kvmsim.instruments.race.scenario import load
from tests.support.threads import DEADLINE_S

COMMAND = [sys.executable, "-m", "kvmsim", "race", "fault-x-unbind", "--exhaustive", "--workers", "2", "--json"]


def test_workers_that_only_die_are_an_error() -> None:
    with workers.of_this_machine(1) as pool:
        work = pool.begin(os._exit, 1)
        for _ in range(workers.MAX_RENEWALS):
            assert work.result() is None
        with pytest.raises(workers.WorkersLost, match="killed 4 times in a row"):
            work.result()


def running() -> subprocess.Popen[str]:
    """A command with its workers at work; all of them have its stderr."""
    command = subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until and len(children(command.pid)) < 2:
        time.sleep(0.01)
    return command


def children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children") as listed:
        return listed.read().split()


@pytest.mark.parametrize("times", [1, 2])
def test_an_interruption_ends_all_of_them(times: int) -> None:
    """Also when it comes twice: timeout(1) sends it to the command, and then to all of its group."""
    command = running()
    for send in (os.killpg, os.kill)[:times]:
        send(command.pid, signal.SIGINT)
    report, errors = command.communicate(timeout=DEADLINE_S)
    assert (command.returncode, errors) == (130, "")
    assert '"interrupted": true' in report


def test_sigterm_ends_all_of_them_quietly() -> None:
    """Python used to warn about leaked semaphores."""
    command = running()
    command.terminate()
    report, errors = command.communicate(timeout=DEADLINE_S)
    assert (command.returncode, errors) == (143, "")
    assert '"interrupted": true' in report


def test_workers_that_stay_away_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler lives, and nobody does the work."""
    monkeypatch.setattr(workers, "NO_WORKERS_DEADLINE_S", 0.0)
    monkeypatch.setattr(workers, "LOOK_EVERY_S", 0.0)
    there = [True, False]
    executor = ThreadPoolExecutor(1)
    never = threading.Event()
    pool = workers.Pool(lambda: executor, 1, never.set, there.pop)
    try:
        with pytest.raises(workers.WorkersLost, match="no workers for"):
            pool.begin(never.wait).result()
        assert there == [True]
    finally:
        pool.close()


def test_a_command_that_is_killed_leaves_none() -> None:
    command = running()
    command.kill()
    command.communicate(timeout=DEADLINE_S)  # until end of file: nobody has its stderr any more


@contextlib.contextmanager
def dask_cluster(count: int, directory: Path) -> Iterator[str]:
    """Its scheduler's address. What Dask leaves to the collector of workers that were killed goes here, in silence."""
    from distributed import LocalCluster

    before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with LocalCluster(
            n_workers=count, threads_per_worker=1, dashboard_address=None, local_directory=directory
        ) as cluster:
            yield cluster.scheduler_address
        del cluster
        until = time.monotonic() + 2.0
        while gc.collect() >= 0 and len(os.listdir("/proc/self/fd")) > before and time.monotonic() < until:
            time.sleep(0.02)


def test_a_dask_cluster_gives_the_same_runs_also_when_a_worker_is_killed(tmp_path: Path) -> None:
    scenario = load("fault-x-fault")
    with dask_cluster(2, tmp_path) as address, workers.of_a_cluster(address) as pool:
        assert pool.size == 2
        runs = spread.every(scenario, pool, 0.0)
        begun = [next(runs), next(runs)]
        pid = pool.begin(os.getpid).result()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        every = begun + list(runs)
    assert every == [(order.class_of(result.steps), None) for result in exhaustive.every(scenario)]


def test_work_that_kills_its_workers_is_an_error(tmp_path: Path) -> None:
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        dask_cluster(1, tmp_path) as address,
        pytest.raises(workers.WorkersLost, match="Dask gave up work whose worker died more than 0 times"),
        workers.of_a_cluster(address) as pool,
    ):
        pool.begin(os._exit, 1).result()


def test_dask_says_nothing_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CONNECT_DEADLINE_S", 0.2)
    with pytest.raises(workers.WorkersLost), workers.of_a_cluster("tcp://127.0.0.1:1"):
        pass
    for name in ("distributed", "distributed.client", "distributed.scheduler", "tornado.application", "asyncio"):
        assert not logging.getLogger(name).isEnabledFor(logging.CRITICAL)


def test_a_cluster_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CONNECT_DEADLINE_S", 0.2)
    with (
        pytest.raises(workers.WorkersLost, match="no Dask scheduler answers"),
        workers.of_a_cluster("tcp://127.0.0.1:1"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(workers.WorkersLost, match="pip install"), workers.of_a_cluster("tcp://127.0.0.1:1"):
        pass
