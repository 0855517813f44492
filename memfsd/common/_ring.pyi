from collections.abc import Callable, Mapping

from .traceevents import Event, Value
from .tracefilter import Predicate

class Ring:
    def __init__(
        self,
        capacity: int,
        wanted: set[Event],
        filters: Mapping[Event, Predicate | None],
        word: Callable[[str], str],
        decoders: Mapping[Event, Callable[..., tuple[Value, ...] | None]],
        /,
    ) -> None: ...
    def put(self, event: Event, task: str, values: tuple[object, ...], /) -> None: ...
    def text(self, most: int, /) -> bytes: ...
    def take_lost(self) -> int: ...
    def end(self) -> None: ...
    def __len__(self) -> int: ...
