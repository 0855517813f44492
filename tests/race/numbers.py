"""What the tests of this directory explored: printed at their end, and written in docs/reliability.md."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Numbers:
    runs: int = 0
    schedules: int = 0
    """Different ones: no two have the same order of dependent steps."""
    scenarios: set[str] = field(default_factory=set)
    complete: set[str] = field(default_factory=set)
    """Scenarios of which every order was run."""
    two_vcpus: tuple[int, int] = (0, 0)
    """Of two vCPUs, one punch and one death: all schedules, and the runs that it took."""
    caught: dict[str, str] = field(default_factory=dict)
    mutants: int = 0


NUMBERS = Numbers()
