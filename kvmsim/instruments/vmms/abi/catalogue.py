"""All situations, run on every ABI: each with its own store and VMs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from memfsd.uapi.abi import ABIS, Abi

from .bench import Answer, Bench, CannotBegin
from .files import FILES
from .pages import PAGES


class Situation(NamedTuple):
    """about: what is asked. run: asks it."""

    name: str
    about: str
    run: Callable[[Bench], None]


class Result(NamedTuple):
    """answers: by the ABI's name, in the order in which they were asked."""

    situation: Situation
    answers: dict[str, list[Answer]]

    @property
    def differs(self) -> bool:
        """Between ABIs. Reasons are for people, and name the ABI."""
        return len({said(answers) for answers in self.answers.values()}) > 1


def _of(run: Callable[[Bench], None]) -> Situation:
    about = " ".join((run.__doc__ or "").split())
    return Situation(run.__name__.replace("_", "-"), about.rstrip("."), run)


SITUATIONS = tuple(map(_of, (*FILES, *PAGES)))


def run(situation: Situation, abis: Sequence[Abi] = tuple(ABIS.values())) -> Result:
    """One situation."""
    return Result(situation, {abi.name: _answers(situation, abi) for abi in abis})


def _answers(situation: Situation, abi: Abi) -> list[Answer]:
    bench = Bench(abi)
    try:
        situation.run(bench)
    except CannotBegin:
        pass
    finally:
        bench.close()
    return bench.answers


def said(answers: Sequence[Answer]) -> str:
    """In one line."""
    return "; ".join(f"{answer.asked}: {answer.answer}" for answer in answers)
