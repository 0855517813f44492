"""Each seeded bug is caught; which scenario does it, after how many runs and in how many steps, is told at the end."""

import itertools

import pytest

from kvmsim.instruments.race import exhaustive, explore, minimise
from kvmsim.instruments.race.runner import Result
from kvmsim.instruments.race.scenario import load
from tests.race.choice import PAGE_MAP, chosen
from tests.race.mutants import MUTANTS, Mutant, planted
from tests.race.tally import NUMBERS

EXHAUSTIVE_RUNS = 500
RANDOM_RUNS = 100
SHORTER_TRIES = 20

KNOWN: dict[str, list[tuple[int, int]]] = {
    "page map closed after BEGIN": [(6, 352)],
    "page map read without the staleness test": [(6, 164)],
    "page map read whatever its gate says": [(6, 352)],
    "copied while a vCPU is inside": [(5, 71)],
    "a page that was taken away meanwhile counts as moved": [(6, 33)],
    "sequence read after the lookup": [(6, 65)],
    "stale check left out": [(5, 80)],
    "stale check blind for an open invalidation": [(5, 80)],
    "stale check blind for a sequence that moved": [(6, 65)],
    "stale check without the lock": [(5, 82)],
    "acknowledgement while a vCPU is inside": [(5, 79)],
    "half-open range off by one: what is stale, at its end": [(5, 80)],
    "half-open range off by one: what is stale, at its start": [(5, 80)],
    "BEGIN overtakes a slot that goes away": [(6, 2)],
    "a refusal believed of a slot that is gone": [(6, 135)],
    "tags forgotten while a vCPU is inside": [(5, 49)],
    "stale check of a large leaf left out": [(5, 80)],
    "stale check of a large leaf for the fault's page alone": [(5, 80)],
    "swap: blobs are made while a vCPU is inside": [(6, 43)],
    "swap: a page comes in without the invalidate_lock": [(6, 13)],
    "swap: what is destroyed while it comes in stays": [(6, 147)],
    "swap: what came in is not known to be there": [(6, 187)],
    "acknowledgement while machine code is inside": [(5, 33)],
    "TLB of machine code kept when its data moves": [(5, 32)],
    "tags forgotten when the store may have granted the frames again": [(6, 45)],
    "attribute read before the sequence": [(5, 71)],
    "attribute stored before the zap, by the VM": [(5, 40)],
    "attribute stored before the zap, by the file": [(5, 17)],
    "shared pages of the file shown before BEGIN finds their slot": [(6, 865)],
}
"""Seeds and numbers of random runs that catch a mutant which takes a long search: they are tried first. When the code
has changed they may catch nothing; then the mutant is searched for as the others are, which takes seconds."""

pytestmark = pytest.mark.minutes


def hunt(mutant: Mutant) -> tuple[str, int, Result] | None:
    """The scenario, the number of the run, and the shortest failing run found."""
    for name in mutant.scenarios:
        scenario = chosen(name)
        with planted(mutant):
            runs = itertools.chain(
                *(explore.seeded(scenario, seed, range(at, at + 1)) for seed, at in KNOWN.get(mutant.name, ())),
                explore.seeded(scenario, 5, RANDOM_RUNS),
                itertools.islice(exhaustive.every(scenario), EXHAUSTIVE_RUNS),
                explore.seeded(scenario, 6, mutant.random_runs),
            )
            for number, result in enumerate(runs, 1):
                NUMBERS.runs += 1
                if result.failures:
                    return name, number, minimise.minimise(scenario, result, SHORTER_TRIES)
    return None


SOUGHT = [mutant for mutant in MUTANTS if PAGE_MAP != "off" or not mutant.name.startswith("page map ")]
"""With no page map nothing of one is wrong."""


@pytest.mark.parametrize("mutant", SOUGHT, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    NUMBERS.mutants += 1
    found = hunt(mutant)
    assert found is not None, f"'{mutant.name}' survived {', '.join(mutant.scenarios)}"
    name, number, result = found
    report = f"{name}, run {number}, {len(result.steps)} steps, {minimise.switches(result.schedule)} switches"
    NUMBERS.caught[mutant.name] = f"{report}: {result.failures[0][:70]}"


def test_what_must_be_caught_is_there() -> None:
    names = " | ".join(mutant.name for mutant in MUTANTS)
    for needed in (
        "sequence read after the lookup",
        "stale check left out",
        "stale check without the lock",
        "acknowledgement before the zap",
        "acknowledgement while a vCPU is inside",
        "END left out",
        "END twice",
        "bindings changed between BEGIN and END",
        "frame freed before the acknowledgement",
        "frame not zeroed",
        "TLB flush forgotten",
        "quarantine skipped",
        "death counted before it is proven",
        "half-open range off by one",
        "attribute read after get_pfn",
        "attribute stored before the zap",
        "EAGAIN that changed something",
        "bound range released at close without zap",
    ):
        assert needed in names


def test_what_is_known_is_of_mutants_that_are_there() -> None:
    assert KNOWN.keys() <= {mutant.name for mutant in MUTANTS}


def test_a_mutant_is_gone_when_its_test_is() -> None:
    for mutant in MUTANTS:
        with planted(mutant):
            pass
    result = next(explore.seeded(load("fault-x-punch"), 1, 1))
    assert result.failures == []


def test_an_edit_that_does_not_fit_is_an_error() -> None:
    mutant = Mutant("x", (("kvmsim.kvm.mmu.mmu:Mmu.install", "no such line", "pass"),), ())
    with pytest.raises(AssertionError, match="no such line"), planted(mutant):
        pass
