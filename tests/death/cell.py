"""One point, one scenario, one fault: run it, and look at what is left."""

import errno
import json
import os
import signal
import sys
from pathlib import Path

from memfsd.uapi.limits import ANSWER_DEADLINE_S

from . import deadlines
from .bench import FILE_PAGES, SETTLE_S, Bench, must, now
from .launcher import Child, TooLate, launch, until
from .model import NO_CONNECTION, NO_MORE, NO_PEER, Cell, Fault, Outcome
from .scenarios import SCENARIOS, Scenario
from .traps import Action, Fired, has_busy_child, is_stopped, waits_on_mount

_MEMFS = f"{sys.executable} {Path(deadlines.__file__)}"
"""memfs, no more patient than the others."""
OUTLAST_S = 2 * ANSWER_DEADLINE_S
"""Longest that anybody waits for one that is silent: one deadline of a request, one of the connection that it finds
out with."""
PATIENCE_S = OUTLAST_S + SETTLE_S

_ACTIONS = {
    (Fault.KILL, True): Action.KILL_SELF,
    (Fault.KILL, False): Action.KILL_PEER,
    (Fault.STOP, True): Action.STOP_SELF,
    (Fault.STOP, False): Action.STOP_PEER,
    (Fault.STOP_LONG, True): Action.STOP_SELF,
    (Fault.STOP_LONG, False): Action.STOP_PEER,
    (Fault.CUT, True): Action.CUT,
    (Fault.CUT, False): Action.CUT,
}
_BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}

_CLEAR = (None, "EHOSTDOWN", "ENOTCONN", "ECONNABORTED", "ETIMEDOUT")
"""errnos of a command whose store is gone (the two in the middle: a system call on its mount), or silent."""


class Run:
    """A scenario on a bench, with at most one fault."""

    def __init__(self, bench: Bench, scenario: Scenario, cell: Cell | None) -> None:
        self.bench = bench
        self.cell = cell
        self.scenario = scenario
        bench.offer(scenario.options)
        assert bench.store is not None
        self.store = bench.store
        self.level = bench.level()
        self.file, self.other = bench.sealed("file", FILE_PAGES), bench.sealed("other", FILE_PAGES)
        names = {"file": self.file, "other": self.other, "mount": bench.mount, "store": self.store.pid, "memfs": _MEMFS}
        if cell is None:
            bench.board.arm(None, 0, Action.NONE, scenario.also)
        else:
            action = _ACTIONS[cell.fault, cell.victim == cell.side]
            bench.board.arm(cell.point, cell.nth, action, scenario.also)
        bench.board.set_pid("store", self.store.pid)
        script = scenario.script.format(**names)
        self.vm = launch(
            "kvmsim", ["run", "--json", *scenario.arguments, "-"], bench.base, bench.board, script, scenario.holds
        )

        self._begin = now()

    def vm_ended(self) -> bool:
        """Also lets others see that the store has, and lets go on whom the scenario has stopped."""
        ended = self.vm.poll() is not None
        store_ended = self.store.poll() is not None
        match self.scenario.goes_on:
            case "store" if ended or is_stopped(self.vm.pid):
                self.store.kill(signal.SIGCONT)
            case "vm" if not self.cell or (self.cell.fault, self.cell.victim) != (Fault.STOP_LONG, "vm"):
                given_up = store_ended or self.bench.board.count("store down closed") > 0
                if given_up or now() > self._begin + OUTLAST_S:
                    self.vm.kill(signal.SIGCONT)
        return ended

    def wait_vm(self) -> None:
        until(self.vm_ended, "kvmsim ends by itself", PATIENCE_S)

    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.vm.out.splitlines()]

    def check_vm(self, statuses: tuple[int, ...]) -> str:
        """It ended as a command does: with a status, and where that is not 0 with a reason."""
        vm = self.vm
        must(vm.status in statuses, f"kvmsim ended with {vm.status}: {vm.out[-400:]} {vm.err}")
        must("Traceback" not in vm.err and "Error" not in vm.err, f"kvmsim's log: {vm.err}")
        if vm.status == 1:
            must(vm.out != "", f"kvmsim said nothing: {vm.err}")
            last = self.records()[-1]
            why = last.get("reason") or last.get("text") or last.get("status")
            must(not last["ok"] or bool(last.get("failed")), f"the last record is no failure: {last}")
            must(bool(why), f"a failure without a reason: {last}")
            must(last["errno"] in _CLEAR, f"an error of the socket, not of what was asked: {last}")
            return f"exit 1 ({last['errno'] or last['exit'] or 'sh'})"
        return f"exit {vm.status}" if vm.status is not None and vm.status >= 0 else "killed"

    def check_store(self) -> None:
        """The mount works, its rules hold, and nothing of this run is left."""
        bench = self.bench
        if self.scenario.store_ends and not bench.ended():
            self.store.kill(signal.SIGTERM)  # a VM that died early did not get to it
            until(bench.ended, "memfsd ends", SETTLE_S)
        if bench.ended():
            if self.store.status == 0:
                bench.check_gone()
            else:
                must(self.store.status == -signal.SIGKILL, f"memfsd ended with {self.store.status}: {self.store.err}")
            bench.check_log()
            bench.start()
            self.level = bench.level()
        bench.board.disarm()
        for path in (self.file, self.other, bench.mount / "filler"):
            path.unlink(missing_ok=True)
        bench.settle_at(self.level)
        bench.check_all()
        bench.settle_at(self.level)
        bench.check_processes()

    def end(self) -> None:
        """Whatever happened: no process of this run stays. Those of its script are ended with it."""
        for child in (self.vm, self.store):
            if child.poll() is None:
                os.kill(child.pid, signal.SIGCONT)
        if self.vm.poll() is None:
            self.vm.kill()
            until(lambda: self.vm.poll() is not None, "kvmsim dies", SETTLE_S)


