"""The table of attacks, row by row: each call as each user, before the seal, through older handles, after it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.attack.all_attacks import ATTACKS
from tests.attack.attacker import Attacker
from tests.attack.battlefield import Battlefield
from tests.attack.syscalls import IoUring, errno_of
from tests.attack.table import Aim, Attack
from tests.attack.target import DEADLINE_S, ENDLESS, HOST_WROTE, SECRET, SHORT_DEADLINE_S, USERS, WORKS


@dataclass(frozen=True)
class Machine:
    """What it lacks changes outcomes, and the table's rows say so: io_uring_refusal, an errno."""

    io_uring_refusal: str | None

    def due(self, attack: Attack, column: str, user: str, mode: str) -> str:
        due = attack.expected(column, user, mode)
        uses_ring = "io_uring" in attack.call and not due.startswith("open:") and due != "EACCES"
        return self.io_uring_refusal if self.io_uring_refusal and uses_ring else due


@pytest.fixture(scope="module")
def machine() -> Machine:
    try:
        os.close(IoUring().fd)
    except OSError as error:
        return Machine(errno_of(error))
    return Machine(None)


@pytest.fixture(scope="module")
def attacker() -> Iterator[Attacker]:
    with Attacker() as attacker:
        yield attacker


@dataclass(frozen=True)
class Assault:
    """One row of the table, as one user."""

    number: int
    user: str
    machine: Machine
    attacker: Attacker

    @property
    def attack(self) -> Attack:
        return ATTACKS[self.number]

    def __call__(
        self, column: str, field: Battlefield, path: Path, *, fd: int | None = None, access: int | None = None
    ) -> str:
        """Carry it out; the outcome must be the table's. With a handle, or a target to open, or a path alone."""
        attack, attacker = self.attack, self.attacker
        flags = None if access is None else access | attack.flags
        may_loop = attack.may_loop and column == "rw"
        deadline_s = SHORT_DEADLINE_S if may_loop else DEADLINE_S
        got = attacker.run(
            self.number, path, field.helpers, USERS[self.user], fd=fd, flags=flags, deadline_s=deadline_s
        )
        due = self.machine.due(attack, column, self.user, field.mode)
        assert got == due or (may_loop and got == ENDLESS), (
            f"{attack.call} by {self.user}, {column}, open={field.mode}: {got}, not {due}"
        )
        return got


@pytest.mark.parametrize("number", range(len(ATTACKS)), ids=lambda number: ATTACKS[number].call)
def test_attack(number: int, battlefields: dict[str, Battlefield], machine: Machine, attacker: Attacker) -> None:
    assaults = [Assault(number, user, machine, attacker) for user in USERS]
    for assault in assaults:
        an_ordinary_file_is_reached(assault, battlefields["strict"])
    for field in battlefields.values():
        for assault in assaults:
            the_sealed_file_is_not(assault, field)
        field.assert_intact()


def an_ordinary_file_is_reached(assault: Assault, field: Battlefield) -> None:
    """With the same contents: so the attack is one, unless the table says that it fails anyway."""
    attack = assault.attack
    field.fill_ordinary()
    outcome = assault("ordinary", field, field.ordinary, access=None if attack.blind is None else os.O_RDWR)
    if outcome == WORKS and attack.aim is Aim.READ:
        assert SECRET in assault.attacker.loot[:], "the attack reads nothing even from an ordinary file"
    if outcome == WORKS and attack.aim is Aim.WRITE:
        assert HOST_WROTE[:7] in field.ordinary.read_bytes(), "the attack writes nothing even to an ordinary file"


def the_sealed_file_is_not(assault: Assault, field: Battlefield) -> None:
    def attack(column: str, **how: int | None) -> None:
        assault(column, field, field.sealed, **how)
        assert SECRET not in assault.attacker.loot[:], "guest memory came out"

    if assault.attack.blind is None:
        attack(field.mode)
    else:
        attack("blind", fd=field.early_handle())
        attack("blind", access=os.O_WRONLY)
        attack(field.mode, access=os.O_RDWR)
