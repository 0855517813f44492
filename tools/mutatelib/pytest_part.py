"""A plugin of the runs of pytest here: what hypothesis draws depends on nothing, and a failure is not made smaller.

With MUTATE_TIMES=FILE each test's outcome and duration is appended there.
"""

import os

import pytest
from hypothesis import Phase, settings


def pytest_sessionstart() -> None:
    settings.register_profile(
        "mutate", settings.default, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
    )
    settings.load_profile("mutate")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "MUTATE_TIMES" in os.environ:
        with open(os.environ["MUTATE_TIMES"], "a") as log:
            print(report.nodeid, report.when, report.outcome, report.duration, sep="\t", file=log)
