"""What a use case leaves to be done outside Service.lock, before its caller is answered.

store.files.punch(ino, offset, length).run()        on a thread that may block
if work.is_quick: work.run()                        on an event loop; else on its own thread
"""

from collections.abc import Sequence
from typing import Protocol

from memfsd.core.effects import Effect
from memfsd.host.effect_runner import EffectRunner


class Work(Protocol):
    """To be run once, also when it is empty: it costs nothing then."""

    @property
    def is_quick(self) -> bool:
        """Short enough for an event loop."""

    def run(self) -> None: ...


class EffectsWork:
    """The core's effects."""

    __slots__ = ("_effects", "_runner")

    def __init__(self, runner: EffectRunner, effects: Sequence[Effect]) -> None:
        self._runner = runner
        self._effects = effects

    @property
    def is_quick(self) -> bool:
        return not self._effects or self._runner.is_quick(self._effects)

    def run(self) -> None:
        self._runner.perform(self._effects)
