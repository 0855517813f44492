"""Slots, and what a guest finds in them, are as a real KVM answered; every difference has a reason in writing."""

from collections.abc import Callable, Iterator

import pytest
from fidelity.oracle import VECTORS, differences, ours
from fidelity.outcomes import Outcome
from fidelity.reasons import SLOT_REASONS, reason_for
from fidelity.vectors import Vector, load

GROUPS = ("slot", "gslot", "guest")
OF_SLOTS = [vector for vector in load(VECTORS) if vector.is_of(GROUPS)]
Answers = Callable[[Vector], list[Outcome]]


@pytest.fixture(scope="module")
def answers() -> Iterator[Answers]:
    with ours("gmem-6.18") as found:
        yield found


def compared(vector: Vector, found: list[Outcome]) -> tuple[dict[str, int], list[str], set[str]]:
    """Counts; differences without a reason; the reasons of the others."""
    counts, unlisted, reasons = {"asked": 0, "same": 0, "not_asked": 0}, list[str](), set[str]()
    for each in differences(vector, vector.recorded, found, counts):
        reason = reason_for(each)
        if reason is None:
            unlisted.append(f"op {each.at}, {each.op} {each.args}: {each.kvm}, and ours {each.ours}")
        else:
            reasons.add(reason.title)
    return counts, unlisted, reasons


def test_every_difference_has_a_reason_and_every_reason_is_needed(answers: Answers) -> None:
    wrong, needed, same = list[str](), set[str](), 0
    for vector in OF_SLOTS:
        counts, unlisted, reasons = compared(vector, answers(vector))
        wrong += [f"{vector.name}: {line}" for line in unlisted]
        needed |= reasons
        same += counts["same"]
    assert wrong == [], "\n".join(wrong)
    assert {reason.title for reason in SLOT_REASONS} <= needed
    assert same > 1000


def test_a_wrong_answer_is_seen(answers: Answers) -> None:
    vector = next(vector for vector in OF_SLOTS if vector.name == "guest/user64/gmem_atomics")
    found = answers(vector)
    assert compared(vector, found)[1] == []
    found[-1] = {"result": "55000000"}
    assert len(compared(vector, found)[1]) == 1
