"""What a use case leaves to be done outside Service.lock, before its caller is answered.

store.files.punch(ino, offset, length).run()        on a thread that may block
if work.is_quick: work.run()                        on an event loop; else on its own thread
"""

from collections.abc import Sequence

from memfsd.core.effects import Effect
from memfsd.host.effect_runner import EffectRunner

from .invalidator import InvalidateRange, Invalidator


class Work:
    """The core's effects. To be run once, also when it is empty: it costs nothing then."""

    __slots__ = ("_effects", "_runner")

    def __init__(self, runner: EffectRunner, effects: Sequence[Effect]) -> None:
        self._runner = runner
        self._effects = effects

    @property
    def is_quick(self) -> bool:
        """Short enough for an event loop."""
        return not self._effects or self._runner.is_quick(self._effects)

    def run(self) -> None:
        self._runner.perform(self._effects)


class VmWork(Work):
    """An invalidation: it waits until the file's VM has acknowledged, ETIMEDOUT if that does not come."""

    __slots__ = ("_invalidator", "_range")

    def __init__(self, invalidator: Invalidator, range_: InvalidateRange) -> None:
        self._invalidator = invalidator
        self._range = range_

    @property
    def is_quick(self) -> bool:
        return False

    def run(self) -> None:
        self._invalidator.invalidate(self._range)

    def has_vm(self) -> bool:
        """Whether it may wait."""
        return self._invalidator.has_vm(self._range.ino)

    def run_unpaired(self) -> bool:
        """All of it if that waits for no VM; False, and nothing done, if it might."""
        return self._invalidator.invalidate_unpaired(self._range)
