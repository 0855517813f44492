"""How far a program is, by its registers; and what its next instructions do."""

import pytest

from kvmsim.instruments.race.programs import PROGRAMS, Does

TIMES = 3


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_instruction_is_counted_once(name: str) -> None:
    """Followed by hand through the loop."""
    program = PROGRAMS[name]
    lengths = [len(part) for part, _ in program.loop] + [2, 2]
    done = 0
    for left in range(TIMES, 0, -1):
        offset = 0
        for number, length in enumerate(lengths):
            counted = left - (number == len(lengths) - 1)
            assert program.retired(offset, counted, TIMES) == done
            offset += length
            done += 1
    assert program.retired(offset, 0, TIMES) == done
    assert program.retired(len(program.code), 0, TIMES) == done + 1 == program.length(TIMES)


def test_what_the_instructions_do() -> None:
    program = PROGRAMS["store"]
    around = [Does.STORE, Does.LOAD, Does.NOTHING, Does.NOTHING]
    assert program.effects(0, program.length(TIMES), TIMES) == around * TIMES
    assert program.effects(5, 7, TIMES) == [Does.LOAD, Does.NOTHING]
    assert program.effects(len(around) * TIMES, 99, TIMES) == [], "HLT touches nothing"
