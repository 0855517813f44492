"""The attacks as rows: what is called, and what comes of it in each state. docs/semantics-guest-seal.md shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tests.attack.target import WORKS, Action

OPEN_EPERM = "open: EPERM"


class Aim(Enum):
    READ = "read"
    WRITE = "write"
    NEITHER = "neither"
    """It only prepares, asks about or disturbs: what it brings is judged by the loot and the guest alone."""


@dataclass(frozen=True, slots=True)
class Attack:
    """call: as the document shows it. The outcomes: "works", an errno, "open: ERRNO", or a signal.

    ordinary: on a file that is not sealed, opened read-write. It proves that the attack is one.
    blind: on the sealed file, with a write-only handle, opened before the seal or after it; None: takes no handle.
    strict, rw: on the sealed file, opened read-write where the mount says open=strict or open=rw.
    unprivileged: by column, the outcome for whoever is not root, where it differs.
    stranger: on a file that is not sealed, for whoever is neither its owner nor root, where it differs.
    blind_rw: `blind` where the mount says open=rw, where it differs.
    flags: for open(2), beside the access mode.
    may_loop: with open=rw the call may also never end, until a signal. Linux (6.18, mm/gup.c: __mm_populate) asks
    again and again for a page whose read fails.
    """

    call: str
    action: Action
    aim: Aim
    ordinary: str
    blind: str | None
    rw: str
    strict: str = OPEN_EPERM
    unprivileged: Mapping[str, str] = field(default_factory=dict)
    flags: int = 0
    may_loop: bool = False
    blind_rw: str | None = None
    stranger: str | None = None

    def expected(self, column: str, user: str, mode: str = "strict") -> str:
        """column: the name of a field above."""
        if user == "other" and column == "ordinary" and self.stranger is not None:
            return self.stranger
        if user != "root" and column in self.unprivileged:
            return self.unprivileged[column]
        if column == "blind" and mode == "rw" and self.blind_rw is not None:
            return self.blind_rw
        outcome: str = getattr(self, column)
        return outcome


def everywhere(outcome: str) -> dict[str, str]:
    return dict.fromkeys(("ordinary", "blind", "strict", "rw"), outcome)


def by_path(
    call: str, action: Action, aim: Aim, ordinary: str, strict: str, rw: str, unprivileged: str | None = None
) -> Attack:
    """An attack that opens the file itself, or does not open it."""
    others = {} if unprivileged is None else everywhere(unprivileged)
    return Attack(call, action, aim, ordinary, None, rw, strict, others)


def reading(call: str, action: Action, blind: str = "EBADF", rw: str = "EPERM", flags: int = 0) -> Attack:
    return Attack(call, action, Aim.READ, WORKS, blind, rw, flags=flags)


def writing(call: str, action: Action, blind: str = "EPERM", rw: str = "EPERM", flags: int = 0) -> Attack:
    return Attack(call, action, Aim.WRITE, WORKS, blind, rw, flags=flags)


Group = tuple[str, Sequence[Attack]]
