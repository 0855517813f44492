"""Brackets that MOVE opens: a true exchange keeps all rules; broken in one place it is named by its rule."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kvmsim.instruments.journal.check import check
from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.journaled import Journal, record_run, write_lines


def exchange(store: LocalStore, one: LocalVm, two: LocalVm) -> None:
    """Moves of mapped pages among faults and a punch."""
    one.touch(page(16), page(8))
    two.touch(page(16), page(4))
    assert store.move("one", range(8), 1) == [1] * 8
    one.touch(page(16), page(8))
    store.punch("one", 2, 3)
    one.touch(page(16), page(8))
    assert store.move("one", [0, 3, 7], 0) == [0] * 3
    assert store.findings() == []
    one.close()
    two.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return record_run(tmp_path_factory.mktemp("recorded"), exchange, nodes=2)


def test_a_true_exchange_keeps_all_rules(recorded: tuple[Path, Path]) -> None:
    store, vm = map(str, recorded)
    for files in ([store], [vm], [store, vm], [vm, store]):
        verdict = check(files)
        assert (verdict.rule, verdict.why) == ("", "")


def copied_before_the_zap(journal: Journal) -> None:
    journal.move(journal.at("MOVE", reply=True), journal.at("MOVE", reply=False) + 1)


def copied_with_a_vcpu_inside(journal: Journal) -> None:
    journal.drop(journal.at("out"))


def shown_before_the_end(journal: Journal) -> None:
    end = journal.at("INVALIDATE_END", reply=False)
    later = next(i for i in range(end, len(journal.lines)) if journal.lines[i].get("what") == "installed")
    journal.move(later, end)


def shown_where_it_was(journal: Journal) -> None:
    moves = journal.line("MOVE", reply=False)["body"]["moves"]
    for move in moves:
        move[2] = move[1]


def freed_before_the_copy(journal: Journal) -> None:
    journal.move(journal.at("freed"), journal.at("MOVE", reply=True))


@pytest.mark.parametrize(
    ("side", "rule", "edit"),
    [
        (1, "acknowledged", copied_before_the_zap),
        (1, "acknowledged", copied_with_a_vcpu_inside),
        (1, "install", shown_before_the_end),
        (1, "install", shown_where_it_was),
        (0, "freed", freed_before_the_copy),
    ],
)
def test_one_place_is_changed(
    recorded: tuple[Path, Path], tmp_path: Path, side: int, rule: str, edit: Callable[[Journal], None]
) -> None:
    journal = Journal(recorded[side])
    edit(journal)
    edited = tmp_path / "edited"
    write_lines(edited, journal.lines)
    assert check([str(edited)]).rule == rule
