"""Lines of a script, done one after the other by a test."""

from kvmsim.shell.execute import Executor
from kvmsim.shell.script.grammar import parse_line
from kvmsim.shell.script.outcome import Outcome
from kvmsim.store.link import pair as pair_with_store
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_SLOTS

from .both_sides import LocalStore


class Lines:
    """Does script lines."""

    def __init__(self, max_slots: int = MAX_SLOTS, policy: str = "none", store: LocalStore | None = None) -> None:
        self.store = store
        if store is None:
            self.executor = Executor(max_slots, policy, pair=pair_with_store)
        else:
            self.executor = Executor(max_slots, policy, pair=store.pair, windows=store.windows_of_vms)

    def __call__(self, line: str) -> Outcome:
        command = parse_line(line, 1)
        assert command is not None
        try:
            return self.executor(command)
        except Refused as refused:
            return Outcome.refused(refused)

    def ok(self, *lines: str) -> Outcome:
        for line in lines:
            outcome = self(line)
            assert outcome.ok, (line, outcome)
        return outcome
