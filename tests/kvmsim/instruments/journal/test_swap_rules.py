"""A true exchange with pages that leave and come back keeps all rules; broken in one place it is named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kvmsim.instruments.journal.check import check
from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.journaled import Line, read_lines, record_run, write_lines


def exchange(store: LocalStore, one: LocalVm, two: LocalVm) -> None:
    """Out, one in, a punch of some that are out, and all in."""
    for number in range(16):
        one.write(page(16 + number), b"data")
    two.touch(page(16), page(4))
    assert store.page_out("one") == 16
    one.read(page(20), 1)
    store.punch("one", 0, 2)
    one.touch(page(16), page(16))
    one.close()
    two.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return record_run(tmp_path_factory.mktemp("recorded"), exchange)


def test_a_true_exchange_keeps_all_rules(recorded: tuple[Path, Path]) -> None:
    verdict = check([str(path) for path in recorded])
    assert (verdict.rule, verdict.why, verdict.incomplete) == ("", "", [])


def first(lines: list[Line], kind: str, *, reply: bool) -> int:
    return next(i for i, line in enumerate(lines) if line.get("kind") == kind and line["reply"] is reply)


def a_page_is_granted_that_is_out(lines: list[Line]) -> None:
    """The SWAP_IN before its grant never was."""
    for reply in (True, False):
        del lines[first(lines, "SWAP_IN", reply=reply)]


def pages_leave_that_the_vm_keeps(lines: list[Line]) -> None:
    lines[first(lines, "INVALIDATE_BEGIN", reply=True)]["body"]["kept"] = [[3, 5]]


def pages_leave_in_a_bracket_of_another_reason(lines: list[Line]) -> None:
    lines[first(lines, "INVALIDATE_BEGIN", reply=False)]["body"]["reason"] = 0


def pages_leave_from_outside_the_bracket(lines: list[Line]) -> None:
    lines[first(lines, "SWAP_OUT", reply=False)]["body"]["pages"][0][0] += 100


@pytest.mark.parametrize("side", [0, 1], ids=["store", "vm"])
@pytest.mark.parametrize(
    "change",
    [
        a_page_is_granted_that_is_out,
        pages_leave_that_the_vm_keeps,
        pages_leave_in_a_bracket_of_another_reason,
        pages_leave_from_outside_the_bracket,
    ],
)
def test_what_is_broken_is_named(
    recorded: tuple[Path, Path], tmp_path: Path, side: int, change: Callable[[list[Line]], None]
) -> None:
    lines = read_lines(recorded[side])
    change(lines)
    path = tmp_path / "changed"
    write_lines(path, lines)
    assert check([str(path)]).rule == "swap"
