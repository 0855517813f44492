"""One store: its use cases, composed."""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from memfsd.core.files.namespace import Creds
from memfsd.core.options import StoreOptions
from memfsd.core.service import Service
from memfsd.host.effect_runner import EffectRunner
from memfsd.host.swapfile import SwapSpace, open_swap
from memfsd.host.windows import Windows
from memfsd.uapi.errors import Refused

from .checker import Checker
from .deadlines import Deadlines
from .devices import Devices
from .evacuation import Nodes
from .failures import Failures
from .files import Files
from .guest_memfds import GuestMemfds
from .invalidator import Invalidator
from .mover import Mover
from .names import Names
from .pairings import Pairings
from .reclaim import Reclaimer
from .swapoff import Swapoff
from .swapper import Swapper

__all__ = ["Store", "build_store", "open_swap"]


@dataclass(frozen=True, slots=True)
class Store:
    """What adapters use: names, files, pairings, reclaimer, mover, nodes, swapper, checker, failures, devices,
    guest_memfds. The others are what these are made of."""

    names: Names
    files: Files
    pairings: Pairings
    reclaimer: Reclaimer
    swapper: Swapper
    swapoff: Swapoff
    mover: Mover
    nodes: Nodes
    checker: Checker
    failures: Failures
    devices: Devices
    guest_memfds: GuestMemfds
    service: Service
    windows: Windows
    runner: EffectRunner
    invalidator: Invalidator

    @property
    def frame_count(self) -> int:
        """Frames of the pool, fixed at mount."""
        return self.service.pool.frame_count

    def open_pool_read_only(self) -> int:
        """The memory of ordinary files; the caller closes it. EMFILE and its like when no descriptor is left."""
        try:
            return self.windows.open_pool_read_only()
        except OSError as error:
            number = error.errno or errno.EIO
            raise Refused(number, f"memfsd cannot open its pool again: {error.strerror}: try again later") from None

    def close(self) -> None:
        """When every adapter has stopped."""
        self.swapper.close()
        self.windows.close()


def _sixteen_random_bytes() -> bytes:
    return os.urandom(16)


def build_store(
    options: StoreOptions,
    *,
    root_mode: int,
    creds: Creds,
    socket_path: str,
    windows: Windows | None = None,
    deadlines: Deadlines | None = None,
    now_ns: Callable[[], int] = time.time_ns,
    random_bytes: Callable[[], bytes] = _sixteen_random_bytes,
    swap: SwapSpace | None = None,
) -> Store:
    """creds: who mounts. swap: where pages may leave to; the store closes it. Tests own memory, time and chance:
    windows, deadlines, now_ns, random_bytes."""
    service = Service(
        options,
        root_mode=root_mode,
        creds=creds,
        now_ns=now_ns(),
        socket_path=socket_path,
        swap_slots=0 if swap is None else swap.slot_count,
    )
    windows = windows or Windows(options.pool_bytes)
    deadlines = deadlines or Deadlines()
    runner = EffectRunner(service, windows)
    invalidator = Invalidator(service, windows, runner, deadlines)
    swapper = Swapper(service, runner, invalidator, deadlines, creds.uid, swap)
    reclaimer = Reclaimer(service, invalidator, swapper, deadlines, creds.uid)
    mover = Mover(service, runner, invalidator, deadlines)
    return Store(
        names=Names(service, runner, now_ns),
        files=Files(service, windows, runner, invalidator, now_ns, random_bytes),
        pairings=Pairings(
            service, windows, runner, invalidator, reclaimer, swapper, deadlines, page_maps=options.page_map
        ),
        reclaimer=reclaimer,
        devices=Devices(service, windows, invalidator),
        guest_memfds=GuestMemfds(service, windows, invalidator, now_ns),
        failures=Failures(service, runner, invalidator),
        swapper=swapper,
        swapoff=Swapoff(service, swapper, deadlines),
        mover=mover,
        nodes=Nodes(service, mover, deadlines),
        checker=Checker(service, windows, invalidator, deadlines),
        service=service,
        windows=windows,
        runner=runner,
        invalidator=invalidator,
    )
