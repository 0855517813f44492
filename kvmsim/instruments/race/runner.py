"""One run of a scenario under a chooser."""

import contextlib
import errno
import gc
import logging
import math
import os
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvmsim.kvm.exits import (
    Exit,
    FailedExit,
    MachineCheckExit,
    MemoryErrorExit,
    MemoryFaultExit,
    MmioExit,
)
from kvmsim.kvm.region import MemoryRegion
from kvmsim.kvm.vcpu import Vcpu
from memfsd.common import sync
from memfsd.uapi.errors import EHWPOISON, Refused, errno_name
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn, Pgoff

from . import mappings, points
from .accesses import Access
from .aliases import Aliases
from .conversions import Conversions
from .history import FAILED, History, Page
from .oracle import Oracle
from .primitives import Connections, Makers
from .programs import PROGRAMS, Work
from .scenario import MAX_TEXT, Actor, Command, Scenario, ScenarioError
from .scheduler import Chooser, Killed, Scheduler, Step, Stuck
from .shown import SlotHistory
from .world import SimulatedVm, World, repeatable, standing_in

if TYPE_CHECKING:
    from .slices import MachineCode

_BROKEN = {errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EHOSTDOWN, errno.ENOTCONN, errno.EBUSY, errno.EBADMSG}
"""Errnos that say that the other side is gone, did not answer in time, or gave something else back than it got."""

_OBJECTS_OF_A_RUN = 100_000
"""More than a run makes: the collector, which looks for rings that a run does not leave before its end, would take a
quarter of its time."""


@dataclass(frozen=True, slots=True)
class Result:
    """steps: what happened, in order. failures: what must not be; empty when all held."""

    steps: list[Step]
    failures: list[str]
    pending: list[tuple[str, Access]]
    """Tasks that never took their next step, and what it would have touched first."""
    cut_short: bool

    @property
    def schedule(self) -> list[str]:
        return [step.task.name for step in self.steps]


