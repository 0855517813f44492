"""The recording: every case with what a real KVM answered, as JSON."""

import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from . import kvm
from .cases import Case, Op

Answer = dict[str, object]
"""{"result": 0} or {"errno": name}."""

_ANSWER_KEYS = ("result", "errno")


@dataclass(frozen=True)
class Recorded:
    """A case and its answers, one for each op."""

    case: Case
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Recording:
    """meta: kernel, machine, date."""

    meta: dict[str, str]
    cases: tuple[Recorded, ...]

    def __getitem__(self, name: str) -> Recorded:
        return next(recorded for recorded in self.cases if recorded.case.name == name)


def record(cases: Iterable[Case], date: str, progress: Callable[[str], None] = lambda name: None) -> Recording:
    """Ask the KVM of this machine. RuntimeError names the case that could not be asked."""
    recorded = []
    for case in cases:
        progress(case.name)
        try:
            answers = kvm.ask(list(case.ops))
        except RuntimeError as error:
            raise RuntimeError(f"{case.name}: {error}") from None
        recorded.append(Recorded(case, tuple(answers)))
    # Without what a distribution adds: the rules are the version's.
    meta = {"kernel": platform.release().partition("-")[0], "machine": platform.machine(), "date": date}
    return Recording(meta, tuple(recorded))


def save(recording: Recording, path: Path) -> None:
    """One op a line, so that a changed answer is a changed line."""
    lines = ["{", f' "meta": {json.dumps(recording.meta)},', ' "cases": [']
    for at, recorded in enumerate(recording.cases):
        case = recorded.case
        head = {"name": case.name} | ({"varies": case.varies} if case.varies else {})
        lines.append(f'  {json.dumps(head)[:-1]}, "ops": [')
        ops = [json.dumps(op | answer) for op, answer in zip(case.ops, recorded.answers, strict=True)]
        lines += [f"   {op}," for op in ops[:-1]]
        lines.append(f"   {ops[-1]}")
        lines.append("  ]}," if at + 1 < len(recording.cases) else "  ]}")
    path.write_text("\n".join([*lines, " ]", "}", ""]))


def load(path: Path) -> Recording:
    data = json.loads(path.read_text())
    return Recording(data["meta"], tuple(_recorded(case) for case in data["cases"]))


def _recorded(data: dict) -> Recorded:  # type: ignore[type-arg]
    ops: list[Op] = [{key: value for key, value in op.items() if key not in _ANSWER_KEYS} for op in data["ops"]]
    answers = [{key: op[key] for key in _ANSWER_KEYS if key in op} for op in data["ops"]]
    return Recorded(Case(data["name"], tuple(ops), data.get("varies", "")), tuple(answers))
