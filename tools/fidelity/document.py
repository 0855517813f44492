"""docs/fidelity-guest-memfd.md, made from the list of reasons."""

from collections.abc import Sequence
from pathlib import Path

from .reasons import REASONS, UNASKED
from .vectors import Vector

DOCUMENT = Path(__file__).parents[2] / "docs" / "fidelity-guest-memfd.md"


def render(vectors: Sequence[Vector]) -> str:
    groups: dict[str, list[int]] = {}
    for vector in vectors:
        counted = groups.setdefault(vector.group, [0, 0])
        counted[0] += 1
        counted[1] += len(vector.ops)
    lines = [
        "# Fidelity: guest_memfd on a mount beside the kernel's",
        "",
        "<!-- Made by `tools/oracle --render` from tools/fidelity/reasons.py: edit that. -->",
        "",
        "The cases of `tests/fidelity/guest-memfd.json` were recorded on a real guest_memfd (Linux 6.18, x86-64),",
        "op by op. `tools/oracle` asks them of /dev/kvm and of a memfsd that it mounts, and prints every",
        "op that is answered otherwise, with the reason from this page; one without a reason is a fault.",
        "`tests/fidelity` holds the recording to it. `tools/oracle --record FILE` makes another recording.",
        "",
        "| group | cases | ops |",
        "|---|---|---|",
        *(f"| {group} | {cases} | {ops} |" for group, (cases, ops) in sorted(groups.items())),
        "",
        "## What differs",
    ]
    for reason in REASONS:
        lines += ["", f"### {reason.title}", "", reason.why]
    lines += ["", "## What no case asks"]
    for title, why in UNASKED:
        lines += ["", f"### {title}", "", why]
    return "\n".join([*lines, ""])
