"""Steps that all happen, or none."""

import contextlib
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import ParamSpec

from memfsd.uapi.errors import PeerLost, Refused

P = ParamSpec("P")


class Transaction:
    """In a `with` block: whoever leaves it with an exception leaves nothing of what was `did` behind.

    An undo that is refused is passed over: the store is gone then, and the memory that it would give back too. Any
    other error of one is raised, once all have been tried.
    """

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()

    def did(self, undo: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> None:
        """A step is done; this call takes it back."""
        self._undo.callback(_unless_refused, partial(undo, *arguments, **named))

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._undo.close()


def _unless_refused(undo: Callable[[], object]) -> None:
    with contextlib.suppress(Refused, PeerLost):
        undo()
