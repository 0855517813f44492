"""Rounds. Each depends on the seed and its own number alone, so that one can be repeated by itself.

steady   guests on the mount that lives as long as the soak; at the end all are gone, and it holds what it held before
loss     guests on a mount of their own, whose daemon is killed or ended under them, and then mounts again
"""

import itertools
import random
import signal
import threading
import time
from pathlib import Path

from soaklib import programs
from soaklib.curve import Curve
from soaklib.daemon import Daemon, Failure, Levels, until
from soaklib.fleet import Fleet, RunningVm
from soaklib.host import NODES, Host
from soaklib.pattern import PAGE
from soaklib.report import Report

OPTIONS = f"size=96M,resize=any,split=on,nodes={NODES},swap_size=16M"
POLICIES = (("none", "kept"), ("punch", "kept"), ("overlay", "kept"), ("overlay", "freed"), ("recreate", "kept"))
PAGE_BYTES = (4096, 2 << 20)
DESIGNS = tuple(itertools.product(POLICIES, PAGE_BYTES))
VMS, VCPUS = 4, 3
LOSS_ACTIONS = 10
KINDS = 3
"""Of three rounds one is a loss, and in one of the others a VM is cut off."""
_STUCK_S = 150.0
_FILES_PER_ROUND = 1000


class Soak:
    def __init__(
        self,
        base: Path,
        seed: int,
        program: Path,
        report: Report,
        settling_s: float,
        code_vms: int,
        actions: int,
    ) -> None:
        """code_vms: in each round, besides the others. actions: of the host in a steady round."""
        self._code_vms = code_vms
        self._actions = actions
        self._base = base
        self._seed = seed
        self._program = program
        self._report = report
        self._settling_s = settling_s
        self.curve = Curve()
        self.round = -1
        self._daemon: Daemon | None = None
        self._watched: Daemon | None = None
        self._alive_s = time.monotonic()
        self._stuck = False
        self._end = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def levels(self) -> Levels | None:
        """Of the daemon that lives as long as the soak."""
        try:
            return self._daemon.levels() if self._daemon else None
        except OSError:
            return None

    def run_round(self, number: int) -> None:
        """Failure when anything is not as it must be."""
        self.round = number
        self._alive_s = time.monotonic()
        try:
            if number % KINDS == KINDS - 1:
                self._loss(number)
            else:
                self._steady(number, cuts_off=number % KINDS == 1)
        except OSError as error:
            raise Failure(f"{error}{' (the mount hung, and was aborted)' if self._stuck else ''}") from error
        self._report.close_round()

    def close(self) -> None:
        self._end.set()
        if self._daemon is not None:
            self._watched = self._daemon
            self._daemon.end(signal.SIGTERM)
            _check_log(self._daemon)

    def remove(self) -> None:
        self._end.set()
        if self._daemon is not None:
            self._daemon.remove()

    def _steady(self, number: int, *, cuts_off: bool) -> None:
        if self._daemon is None:
            self._daemon = Daemon(self._base / "steady", OPTIONS, self._program)
        daemon = self._watched = self._daemon
        rng = random.Random(f"{self._seed} {number}")
        fleet, start = self._fleet(daemon, number, VMS)
        host = Host(daemon, fleet, self._report, rng, start)
        try:
            fleet.wait_ready()
            for action in range(self._actions):
                if cuts_off and action == self._actions // 2:
                    host.cut_off()
                host.act()
                self._alive_s = time.monotonic()
            fleet.finish()
            self._count_swapped(daemon)
            host.clean_up()
            self._all_is_free(daemon)
            self._take_levels(daemon)
        finally:
            fleet.remove()

    def _loss(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        daemon = self._watched = Daemon(self._base / f"loss{number}", OPTIONS, self._program)
        fleets: list[Fleet] = []
        try:
            for how, vm_count in ((signal.SIGKILL, VMS - 1), (rng.choice((signal.SIGTERM, signal.SIGINT)), 2)):
                fleet, start = self._fleet(daemon, number, vm_count, first=len(fleets) * _FILES_PER_ROUND // 2)
                fleets.append(fleet)
                host = Host(daemon, fleet, self._report, rng, start)
                fleet.wait_ready()
                for _ in range(LOSS_ACTIONS):
                    host.act()
                    self._alive_s = time.monotonic()
                fleet.wait_ready()
                self._count_swapped(daemon)
                for vm in fleet.running():
                    vm.expected = "lost"
                daemon.end(how)
                fleet.finish()
                self._report.count("daemon_kills" if how is signal.SIGKILL else "daemon_ends")
                daemon.restart()
                self._report.count("remounts")
                self._all_is_free(daemon)
            daemon.end(signal.SIGTERM)
            _check_log(daemon)
        finally:
            for fleet in fleets:
                fleet.remove()
            daemon.remove()

    def _count_swapped(self, daemon: Daemon) -> None:
        """Since the last time, also what left because the pool was full."""
        for name, count in daemon.newly_swapped().items():
            self._report.count(name, count)

    def _fleet(self, daemon: Daemon, number: int, count: int, first: int = 0) -> "tuple[Fleet, Start]":
        """With its first VMs started. The designs of consecutive rounds go through all of them."""
        fleet = Fleet(daemon, self._base, self._report)
        start = Start(fleet, self._seed, number, first)
        for _ in range(count):
            start()
        for _ in range(self._code_vms):
            start.code()
        return fleet, start

    def _all_is_free(self, daemon: Daemon) -> None:
        """Nobody is there: every frame is free, but for those that failed, and `memfs check` agrees."""

        def is_free() -> bool:
            pool = daemon.pool()
            return pool["free"] + pool["poisoned"] == pool["frames"]

        until(is_free, "every frame is free once all guests and files are gone")
        daemon.check()

    def _take_levels(self, daemon: Daemon) -> None:
        """When it has settled, or at the deadline: then the curve decides."""
        end, pause = time.monotonic() + self._settling_s, threading.Event()
        while not self.curve.fits(levels := daemon.levels()) and time.monotonic() < end:
            pause.wait(0.05)
        self.curve.add(levels)

    def _watch(self) -> None:
        """A system call on a mount that hangs cannot be interrupted from within: abort it from here."""
        while not self._end.wait(1.0):
            if time.monotonic() > self._alive_s + _STUCK_S and self._watched is not None:
                self._stuck = True
                self._watched.abort()


class Start:
    """Starts the next VM of a round."""

    def __init__(self, fleet: Fleet, seed: int, number: int, first: int) -> None:
        self._fleet = fleet
        self._seed = seed
        self._round = number
        self._count = first

    def __call__(self) -> RunningVm:
        (policy, under), page_bytes = DESIGNS[(self._round * VMS + self._count) % len(DESIGNS)]
        file = self._round * _FILES_PER_ROUND + self._count
        self._count += 1
        return self._fleet.start(file, policy, under, page_bytes, VCPUS, f"{self._seed}")

    def code(self) -> RunningVm:
        """Of 4 KiB frames: a punch takes one page of a program."""
        file = self._round * _FILES_PER_ROUND + self._count
        self._count += 1
        return self._fleet.start(
            file, "punch", "kept", PAGE, programs.VCPUS, f"{self._seed}", size=programs.FILE_BYTES, runs_code=True
        )


def _check_log(daemon: Daemon) -> None:
    if "Traceback" in daemon.log:
        raise Failure(f"memfsd logged an exception: {daemon.log}")
