"""What tests record beside passing: shown at the end of a run, by whichever processes the tests were run.

A module of MODULES keeps a record in the process that runs tests: `report()` is it in plain values, `hear()` adds what
another process reports, `show()` writes it into the summary. With pytest-xdist each worker sends it to the controller.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest

from tests.support import lock_order

MODULES = (
    "tests.support.lock_order",
    "tests.needs_root",
    "tests.race.tally",
    "tests.hostile.tally",
    "tests.death.report",
    "tests.soak.report",
)


def _used() -> list[ModuleType]:
    return [sys.modules[name] for name in MODULES if name in sys.modules]


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workeroutput")


def is_distributed(config: pytest.Config) -> bool:
    """This is the controller of workers that run the tests."""
    return config.getoption("dist", "no") != "no" and not is_worker(config)


class Records:
    """The plugin, in a worker, in their controller and where there are none."""

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if is_worker(session.config):
            report = {module.__name__: module.report() for module in _used()}
            session.config.workeroutput["recorded"] = report  # type: ignore[attr-defined]
        elif is_distributed(session.config):
            self._check_lock_order(session)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        for name, report in getattr(node, "workeroutput", {}).get("recorded", {}).items():
            importlib.import_module(name).hear(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for module in _used():
            module.show(terminalreporter)

    def _check_lock_order(self, session: pytest.Session) -> None:
        """tests/test_lock_order.py over all workers: a failure of it, as if it had run here."""
        try:
            lock_order.check()
        except AssertionError as wrong:
            path, name = "tests/test_lock_order.py", "the locks of all workers"
            session.config.hook.pytest_runtest_logreport(
                report=pytest.TestReport(f"{path}::{name}", (path, None, name), {}, "failed", str(wrong), "call")
            )
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
