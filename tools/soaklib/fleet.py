"""The VMMs of a round: each a process on a new sealed file, judged when it ends."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from memfsd.uapi.names import XATTR_PAGE_SIZE, XATTR_SEALS
from soaklib.daemon import DEADLINE_S, Daemon, Failure, until
from soaklib.ledger import Ledger
from soaklib.plan import Plan, plan_as_argument
from soaklib.report import Report

STARVED_S = 1.0
"""A VMM that did not run for so long has an excuse for having missed its deadline."""
_TOOLS = Path(__file__).parents[1]


class RunningVm:
    """One VMM. expected: "ended", "lost" (the host takes its store away) or "killed"."""

    def __init__(self, plan: Plan, logs: Path) -> None:
        self.plan = plan
        self.expected = "ended"
        self.ledger = Ledger(Path(plan.ledger), plan.page_count, create=True)
        self._log = logs / f"{plan.name}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "soaklib.vmm", plan_as_argument(plan)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(_TOOLS)},
            )

    @property
    def path(self) -> Path:
        return Path(self.plan.path)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    @property
    def stands_still(self) -> bool:
        """None of its threads runs any more: kill(2) does not wait for that."""
        try:
            stats = [(task / "stat").read_text() for task in Path(f"/proc/{self.process.pid}/task").iterdir()]
        except OSError:
            return False  # a thread has just ended
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.expected = "killed"
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def judge(self) -> bool:
        """Failure when it is not as expected; True when it was cut off, but had not been let run."""
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)  # its stacks, into its log
            until(lambda: "Thread" in self._said(), "it shows its stacks", 5.0)
            raise Failure(f"{self} does not end:\n{self._said()}") from None
        if self.expected == "killed":
            return False
        try:
            report = json.loads(self._said().splitlines()[-1])
        except (ValueError, IndexError):
            raise Failure(f"{self} ended with {self.process.returncode}: {self._said()}") from None
        if report["fate"] == "lost" and self.expected == "ended" and report["longest_gap_s"] >= STARVED_S:
            return True
        if report["fate"] != self.expected:
            raise Failure(f"{self} {report['fate']}, not {self.expected}: {report['why']}")
        return False

    def _said(self) -> str:
        return self._log.read_text(errors="replace")

    def __str__(self) -> str:
        plan = self.plan
        design = f"{plan.policy}/{plan.under}" if plan.policy == "overlay" else plan.policy
        encrypted = ", encrypted" if plan.encrypted else ""
        return f"VM {plan.name} ({design}, frames of {plan.page_bytes >> 10}K{encrypted})"


class Fleet:
    """All of a round, on one mount."""

    def __init__(self, daemon: Daemon, directory: Path, report: Report) -> None:
        self._daemon = daemon
        self._directory = directory
        self._report = report
        self.vms: list[RunningVm] = []

    def start(
        self,
        number: int,
        policy: str,
        under: str,
        page_bytes: int,
        vcpu_count: int,
        seed: str,
        *,
        size: int = 0,
        runs_code: bool = False,
    ) -> RunningVm:
        """number: of the file, unique in the whole run. Every other VM has memory encryption. runs_code: and reads and
        writes nothing besides."""
        size = size or (4 << 20 if page_bytes == 4096 else 16 << 20)
        path = self._daemon.path / f"vm{number}.mem"
        with path.open("xb"):
            pass
        os.setxattr(path, XATTR_SEALS, b"guest")
        os.setxattr(path, XATTR_PAGE_SIZE, str(page_bytes).encode())
        os.truncate(path, size)
        ledger = self._directory / f"vm{number}.ledger"
        plan = Plan(
            f"vm{number}",
            str(path),
            str(ledger),
            number,
            size,
            page_bytes,
            policy,
            under,
            vcpu_count,
            number % 2 == 1,
            f"{seed} {number}",
            runs_code,
        )
        vm = RunningVm(plan, self._directory)
        self.vms.append(vm)
        self._report.watch(vm.ledger)
        self._report.count("vms")
        if plan.encrypted:
            self._report.count("encrypted_vms")
        if plan.runs_code:
            self._report.count("code_vms")
        return vm

    def wait_ready(self) -> None:
        for vm in self.vms:
            until(partial(_is_ready_or_gone, vm), f"{vm} is paired")
            if not vm.ledger.is_ready:
                self._judge(vm)

    def running(self) -> list[RunningVm]:
        """Those that the host has let live so far."""
        return [vm for vm in self.vms if vm.expected == "ended"]

    def verified(self) -> int:
        return sum(vm.ledger.counters()["verified_pages"] for vm in self.vms)

    def finish(self) -> None:
        """All are asked to stop, and judged; those that lose their store have to notice it by themselves."""
        for vm in self.vms:
            if vm.expected != "lost":
                vm.ledger.tell_to_stop()
        for vm in self.vms:
            self._judge(vm)

    def _judge(self, vm: RunningVm) -> None:
        if vm.judge():
            self._report.count("starved")

    def remove(self) -> None:
        """Whatever became of them, no process and no ledger stay."""
        for vm in self.vms:
            if vm.is_running:
                vm.process.kill()
            vm.process.wait()
            Path(vm.plan.ledger).unlink(missing_ok=True)


def _is_ready_or_gone(vm: RunningVm) -> bool:
    return vm.ledger.is_ready or not vm.is_running
