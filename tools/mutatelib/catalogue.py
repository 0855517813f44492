"""All mutations of the tree, the sample that a seed draws from them, and those that are known to change nothing."""

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mutatelib.mutations import Mutation, mutations_of

PACKAGES = ("memfsd", "kvmsim")
INSTRUMENTS = ("kvmsim/instruments/race/", "kvmsim/instruments/journal/", "kvmsim/instruments/compare/")
EQUIVALENT = Path(__file__).with_name("equivalent.toml")


@dataclass(frozen=True)
class Equivalent:
    """A mutation that no test can find, by its lines, so that an entry outlives changes elsewhere in the file."""

    file: str
    function: str
    before: str
    after: str
    reason: str


def sources(root: Path, only: Sequence[str] = ()) -> dict[str, str]:
    """The text of each module that is mutated; `only` are beginnings of their paths."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    named = {str(path.relative_to(root)): path for path in paths}
    return {
        name: path.read_text()
        for name, path in named.items()
        if not name.startswith(INSTRUMENTS) and (not only or name.startswith(tuple(only)))
    }


def catalogue(texts: dict[str, str]) -> list[Mutation]:
    return [mutation for path, text in texts.items() for mutation in mutations_of(path, text)]


def sample(mutations: Sequence[Mutation], seed: int, count: int) -> list[Mutation]:
    """So many of them, in a drawn order. The first ones stay the same when more are asked for."""
    drawn = list(mutations)
    random.Random(seed).shuffle(drawn)
    return drawn[:count]


def known_equivalents(path: Path = EQUIVALENT) -> list[Equivalent]:
    return [Equivalent(**entry) for entry in tomllib.loads(path.read_text()).get("equivalent", [])]


class Equivalents:
    def __init__(self, entries: Sequence[Equivalent]) -> None:
        self._reasons = {(each.file, each.function, each.before, each.after): each.reason for each in entries}

    def reason(self, mutation: Mutation, source: str) -> str | None:
        return self._reasons.get((mutation.path, mutation.function, *mutation.lines(source)))

    def stale(self, texts: dict[str, str], mutations: Sequence[Mutation]) -> list[tuple[str, str, str, str]]:
        """Entries, for the modules at hand, of which no mutation is left: the code has changed."""
        made = {(each.path, each.function, *each.lines(texts[each.path])) for each in mutations}
        return [key for key in self._reasons if key[0] in texts and key not in made]
