"""What was done so far: counted, shown every few seconds, and summed up."""

import sys
import threading
from collections import Counter
from collections.abc import Callable

from soaklib.daemon import Levels
from soaklib.ledger import COUNTERS, Ledger

EVERY_S = 5.0
HOST_COUNTERS = (
    *(
        "rounds",
        "vms",
        "encrypted_vms",
        "code_vms",
        "punches",
        "poisoned",
        "moved_pages",
        "swapped_out",
        "swapped_in",
        "shrinks",
        "allocations",
        "files_verified",
        "fillings",
        "checks",
    ),
    *("kills", "short_stops", "cut_offs", "daemon_kills", "daemon_ends", "remounts", "starved"),
)


class Report:
    """Counters of the host, and of all VMMs that there were."""

    def __init__(self) -> None:
        self._host: Counter[str] = Counter()
        self._ledgers: list[Ledger] = []
        self._past: Counter[str] = Counter()

    def count(self, name: str, by: int = 1) -> None:
        assert name in HOST_COUNTERS, name
        self._host[name] += by

    def watch(self, ledger: Ledger) -> None:
        self._ledgers.append(ledger)

    def close_round(self) -> None:
        self.count("rounds")
        for ledger in self._ledgers:
            self._past.update(ledger.counters())
        self._ledgers = []

    def totals(self) -> dict[str, int]:
        sums = self._past.copy()
        for ledger in list(self._ledgers):
            sums.update(ledger.counters())
        return {name: self._host[name] for name in HOST_COUNTERS} | {name: sums[name] for name in COUNTERS}

    def line(self, levels: Levels | None) -> str:
        t = self.totals()
        held = f"{levels.rss_kib >> 10} MiB, {levels.fds} fds, {levels.threads} threads" if levels else "-"
        return (
            f"soak: {t['rounds']} rounds, {t['vms']} VMs, {t['faults']} faults, {t['conversions']} conversions, "
            f"{t['punches']} punches, {t['swapped_out']} pages out, {t['kills'] + t['daemon_kills']} kills, "
            f"{t['verified_pages']} pages verified; memfsd {held}"
        )


class Progress:
    """A line every few seconds on stderr, from its own thread."""

    def __init__(self, line: Callable[[], str]) -> None:
        self._line = line
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(EVERY_S):
            print(self._line(), file=sys.stderr, flush=True)

    def close(self) -> None:
        self._end.set()
        self._thread.join()
