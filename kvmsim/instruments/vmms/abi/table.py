"""The results: for people, for programs, and as docs/abi.md. What differs between the ABIs comes first."""

from collections.abc import Sequence
from typing import Any

from .catalogue import Result, said

_INTRODUCTION = """\
# What each ABI answers

<!-- Made by `kvmsim abi --markdown`: change kvmsim/instruments/vmms/abi, not this file. -->

`kvmsim abi` runs each situation on every ABI that a mount and a VM can speak, each with its own store and VMs, and
notes what was answered. All of it was answered by the run that made this file.

Where the ABIs have different calls for one thing, each is asked by its own: a file is made by sealing it or by
KVM_CREATE_GUEST_MEMFD, bound by a private slot or by KVM_SET_USER_MEMORY_REGION2, and converted by policy `punch`, by
KVM_SET_MEMORY_ATTRIBUTES or by KVM_SET_MEMORY_ATTRIBUTES2. Guest memory is 8 pages that are private; where the file has
the attributes, it was made with the flag MMAP. Store and VMs are in one process, without a mount: what the kernel in
front of a mount answers by itself is not here ([fidelity-guest-memfd.md](fidelity-guest-memfd.md)).

"done" is success without a value, "zeros" and other words are what was read, a name in capitals is an errno or, at the
beginning, the exit with which KVM_RUN came back: MEMORY_ERROR with the alias, "explicit" and the errno of the thread's
structure, MEMORY_FAULT with the alias and the errno of KVM_RUN. "not there" is an ABI's answer to a call that it has
not.
"""


def sorted_results(results: Sequence[Result]) -> list[Result]:
    """The differences first."""
    return sorted(results, key=lambda result: not result.differs)


def text(results: Sequence[Result]) -> str:
    """ABIs that answered alike are one line."""
    lines = list[str]()
    for result in sorted_results(results):
        lines.append(f"{'differs' if result.differs else 'same':8} {result.situation.name}: {result.situation.about}")
        lines += [f"    {', '.join(names)}\n        {answer}" for answer, names in _alike(result).items()]
    return "\n".join([*lines, "", summary(results)])


def summary(results: Sequence[Result]) -> str:
    """How many differ."""
    count = sum(result.differs for result in results)
    return f"{len(results)} situations: {count} differ, {len(results) - count} are the same on every ABI"


def facts(result: Result) -> dict[str, Any]:
    """For JSON."""
    answers = {name: [answer._asdict() for answer in answers] for name, answers in result.answers.items()}
    situation = result.situation
    return {"situation": situation.name, "about": situation.about, "differs": result.differs, "answers": answers}


def markdown(results: Sequence[Result]) -> str:
    """docs/abi.md."""
    differing = [result for result in results if result.differs]
    same = [result for result in results if not result.differs]
    parts = [_INTRODUCTION, f"{summary(results)}.\n"]
    for title, rows in (("What differs", differing), ("What is the same", same)):
        parts += [f"## {title}\n", *map(_section, rows)]
    return "\n".join(parts)


def _section(result: Result) -> str:
    rows = [f"| {', '.join(names)} | {answer} |" for answer, names in _alike(result).items()]
    about = result.situation.about
    return "\n".join([f"### {result.situation.name}\n\n{about}.\n", "| abi | answer |", "| --- | --- |", *rows, ""])


def _alike(result: Result) -> dict[str, list[str]]:
    """ABIs by what they answered."""
    names: dict[str, list[str]] = {}
    for name, answers in result.answers.items():
        names.setdefault(said(answers), []).append(name)
    return names


def rows(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    """Situation, ABIs that answered alike, answer."""
    return [
        (f"{result.situation.name}: {result.situation.about}", ", ".join(names), answer)
        for result in sorted_results(results)
        for answer, names in _alike(result).items()
    ]
