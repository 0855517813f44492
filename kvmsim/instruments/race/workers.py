"""Who does the work of an exploration: processes of this machine, or a Dask cluster. Both are executors of the standard
library's interface; work that a dead process had is done again."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Generic, TypeVar

from memfsd.common.quote import quoted

from .interrupts import SIGNALS

CONNECT_DEADLINE_S = 10
NO_WORKERS_DEADLINE_S = 60
"""So long a cluster may have none."""
LOOK_EVERY_S = 5.0
"""Whether it has."""

MAX_RENEWALS = 3
"""So often in a row, with no work done between, workers may die."""

T = TypeVar("T")


class WorkersLost(Exception):
    """The work cannot be done: why, and the way out, in one line."""


class Pool:
    """Workers, made again when they die."""

    def __init__(
        self, make: Callable[[], Executor], size: int, kill: Callable[[], None], there: Callable[[], bool] | None = None
    ) -> None:
        """kill: ends all workers, whatever they do. there: whether there are any, where nobody makes them again."""
        self.size = size
        self._there = there
        self._make = make
        self._kill = kill
        self._executor = make()
        self._renewals = 0
        self._number = 0

    def begin(self, run: Callable[..., T], *arguments: Any) -> "Work[T]":
        return Work(self, run, arguments)

    def submit(self, run: Callable[..., T], arguments: tuple[Any, ...]) -> tuple[int, Future[T]]:
        try:
            with _interrupts_later():
                return self._number, self._executor.submit(run, *arguments)
        except BrokenExecutor:
            self.renew(self._number)
            return self.submit(run, arguments)

    def renew(self, number: int) -> None:
        """The workers of that number have died."""
        if number != self._number:
            return
        self._renewals += 1
        if self._renewals > MAX_RENEWALS:
            raise WorkersLost(
                f"worker processes were killed {self._renewals} times in a row: take fewer (is memory short?)"
            )
        self._number += 1
        self._executor.shutdown(wait=False)
        self._executor = self._make()

    def wait(self, futures: Iterable[Future[Any]]) -> None:
        """Until one of them has ended."""
        futures = list(futures)
        if self._there is None:
            wait(futures, return_when=FIRST_COMPLETED)
            return
        last_there = time.monotonic()
        while not wait(futures, LOOK_EVERY_S, FIRST_COMPLETED).done:
            if self._there():
                last_there = time.monotonic()
            elif time.monotonic() - last_there > NO_WORKERS_DEADLINE_S:
                gone = f"the cluster has had no workers for {NO_WORKERS_DEADLINE_S} s"
                raise WorkersLost(f"{gone}: start some, and the exploration again")

    def worked(self) -> None:
        self._renewals = 0

    def close(self) -> None:
        """What they do is given up."""
        with _interrupts_ignored():
            self._kill()
            self._executor.shutdown()


class Work(Generic[T]):
    """Something that a worker does."""

    def __init__(self, pool: Pool, run: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        self._pool = pool
        self._call = run, arguments
        self._number, self.future = pool.submit(*self._call)

    def result(self) -> T | None:
        """Waits. None: its worker has died, and another one has it now."""
        self._pool.wait([self.future])
        try:
            result = self.future.result()
        except BrokenExecutor:
            self._pool.renew(self._number)
            self._number, self.future = self._pool.submit(*self._call)
            return None
        except CancelledError:
            raise WorkersLost("the scheduler of the cluster is gone: start it and the exploration again") from None
        self._pool.worked()
        return result


@contextlib.contextmanager
def of_this_machine(count: int, prepare: Callable[[], None] | None = None) -> Iterator[Pool]:
    """prepare: called first in each process."""

    context = _Spawned()

    def make() -> Executor:
        return ProcessPoolExecutor(count, context, _start, (prepare,))

    pool = Pool(make, count, context.kill)
    try:
        yield pool
    finally:
        pool.close()


@contextlib.contextmanager
def of_a_cluster(address: str) -> Iterator[Pool]:
    """The workers of a Dask scheduler. It gives the work of one that dies to another one itself."""
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise WorkersLost("--cluster needs the package distributed: pip install 'memfsd[cluster]'") from None
    _silence()
    shown = quoted(address)
    try:
        client = Client(address, timeout=CONNECT_DEADLINE_S)
    except (OSError, ValueError, TypeError) as error:
        raise WorkersLost(f"no Dask scheduler answers at {shown}: {error}: start one with: dask scheduler") from None

    def count() -> int:
        return len(client.sync(client.scheduler.ncores, callback_timeout=CONNECT_DEADLINE_S))

    def there() -> bool:
        with contextlib.suppress(OSError):
            return count() > 0
        return False

    with client:
        size = count()
        if not size:
            raise WorkersLost(
                f"the scheduler at {shown} has no workers: start some with: dask worker {shown} --nthreads 1"
            )
        executor = client.get_executor(pure=False)
        try:
            yield Pool(lambda: executor, size, lambda: None, there)
        except KilledWorker as error:
            allowed = f"{error.allowed_failures} times in a row (distributed.scheduler.allowed-failures)"
            raise WorkersLost(f"Dask gave up work whose worker died more than {allowed}: is memory short?") from None
        except ImportError as error:
            raise WorkersLost(f"a worker lacks code: {error}: do all of them have the same?") from None
        finally:
            executor.shutdown(wait=False)


def _silence() -> None:
    """What it has to say, it says by exceptions: they become one line."""
    for name in ["asyncio", "tornado", "distributed", *logging.root.manager.loggerDict]:
        if name.partition(".")[0] in ("asyncio", "tornado", "distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class _Spawned(SpawnContext):
    """Not forked: that would inherit threads of a scheduler as if they ran. It knows its processes."""

    def __init__(self) -> None:
        self._made: list[SpawnProcess] = []

    def Process(self, *arguments: Any, **named: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        self._made.append(SpawnProcess(*arguments, **named))
        return self._made[-1]

    def kill(self) -> None:
        """An executor that is interrupted twice while it shuts down may wait for them forever (Python 3.11)."""
        for process in self._made:
            if process.is_alive():
                process.kill()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """A process that is made meanwhile never sees Ctrl-C, which is for the one that it works for, and SIGTERM once it
    is there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(prepare: Callable[[], None] | None) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, name="end with parent", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if prepare is not None:
        prepare()
