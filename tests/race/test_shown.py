"""Which page a guest's access is of, while slots come and go."""

import pytest

from kvmsim.instruments.race import diagram, explore
from kvmsim.instruments.race.history import History
from kvmsim.instruments.race.scenario import parse
from kvmsim.instruments.race.shown import SlotHistory


def test_a_page_is_of_the_slot_that_is_there() -> None:
    history = History()
    shown = SlotHistory(history)
    assert shown.at("vm0", 8) == []
    shown.making("vm0", 1, "a", 8, 2, 4)
    assert shown.at("vm0", 9) == [("a", 3)]
    assert shown.at("vm0", 12) == shown.at("vm0", 7) == shown.at("vm1", 9) == []
    assert shown.of_slot("vm0", 1) == [("a", 2), ("a", 3), ("a", 4), ("a", 5)]
    since = history.tick()
    shown.deleted("vm0", 1)
    shown.making("vm0", 1, "b", 8, 0, 1)
    assert shown.at("vm0", 8) == [("b", 0)]
    assert shown.at("vm0", 8, since) == [("a", 2), ("b", 0)], "an access that began before saw one of both"


def test_a_slot_that_was_refused_never_was() -> None:
    shown = SlotHistory(History())
    shown.making("vm0", 1, "a", 0, 0, 4)
    shown.refused(shown.making("vm0", 1, "b", 0, 0, 4))
    assert shown.at("vm0", 0) == [("a", 0)]


@pytest.mark.parametrize(
    "setup",
    [
        "before vmm: slot 0 a 0 0 4; delete 0; slot 0 b 0 0 4\nvcpu0: write 0 x; read 0",
        "before vmm: slot 0 a 0 0 4\nbefore vcpu0: write 0 x\nvmm: delete 0; slot 0 b 0 0 4\nvcpu0: write 0 y; read 0",
        "before vmm: slot 1 b 0 0 4\nvmm: slot 0 a 0 0 4\nvcpu0: write 0 y; read 0",
    ],
)
def test_another_slot_at_the_same_gfn_is_no_failure(setup: str) -> None:
    scenario = parse("two files", f"file a 4\nfile b 4\nvm vm0\n{setup}\nhost: punch b 0 1\n")
    for result in explore.seeded(scenario, 4, 60):
        assert result.failures == [], "\n" + diagram.draw(result)