def census(bench: Bench, name: str) -> dict[str, int]:
    """How often a scenario reaches each point while its VM runs, with no fault; 0 for a point of what follows."""
    scenario = _BY_NAME[name]
    run = Run(bench, scenario, None)
    try:
        run.wait_vm()
        in_time = bench.board.reached()
        if scenario.store_ends:
            until(bench.ended, "memfsd ends", SETTLE_S)
        else:
            until(lambda: bench.counts()["windows"] == run.level["windows"], "its window goes", SETTLE_S)
            run.file.unlink(missing_ok=True)
            until(lambda: bench.counts()["threads"] == run.level["threads"], "its threads end", SETTLE_S)
        reached = bench.board.reached()
        run.check_vm((scenario.status,))
        run.check_store()
    finally:
        run.end()
    return {point: in_time.get(point, 0) for point in reached}


NOT_REACHED = "the point was not reached"


def run_cell(bench: Bench, cell: Cell) -> Outcome:
    """Never raises for what the product does wrong: that is an outcome that is not ok."""
    run = Run(bench, _BY_NAME[cell.scenario], cell)
    try:
        text = _with_fault(run, cell)
        run.check_store()
    except (AssertionError, TooLate, OSError) as error:
        return Outcome(False, f"{error}" or repr(error))
    finally:
        run.end()
    return Outcome(False, NOT_REACHED) if text is None else Outcome(True, text)


def _with_fault(run: Run, cell: Cell) -> str | None:
    """What became of both; None when the point was not reached."""
    board, bench = run.bench.board, run.bench

    def over() -> bool:
        """Fired, or nothing goes on any more that could."""
        return (run.vm_ended() and bench.ended()) or board.fired is not Fired.NO

    def rests() -> bool:
        return over() or run.vm_ended()

    until(rests, f"{cell.point} is reached", PATIENCE_S)
    if board.fired is Fired.NO and not bench.ended() and cell.side == "store":
        # Also what a store does about a VM that is gone. It may die of it.
        bench.unlink_beside(run.file)
        until(over, f"{cell.point} is reached", SETTLE_S)
    if board.fired is Fired.NO:
        return None
    if board.fired is Fired.NO_CONNECTION:
        run.wait_vm()
        run.check_vm((run.scenario.status,))
        return NO_CONNECTION
    if board.fired is Fired.NO_PEER:
        run.wait_vm()
        return NO_PEER
    victim = run.store if cell.victim == "store" else run.vm
    if cell.fault is Fault.KILL:
        return _killed(run, victim)
    if cell.fault is Fault.CUT:
        run.wait_vm()
        return f"VM {run.check_vm((0, 1, run.scenario.status))}"
    until(lambda: victim.poll() is not None or is_stopped(victim.pid), "the victim stops", SETTLE_S)
    if victim.poll() is not None:
        run.wait_vm()
        return NO_MORE
    if cell.fault is Fault.STOP:
        victim.kill(signal.SIGCONT)
        run.wait_vm()
        return f"VM {run.check_vm((0, 1) if run.scenario.stops else (run.scenario.status,))}"
    return _stopped_store(run) if cell.victim == "store" else _stopped_vm(run)


def _killed(run: Run, victim: Child) -> str:
    until(lambda: victim.poll() is not None, "the victim dies", SETTLE_S)
    if victim is run.vm:
        return "frames free"
    run.wait_vm()
    return f"VM {run.check_vm((0, 1, run.scenario.status))}, mount replaced"


def _stopped_store(run: Run) -> str:
    """kvmsim must not wait for it longer than it has patience. A system call on the mount is the kernel's to end."""
    begin = now()

    def at_rest() -> bool:
        return run.vm_ended() or (now() > begin + OUTLAST_S and waits_on_mount(run.vm.pid))

    until(at_rest, "kvmsim ends by itself, or waits in a system call on the mount", PATIENCE_S)
    waited = "" if run.vm.poll() is not None else "waits on the mount, then "
    run.store.kill(signal.SIGCONT)
    run.wait_vm()
    return f"VM {waited}{run.check_vm((0, 1, run.scenario.status))}"


def _stopped_vm(run: Run) -> str:
    """Its frames are nobody else's until it is dead; the store goes on without it."""
    bench = run.bench
    text = ""
    if not bench.ended() and not run.scenario.store_ends:
        file = run.file
        bench.check_works()
        until(lambda: not has_busy_child(run.vm.pid), "the command of the VM's script ends", PATIENCE_S)
        if file.exists():
            was, bound = bench.owner_state(file), bench.is_bound(file)
            number = bench.punch(file, FILE_PAGES)
            asked = bound and was == "paired" and is_stopped(run.vm.pid)
            must(number in (0, errno.ETIMEDOUT), f"punch of a stopped VM's file: {os.strerror(number)}")
            state = bench.owner_state(file)
            must(number == 0 or state == "cut", f"not acknowledged, and the VM is {state}")
            must(state == "cut" or not asked, "taken from a VM that is stopped, without its acknowledgement")
            held = bench.quarantined(file)
            bench.check_zeros()
            must(bench.quarantined(file) == held, "frames left the quarantine while the VM lives")
            text = f"{was} -> {state}, {'frames quarantined' if held else 'no frames held'}; "
    elif run.scenario.store_ends:
        until(bench.ended, "memfsd ends without the VM", PATIENCE_S)
        must(run.store.status == 0, f"memfsd ended with {run.store.status}: {run.store.err}")
        text = "store ended; "
    run.vm.kill(signal.SIGCONT)
    run.wait_vm()
    return f"{text}VM {run.check_vm((0, 1, run.scenario.status))}"
