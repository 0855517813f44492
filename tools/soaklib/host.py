"""What the host does while guests run, drawn from a seed: takes memory back, uses files, stops and kills VMMs."""

import errno
import os
import random
import threading
from collections.abc import Callable

from memfsd.common.linux import fallocate
from memfsd.numa import fmove_pages
from memfsd.uapi.limits import ACK_DEADLINE_S
from memfsd.uapi.names import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from soaklib.daemon import DEADLINE_S, Daemon, Failure, until
from soaklib.fleet import Fleet, RunningVm
from soaklib.pattern import PAGE
from soaklib.plan import Plan
from soaklib.report import Report

_PACE_PAGES = 300
"""Pages that the guests verify between two actions, so that each meets guests at work."""
_PACE_S = 1.0
NODES = 2
_MAX_POISONED = 64
"""Of one memfsd, which has them no more."""


class Host:
    """One actor: its actions come one after the other."""

    def __init__(
        self, daemon: Daemon, fleet: Fleet, report: Report, rng: random.Random, replace: Callable[[], RunningVm]
    ) -> None:
        """replace: start one more VM, for one that was killed."""
        self._daemon = daemon
        self._fleet = fleet
        self._report = report
        self._random = rng
        self._replace = replace
        self._files: dict[str, bytes] = {}
        self._names = 0
        self._deck: list[Callable[[], None]] = []

    def act(self) -> None:
        """One action. Which one depends on the seed alone; a round of 40 has each of them."""
        if not self._deck:
            how_often: list[tuple[Callable[[], None], int]] = [
                *((self._punch, 10), (self._punch_all, 2), (self._shrink, 2), (self._allocate, 2), (self._move, 4)),
                *((self._swap_out, 4), (self._poison, 2), (self._fill_pool, 1), (self._write_file, 4)),
                *((self._verify_files, 2), (self._remove_file, 1), (self._look, 2), (self._check, 1)),
                *((self._kill, 1), (self._stop_shortly, 1), (self._unlink, 1)),
            ]
            self._deck = [action for action, count in how_often for _ in range(count)]
            self._random.shuffle(self._deck)
        self._deck.pop()()
        self._pace()

    def clean_up(self) -> None:
        """Ordinary files are verified once more, and all files go."""
        self._verify_files()
        for path in self._daemon.path.iterdir():
            path.unlink()
        self._files = {}

    def cut_off(self) -> None:
        """Stop a VMM for longer than it may be silent: its frames are quarantined, and free when it has ended.

        One whose pages stay bound and allocated whatever it converts: else there might be nothing to acknowledge.
        """
        vm = self._any_vm(lambda plan: plan.policy == "none" or plan.keeps_private)
        if vm is None:
            return
        with self._opened(vm) as fd:
            try:
                fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, vm.plan.page_bytes)  # or it may hold none just now
                holds_frames = True
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                holds_frames = False
            vm.expected = "lost"
            vm.stop()
            try:
                until(lambda: vm.stands_still or not vm.is_running, f"{vm} stops")
                try:
                    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, vm.plan.size_bytes)
                except OSError as error:
                    if error.errno != errno.ETIMEDOUT:
                        raise Failure(f"a punch of the stopped {vm}: {error}") from None
                else:
                    raise Failure(f"a punch of the stopped {vm} succeeded, though nobody acknowledged")
                if holds_frames and not self._daemon.pool()["quarantined"]:
                    raise Failure(f"{vm} was silent for {ACK_DEADLINE_S:.0f} s, and its frames are not quarantined")
            finally:
                vm.go_on()
        until(lambda: not vm.is_running, f"{vm} ends once it is cut off")
        until(lambda: self._daemon.pool()["quarantined"] == 0, f"the frames of {vm} leave quarantine once it is dead")
        self._report.count("cut_offs")

    # -- memory

    def _punch(self) -> None:
        if vm := self._any_vm():
            unit = vm.plan.page_bytes // PAGE
            first = self._random.randrange(vm.plan.page_count // unit)
            count = min(self._random.randint(1, 8), vm.plan.page_count // unit - first)
            self._punch_pages(vm, first * unit, (first + count) * unit)

    def _punch_all(self) -> None:
        if vm := self._any_vm():
            self._punch_pages(vm, 0, vm.plan.page_count)

    def _punch_pages(self, vm: RunningVm, first: int, end: int) -> None:
        with self._opened(vm) as fd, self._cut_off_is_for_the_vm_to_tell(vm), vm.ledger.moments.taking(first, end):
            fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first * PAGE, (end - first) * PAGE)
        self._report.count("punches")

    def _poison(self) -> None:
        """The frame of a page fails, and a punch gets the page a good one: between the two a guest meets EHWPOISON.
        One that is a hole or swapped out has none, and is punched only: then another one fails."""
        vm = self._any_vm(lambda plan: plan.page_bytes == PAGE)
        if vm is None or self._daemon.pool()["poisoned"] >= _MAX_POISONED:
            return
        for page in self._random.sample(range(vm.plan.page_count), 8):
            with (
                self._opened(vm) as fd,
                self._cut_off_is_for_the_vm_to_tell(vm),
                vm.ledger.moments.taking(page, page + 1),
            ):
                has_failed = self._daemon.poison(os.fstat(fd).st_ino, page)
                fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE, PAGE)
                if has_failed:
                    self._report.count("poisoned")
                    return

    def _move(self) -> None:
        """To a node, while guests use them: whatever becomes of each page, its contents stay."""
        if vm := self._any_vm():
            first = self._random.randrange(vm.plan.page_count)
            pages = range(first, min(first + self._random.randint(1, 64), vm.plan.page_count))
            node = self._random.randrange(NODES)
            with self._opened(vm) as fd:
                statuses = fmove_pages(fd, pages, [node] * len(pages))
            if wrong := {*statuses} - {node, -errno.ENOENT, -errno.ENOMEM, -errno.EBUSY}:
                raise Failure(f"a move of pages of {vm} to node {node}: status {sorted(wrong)}")
            self._report.count("moved_pages", statuses.count(node))

    def _swap_out(self) -> None:
        """They come back when a guest verifies or writes them."""
        vm = self._any_vm()
        if vm is None:
            return
        first = self._random.randrange(vm.plan.page_count)
        end = min(first + self._random.randint(1, 256), vm.plan.page_count)
        with self._opened(vm) as fd, _Tolerated(errno.ENOTCONN):  # it has not paired yet, or was cut off
            self._daemon.swap_out(os.fstat(fd).st_ino, first, end)

    def _shrink(self) -> None:
        """And grow again: the pages behind the cut are taken, and cannot be had meanwhile."""
        if vm := self._any_vm():
            unit = vm.plan.page_bytes // PAGE
            first = self._random.randrange(1, vm.plan.page_count // unit) * unit
            with (
                self._opened(vm) as fd,
                self._cut_off_is_for_the_vm_to_tell(vm),
                vm.ledger.moments.taking(first, vm.plan.page_count),
            ):
                os.ftruncate(fd, first * PAGE)
                os.ftruncate(fd, vm.plan.size_bytes)
            self._report.count("shrinks")

    def _allocate(self) -> None:
        if vm := self._any_vm():
            unit = vm.plan.page_bytes // PAGE
            first = self._random.randrange(vm.plan.page_count // unit)
            with self._opened(vm) as fd, _full_pool_tolerated():
                fallocate(fd, FALLOC_FL_KEEP_SIZE, first * unit * PAGE, unit * PAGE)
            self._report.count("allocations")

    def _fill_pool(self) -> None:
        """Guests must live with it for a moment."""
        path = self._daemon.path / "filler"
        with path.open("xb") as file:
            size, step = 0, self._daemon.pool()["frames"] * PAGE
            while step >= PAGE:
                try:
                    fallocate(file.fileno(), 0, size, step)
                    size += step
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    step = step // 2 // PAGE * PAGE
        self._pace()
        path.unlink()
        self._report.count("fillings")

    # -- ordinary files

    def _write_file(self) -> None:
        self._names += 1
        name = f"file{self._random.randrange(12)}"
        data = self._random.randbytes(self._random.randrange(1, 20 * PAGE))
        keep = self._files.pop(name, b"")
        at = self._random.randrange(len(keep) + 1)
        path = self._daemon.path / name
        try:
            with path.open("r+b" if keep else "xb") as file:
                file.seek(at)
                file.write(data)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            path.unlink()
            return
        self._files[name] = keep[:at] + data + keep[at + len(data) :]

    def _verify_files(self) -> None:
        for name, data in self._files.items():
            if (self._daemon.path / name).read_bytes() != data:
                raise Failure(f"the ordinary file {name} does not hold what was written")
            self._report.count("files_verified")

    def _remove_file(self) -> None:
        if self._files:
            name = self._random.choice(sorted(self._files))
            (self._daemon.path / name).unlink()
            del self._files[name]

    def _look(self) -> None:
        for path in self._daemon.path.iterdir():
            path.stat()
            for name in os.listxattr(path):
                os.getxattr(path, name)
        os.statvfs(self._daemon.path)

    def _check(self) -> None:
        self._daemon.check()
        self._report.count("checks")

    # -- processes

    def _kill(self) -> None:
        if vm := self._any_vm():
            vm.kill()
            self._report.count("kills")
            self._replace()

    def _stop_shortly(self) -> None:
        """While a punch waits for it."""
        if vm := self._any_vm():
            vm.stop()
            failed: list[BaseException] = []

            def punch() -> None:
                try:
                    self._punch_pages(vm, 0, vm.plan.page_count)
                except BaseException as error:
                    failed.append(error)

            thread = threading.Thread(target=punch)
            thread.start()
            thread.join(0.1)
            vm.go_on()
            thread.join(DEADLINE_S)
            if failed:
                raise failed[0]
            self._report.count("short_stops")

    def _unlink(self) -> None:
        """The pairing alone keeps the file, and the guest goes on."""
        if vm := self._any_vm():
            vm.path.unlink()

    # -- words

    def _any_vm(self, wanted: Callable[[Plan], bool] = lambda plan: True) -> RunningVm | None:
        """One that runs on a file that has its name, and has paired with it."""
        running = [vm for vm in self._fleet.running() if wanted(vm.plan) and vm.is_running and vm.path.exists()]
        if not running:
            return None
        vm = self._random.choice(running)
        until(lambda: vm.ledger.is_ready or not vm.is_running, f"{vm} is paired")
        return vm

    def _pace(self) -> None:
        goal, end = self._fleet.verified() + _PACE_PAGES, threading.Event()
        for _ in range(int(_PACE_S / 0.01)):
            if self._fleet.verified() >= goal:
                return
            end.wait(0.01)

    @staticmethod
    def _opened(vm: RunningVm) -> "_Fd":
        return _Fd(os.open(vm.path, os.O_WRONLY | os.O_CLOEXEC))

    @staticmethod
    def _cut_off_is_for_the_vm_to_tell(vm: RunningVm) -> "_Tolerated":
        return _Tolerated(errno.ETIMEDOUT)


class _Fd:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class _Tolerated:
    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, OSError) and error.errno == self._number


def _full_pool_tolerated() -> _Tolerated:
    return _Tolerated(errno.ENOSPC)
