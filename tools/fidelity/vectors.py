"""Recorded cases of guest_memfd: {"meta", "cases": [{"name", "ops": [{"op", "args", "as"?, <outcome>}], "note"?}]}."""

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .outcomes import Outcome

_OUTCOME = ("result", "errno", "signal", "si_code", "skipped")


@dataclass(frozen=True)
class Vector:
    """A case. An op is {"op", "args", "as"?}; `recorded` has an outcome for each."""

    name: str
    ops: tuple[dict[str, Any], ...]
    recorded: tuple[Outcome, ...]
    note: str = ""

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]

    def is_of(self, groups: Sequence[str]) -> bool:
        """A group is a name's beginning, of whole parts: fd, fd/mmap. None at all: every case."""
        return not groups or any(self.name == group or self.name.startswith(f"{group}/") for group in groups)


def load(path: Path) -> tuple[Vector, ...]:
    """OSError; ValueError says what is wrong with the file."""
    try:
        return tuple(_vector(case) for case in json.loads(path.read_text())["cases"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no recording of cases: {error!r}") from None


def _vector(case: dict[str, Any]) -> Vector:
    ops = tuple({key: value for key, value in op.items() if key not in _OUTCOME} for op in case["ops"])
    recorded = tuple({key: op[key] for key in _OUTCOME if key in op} for op in case["ops"])
    for op in ops:
        op["op"], op["args"]
    return Vector(case["name"], ops, recorded, case.get("note", ""))


def save(path: Path, vectors: Sequence[Vector]) -> None:
    """A recording of this machine, one op a line."""
    kernel = platform.release().partition("-")[0]
    path.write_text("\n".join(_lines({"kernel": kernel, "machine": platform.machine()}, vectors)))


def _lines(meta: dict[str, str], vectors: Sequence[Vector]) -> Iterator[str]:
    yield f'{{"meta": {json.dumps(meta)}, "cases": ['
    for at, vector in enumerate(vectors):
        note = f' "note": {json.dumps(vector.note)},' if vector.note else ""
        yield f'{{"name": {json.dumps(vector.name)},{note} "ops": ['
        ops = [json.dumps(op | outcome) for op, outcome in zip(vector.ops, vector.recorded, strict=True)]
        yield ",\n".join(f" {op}" for op in ops)
        yield "]}," if at + 1 < len(vectors) else "]}"
    yield "]}"
    yield ""