class _LogWatch(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def run_once(scenario: Scenario, chooser: Chooser) -> Result:
    """Set up, race, check, end in good order, check again. What it opened is closed."""
    thresholds = gc.get_threshold()
    gc.set_threshold(_OBJECTS_OF_A_RUN)
    try:
        return _run_once(scenario, chooser)
    finally:
        gc.set_threshold(*thresholds)


def _run_once(scenario: Scenario, chooser: Chooser) -> Result:
    fds = _open_fds()
    watch = _LogWatch()
    log = logging.getLogger("memfsd.peers")
    log.addHandler(watch)
    was, log.propagate = log.propagate, False
    points.labels.clear()
    scheduler = Scheduler(chooser)
    connections = Connections(scheduler)
    try:
        with sync.use(Makers(scheduler, connections)), repeatable(scheduler), mappings.watched():
            result = _Run(scenario, scheduler, connections, watch).go()
    finally:
        log.removeHandler(watch)
        log.propagate = was
        left = _close_leaks(fds)
    peaceful = not any(actor.role == "outside" for actor in scenario.actors)
    if left and peaceful and not result.cut_short and not result.failures:
        result.failures.append(f"{len(left)} fds are left open: {', '.join(left)}")
    return result


class _Run:
    def __init__(self, scenario: Scenario, scheduler: Scheduler, connections: Connections, watch: _LogWatch) -> None:
        self._scenario = scenario
        self._scheduler = scheduler
        self._watch = watch
        self.world = World(scenario, scheduler, connections)
        self._files = self.world.store.files
        self._oracle = Oracle(self.world, scheduler)
        self._history = History()
        self._shown = SlotHistory(self._history)
        self._aliases = Aliases(scenario.abi, self._history, self._shown)
        for name, pages in scenario.files.items():
            if name not in scenario.born_shared:
                self._aliases.born_private(name, pages)
        self._conversions = Conversions(self.world, scheduler, self._history, self._shown, self._aliases)
        self._peaceful = not any(actor.role == "outside" for actor in scenario.actors)
        self._poisoned = 0
        self._machine_code = {name: self._code_of(name) for name in scenario.code_vms}

    def _code_of(self, name: str) -> "MachineCode":
        from .slices import MachineCode  # for the scenarios that ask for it

        main, vm = self._scheduler.main, self.world.vms[name]
        main.process = name
        try:
            return MachineCode(vm.kvm, vm.guest, self._scheduler, self._oracle)
        finally:
            main.process = "nobody"

    def go(self) -> Result:
        scheduler, scenario = self._scheduler, self._scenario
        pending: list[tuple[str, Access]] = []
        try:
            with standing_in(self.world), points.installed(self._at_point, self._retried, self._looking):
                try:
                    self._sequence(scenario.before, must=True)
                    if not scheduler.failures:
                        pending = self._race()
                    if not scheduler.cut_short:
                        self._finish()
                except Stuck as stuck:
                    scheduler.fail(str(stuck))
                finally:
                    scheduler.main.process = "nobody"
                    scheduler.end()
            left = self.world.open_sockets()
            if left and self._peaceful and not scheduler.cut_short and not scheduler.failures:
                scheduler.fail(f"{left} sockets are left open")
        finally:
            self.world.discard()
        return Result(scheduler.steps, list(dict.fromkeys(scheduler.failures)), pending, scheduler.cut_short)

    def _race(self) -> list[tuple[str, Access]]:
        scheduler = self._scheduler
        for actor in self._scenario.actors:
            process = actor.vm or ("store" if actor.role == "host" else "outside")
            task = scheduler.add(actor.name, process, actor=True)
            scheduler.start(task, self._acting(actor))
        scheduler.race()
        return [(t.name, t.pending) for t in scheduler.tasks if not t.done and t.pending is not None]

    def _finish(self) -> None:
        scheduler = self._scheduler
        self._oracle.at_end()
        self._conversions.at_end()
        self._logged()
        if not scheduler.failures:
            self._sequence(self._scenario.after)
        if not scheduler.failures:
            self.world.close()
            self._oracle.at_close(self._poisoned)
            self._logged()

    def _logged(self) -> None:
        for record in self._watch.records:
            if record.exc_info and record.exc_info[1] is not None:
                error = record.exc_info[1]
                self._scheduler.fail(f"memfsd: {record.getMessage()}: {type(error).__name__}: {error}")
            elif self._peaceful:
                self._scheduler.fail(f"memfsd: {record.getMessage()}, though nobody was killed, stopped or cut")

    # -- points

    def _at_point(self, name: str, arguments: tuple[Any, ...], touches: Callable[[str], list[Access]]) -> None:
        scheduler = self._scheduler
        task = scheduler.me()
        if scheduler.is_over:
            if task is scheduler.main:
                return
            raise Killed
        if scheduler.racing:
            self._oracle.approach(task, name, arguments)
            accesses = touches(task.process)
            if not (task.locks and accesses and accesses[0][0][0] == "field"):
                scheduler.reach(name, None, None, accesses[0] if accesses else None)
            for key, kind in accesses:
                scheduler.touch(key, kind)
            self._oracle.passed(name, arguments)

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        task = self._scheduler.me()
        if task.section is not None:
            task.section.only_looks()
        task.looks = True
        try:
            yield
        finally:
            task.looks = False

    def _retried(self) -> None:
        if self._scheduler.racing:
            self._scheduler.ask_again(points.RETRY.name)

    # -- actors

    def _acting(self, actor: Actor) -> Callable[[], None]:
        def run() -> None:
            for command in actor.commands:
                self._do(actor, command)

        return run

    def _sequence(self, actors: list[Actor], *, must: bool = False) -> None:
        """By the main task, one after the other. A process that is dead does nothing. What must happen and is refused
        is a ScenarioError: the race would be another one than was meant."""
        for actor in actors:
            if (actor.vm and self.world.vms[actor.vm].is_dead) or (not actor.vm and self.world.store_is_dead):
                continue
            self._scheduler.main.process = actor.vm or "store"
            for command in actor.commands:
                self._do(actor, command, must=must)
            self._scheduler.main.process = "nobody"

    def _do(self, actor: Actor, command: Command, *, must: bool = False) -> None:
        vm = self.world.vms[actor.vm] if actor.vm else None
        self._scheduler.me().asked = len(self._scheduler.steps)
        action = getattr(self, f"_{actor.role}_{command.verb.replace('-', '_')}")
        try:
            report = action(actor, vm, *command.arguments) if vm else action(*command.arguments)
        except Refused as refused:
            if must:
                raise ScenarioError(f"{self._scenario.name}: before {actor.name}: {command}: {refused}") from None
            report = errno_name(refused.errno)
            if self._peaceful and refused.errno in _BROKEN:
                self._scheduler.fail(f"{actor.name}: {command}: {refused}")
        self._scheduler.note(f"{command}: {report or 'done'}")

    # -- what actors do; each returns what came of it, "" for nothing to report

    def _vcpu_read(self, actor: Actor, vm: SimulatedVm, gfn: int, pages: int = 1) -> str:
        return self._read(actor, vm, gfn, pages, shared=False)

    def _vcpu_read_shared(self, actor: Actor, vm: SimulatedVm, gfn: int) -> str:
        return self._read(actor, vm, gfn, 1, shared=True)

    def _vcpu_write(self, actor: Actor, vm: SimulatedVm, gfn: int, text: str, pages: int = 1) -> str:
        return self._write(actor, vm, gfn, text, pages, shared=False)

    def _vcpu_write_shared(self, actor: Actor, vm: SimulatedVm, gfn: int, text: str) -> str:
        return self._write(actor, vm, gfn, text, 1, shared=True)

    def _read(self, actor: Actor, vm: SimulatedVm, gfn: int, pages: int, *, shared: bool) -> str:
        start = self._history.tick()
        length = MAX_TEXT if pages == 1 else pages * PAGE_SIZE
        vcpu = vm.vm.vcpu(actor.index)
        data = self._runs(vm, vcpu, lambda: vm.guest.read(vcpu, gfn << PAGE_SHIFT, length, shared=shared))()
        if not isinstance(data, bytes):
            return self._exit(actor, data, start)
        report = []
        for index in range(pages):
            value = data[index * PAGE_SIZE :][:MAX_TEXT]
            shown = self._pages(vm, gfn + index, 1, start, shared=shared)
            self._reached(actor, gfn + index, shown, start, shared=shared)
            wrong = [self._history.check(page, value, start) for page in shown]
            if wrong and all(wrong):
                self._scheduler.fail(f"R8: {actor.name}: {wrong[0]}")
            report.append(repr(value.rstrip(b"\0").decode(errors="replace")))
        return "read " + " ".join(report)

    def _write(self, actor: Actor, vm: SimulatedVm, gfn: int, text: str, pages: int, *, shared: bool) -> str:
        value = text.encode().ljust(MAX_TEXT, b"\0")
        data = value if pages == 1 else value.ljust(PAGE_SIZE, b"\0") * pages
        return self._put(actor, vm, gfn, data, value, pages, shared=shared)

    def _vcpu_place(self, actor: Actor, vm: SimulatedVm, program: str, gfn: int) -> str:
        return self._put(actor, vm, gfn, PROGRAMS[program].code, PROGRAMS[program].text, 1, shared=False)

    def _vcpu_code(
        self, actor: Actor, vm: SimulatedVm, program: str, gfn: int, data: int, times: int, slice_: int = 1
    ) -> str:
        start = self._history.clock
        vcpu = vm.vm.vcpu(actor.index)
        work = Work(
            PROGRAMS[program],
            gfn,
            data,
            times,
            slice_,
            f"code{actor.index}".encode().ljust(MAX_TEXT, b"\0"),
            self._history,
            lambda gfn: self._pages(vm, gfn, 1),
            lambda why: self._scheduler.fail(f"R8: {actor.name}: {why}"),
        )
        got = self._runs(vm, vcpu, lambda: self._machine_code[actor.vm].run(vcpu, work))()
        return got if isinstance(got, str) else self._exit(actor, got, start)

    def _put(
        self, actor: Actor, vm: SimulatedVm, gfn: int, data: bytes, value: bytes, pages: int, *, shared: bool
    ) -> str:
        touched = self._pages(vm, gfn, pages, shared=shared)
        changes = self._history.begin(touched, value)
        start = self._history.clock
        vcpu = vm.vm.vcpu(actor.index)
        exit_ = self._runs(vm, vcpu, lambda: vm.guest.write(vcpu, gfn << PAGE_SHIFT, data, shared=shared))()
        seen = self._pages(vm, gfn, pages, start, shared=shared)
        if exit_ is None:
            for index in range(pages):
                shown = self._pages(vm, gfn + index, 1, start, shared=shared)
                self._reached(actor, gfn + index, shown, start, shared=shared)
        if exit_ is not None or (seen == touched and len(seen) <= pages):
            self._history.end(changes, happened=exit_ is None)
        else:  # it went to one of them: each such change stays open
            self._history.begin([page for page in seen if page not in touched], value)
        return "" if exit_ is None else self._exit(actor, exit_, start)

    def _vcpu_prefault(self, actor: Actor, vm: SimulatedVm, gfn: int, pages: int = 1) -> str:
        """EAGAIN and ENOENT are for races with a slot that goes, and have done nothing."""
        vcpu, size = vm.vm.vcpu(actor.index), pages << PAGE_SHIFT
        going = self._scenario.uses("delete", "hole", "share", "close")
        try:
            left = vm.kvm.pre_fault(vcpu, gfn << PAGE_SHIFT, size, shared=False)
        except Refused as refused:
            if not going or refused.errno not in (errno.EAGAIN, errno.ENOENT):
                raise
            return errno_name(refused.errno)
        if left and not going:
            self._scheduler.fail(f"{actor.name}: {left:#x} bytes are left, and nothing is in the way")
        return f"{left:#x} left" if left else ""

    def _vcpu_share(self, actor: Actor, vm: SimulatedVm, gfn: int, pages: int = 1) -> str:
        with self._taking(self._pages(vm, gfn, pages)):
            return self._map(actor, vm, gfn, pages, private=False)

    def _vcpu_unshare(self, actor: Actor, vm: SimulatedVm, gfn: int, pages: int = 1) -> str:
        return self._map(actor, vm, gfn, pages, private=True)

    def _map(self, actor: Actor, vm: SimulatedVm, gfn: int, pages: int, *, private: bool) -> str:
        vcpu = vm.vm.vcpu(actor.index)
        size = pages << PAGE_SHIFT
        exit_ = vm.vmm.run(vcpu, lambda: vm.guest.map(vcpu, gfn << PAGE_SHIFT, size, private=private))
        return "" if exit_ is None else self._exit(actor, exit_)

    def _runs(self, vm: SimulatedVm, vcpu: Vcpu, begin: Callable[[], Any]) -> Callable[[], Any]:
        """KVM_RUN as user space calls it: not while it changes memslots, if here it ever does."""
        return vm.vmm.on_a_thread(vcpu, begin) if self._scenario.uses("share", "unshare") else begin

    def _vmm_slot(self, actor: Actor, vm: SimulatedVm, id_: int, name: str, gfn: int, pgoff: int, pages: int) -> str:
        path = self.world.path(name)
        slot = self._shown.making(vm.name, id_, name, gfn, pgoff, pages)
        try:
            with vm.vmm.memory.lock:
                if self._scenario.abi.has_one_space:
                    self._conversions.set_slot(vm, id_, name, gfn, pgoff, pages)
                    return ""
                vm.vmm.memory.set_private_slot(
                    MemoryRegion.private(id_, gfn << PAGE_SHIFT, pages << PAGE_SHIFT, offset=pgoff << PAGE_SHIFT), path
                )
        except Refused:
            self._shown.refused(slot)
            raise
        return ""

    def _vmm_delete(self, actor: Actor, vm: SimulatedVm, id_: int) -> str:
        if self._scenario.abi.has_one_space:
            with vm.vmm.memory.lock:
                self._conversions.delete_slot(vm, id_)
        else:
            with self._taking(self._shown.of_slot(vm.name, id_)), vm.vmm.memory.lock:
                vm.vmm.memory.delete_slot(id_, private=True)
        self._shown.deleted(vm.name, id_)
        return ""

    def _vmm_hole(self, actor: Actor, vm: SimulatedVm, id_: int, gfn: int, pages: int) -> str:
        with self._taking(self._pages(vm, gfn, pages)), vm.vmm.memory.lock:
            vm.vmm.memory.punch_slot(id_, gfn << PAGE_SHIFT, pages << PAGE_SHIFT)
        return ""

    def _vmm_fill(self, actor: Actor, vm: SimulatedVm, id_: int, gfn: int, pages: int) -> str:
        with vm.vmm.memory.lock:
            vm.vmm.memory.fill_slot(id_, Gfn(gfn), Gfn(gfn + pages))
        return ""

    def _vmm_private(self, actor: Actor, vm: SimulatedVm, gfn: int, pages: int) -> str:
        return self._conversions.set_vm_attributes(vm, gfn, pages, private=True)

    def _vmm_shared(self, actor: Actor, vm: SimulatedVm, gfn: int, pages: int) -> str:
        return self._conversions.set_vm_attributes(vm, gfn, pages, private=False)

    def _vmm_release(self, actor: Actor, vm: SimulatedVm, name: str) -> str:
        return self._conversions.release(vm, name)

    def _vmm_close(self, actor: Actor, vm: SimulatedVm) -> str:
        vm.said_bye = True
        vm.kvm.close()
        return ""

    def _vmm_pair(self, actor: Actor, vm: SimulatedVm, name: str) -> str:
        fd = os.open(self.world.path(name), os.O_WRONLY | os.O_CLOEXEC)
        link = self.world.pair(vm, fd, vm.name, vm.kvm.notifier)
        link.start()
        link.close()
        return ""

    def _host_punch(self, name: str, pgoff: int, pages: int) -> str:
        with self._taking([(name, pgoff + index) for index in range(pages)]):
            self._files.punch(self.world.inos[name], pgoff << PAGE_SHIFT, pages << PAGE_SHIFT).run()
            self.world.cache.truncate(self.world.inos[name], pgoff, pgoff + pages)
        return ""

    def _host_private(self, name: str, pgoff: int, pages: int) -> str:
        return self._conversions.set_file_attributes(name, pgoff, pages, private=True)

    def _host_shared(self, name: str, pgoff: int, pages: int) -> str:
        return self._conversions.set_file_attributes(name, pgoff, pages, private=False)

    def _host_load(self, name: str, pgoff: int) -> str:
        return self._conversions.load(name, pgoff)

    def _host_store(self, name: str, pgoff: int, text: str) -> str:
        return self._conversions.store(name, pgoff, text)

    def _host_poison(self, name: str, pgoff: int) -> str:
        changes = self._history.begin([(name, pgoff)], FAILED)
        try:
            reply = self.world.store.failures.poison(self.world.inos[name], pgoff)
        except Refused as refused:
            if refused.errno != errno.ETIMEDOUT:
                self._history.end(changes, happened=False)
            raise
        self._history.end(changes)
        self._poisoned += 1
        return f"frame {reply.pfn:#x}"

    def _host_revoke(self, name: str) -> str:
        changes = self._history.begin([(name, index) for index in range(self._scenario.files[name])], FAILED)
        try:
            self.world.store.devices.remove(self.world.inos[name])
        except Refused as refused:
            if refused.errno != errno.ETIMEDOUT:
                self._history.end(changes, happened=False)
            raise
        self._history.end(changes)
        return ""

    def _host_move(self, name: str, pgoff: int, pages: int) -> str:
        store = self.world.store
        with store.service.lock:
            file = store.service.inodes.regular(self.world.inos[name])
        moved = store.mover.relocate(file, [Pgoff(pgoff + index) for index in range(pages)], (0,))
        return f"{moved.page_count} pages moved"

    def _host_allocate(self, name: str, pgoff: int, pages: int) -> str:
        self._files.allocate(self.world.inos[name], pgoff << PAGE_SHIFT, pages << PAGE_SHIFT).run()
        return ""

    def _host_swapout(self, name: str, pgoff: int, pages: int) -> str:
        done, at = 0, pgoff
        while at >= 0:
            step = self.world.store.swapper.page_out(self.world.inos[name], at, pgoff + pages, 0, 0)
            done, at = done + step.page_count, step.next_pgoff
        return f"{done} pages left"

    def _host_swapoff(self) -> str:
        swapoff = self.world.store.swapoff
        step = swapoff.swap_off()
        came = step.page_count
        while step.next_page is not None:
            step = swapoff.swap_off(*step.next_page)
            came += step.page_count
        return f"{came} pages came back"

    def _host_truncate(self, name: str, pages: int) -> str:
        with self._taking([(name, index) for index in range(pages, self._scenario.files[name])]):
            self._files.truncate(self.world.inos[name], pages << PAGE_SHIFT).run()
        return ""

    def _host_unlink(self, name: str) -> str:
        self.world.unlink(name)
        return ""

    def _host_check(self) -> str:
        findings = self.world.store.checker.check().findings
        return "; ".join(f"{rule} {text}" for rule, text in findings)

    def _outside_kill(self, process: str) -> str:
        self.world.kill(process)
        return ""

    def _outside_stop(self, process: str, seconds: int) -> str:
        self.world.stop(process, seconds)
        return ""

    def _outside_cut(self, process: str) -> str:
        self.world.cut(process)
        return ""

    # -- helpers

    @contextlib.contextmanager
    def _taking(self, pages: list[Page]) -> Iterator[None]:
        """The contents of these pages are taken back: once it is done, they are zero."""
        changes = self._history.begin(pages, bytes(MAX_TEXT))
        try:
            yield
        except Refused:
            raise  # it may have happened in part: the change stays open
        self._history.end(changes)

    def _pages(
        self, vm: SimulatedVm, gfn: int, count: int, since: float = math.inf, *, shared: bool = False
    ) -> list[Page]:
        found = [page for index in range(count) for page in self._shown.at(vm.name, gfn + index, since)]
        if not shared or self._aliases.keeps_file:
            return found
        mappable = self._scenario.mappable  # else memory of user space is beside the file
        return [(file if file in mappable else f"user space's {file}", pgoff) for file, pgoff in found]

    def _reached(self, actor: Actor, gfn: int, shown: list[Page], start: int, *, shared: bool) -> None:
        """An access of this alias went through. start: when it began."""
        alias = "shared" if shared else "private"
        if not shown:
            self._scheduler.fail(f"R3: {actor.name}: a {alias} access reaches GFN {gfn:#x}, which no slot shows")
        attributes = self._aliases.shown(actor.vm, gfn, start)
        if attributes and not self._aliases.may_be(attributes, start, private=not shared):
            self._scheduler.fail(f"R5: {actor.name}: a {alias} access reaches GFN {gfn:#x}, which is not {alias}")

    def _failed(self, actor: Actor, exit_: MemoryFaultExit | FailedExit, start: int) -> str:
        """KVM_RUN failed: the page is of the other alias, or nothing shows it, or somebody has died."""
        report = f"KVM_RUN {errno_name(exit_.errno)}"
        if not self._peaceful:
            return report
        if isinstance(exit_, FailedExit):
            if not self._scenario.uses("private", "release"):
                self._scheduler.fail(f"{actor.name}: {report}, {exit_.why}")
            return report
        gfn = exit_.gpa >> PAGE_SHIFT
        attributes = self._aliases.shown(actor.vm, gfn, start)
        is_shown = self._shown.at(actor.vm, gfn) and not self._scenario.uses("release")
        if is_shown and not self._aliases.may_be(attributes, start, private=not exit_.private):
            self._scheduler.fail(f"{actor.name}: {report} at GFN {gfn:#x}, {exit_.why}")
        return f"exit MEMORY_FAULT {'private' if exit_.private else 'shared'}"

    def _exit(self, actor: Actor, exit_: Exit, start: int = 0) -> str:
        """start: when the access began."""
        if isinstance(exit_, MmioExit):
            return "exit MMIO"
        if isinstance(exit_, MachineCheckExit):
            self._scheduler.fail(f"{actor.name}: exit MACHINE_CHECK, and nobody has tampered with gpa {exit_.gpa:#x}")
            return "exit MACHINE_CHECK"
        if isinstance(exit_, MemoryFaultExit | FailedExit):
            return self._failed(actor, exit_, start)
        assert isinstance(exit_, MemoryErrorExit)
        if exit_.errno in (EHWPOISON, errno.ENODEV):
            shown = self._shown.at(actor.vm, exit_.gpa >> PAGE_SHIFT, start)
            if not any(self._history.check(page, FAILED, start) == "" for page in shown):
                self._scheduler.fail(f"{actor.name}: exit MEMORY_ERROR, {exit_.why}: it has not failed")
        past_the_end = exit_.errno == errno.EFAULT and not self._scenario.uses("truncate")
        if exit_.errno and self._peaceful and (exit_.errno in _BROKEN or past_the_end):
            self._scheduler.fail(f"{actor.name}: exit MEMORY_ERROR, {exit_.why}")
        return f"exit MEMORY_ERROR {errno_name(exit_.errno) if exit_.errno else ''}".rstrip()


def _open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def _is_foreign(fd: int) -> bool:
    """A socket that none of the code under test makes: of the process that does this run's work among others."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as one:
        return one.type is not socket.SOCK_SEQPACKET


def _close_leaks(before: set[str]) -> list[str]:
    """What a run left open, and has no more; not what its garbage will close. A dead process leaves fds to its kernel,
    which are we."""
    left = []
    for name in _open_fds() - before:
        try:
            what = os.readlink(f"/proc/self/fd/{name}")
            if (
                what.startswith(("/memfd:", "socket:", "pipe:", "anon_inode:[pidfd]"))
                and not _is_foreign(int(name))
                and not mappings.owns(int(name))
            ):
                os.close(int(name))
                left.append(what)
        except OSError:
            continue
    return left
