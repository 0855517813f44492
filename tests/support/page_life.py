"""docs/life-of-a-page.md, drawn from the table of transitions.

`python -m tests.support.page_life` writes it.
"""

from pathlib import Path

from memfsd.core.memory.page_life import TRANSITIONS
from memfsd.uapi.frame_state import FrameState

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "life-of-a-page.md"
_BEGIN, _END = "<!-- states: rendered -->\n", "<!-- end -->"


def rendered() -> str:
    """A picture for Mermaid, and the same as a table."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> free"]
    lines += [f"    {_name(row.old)} --> {_name(row.new)}" for row in TRANSITIONS]
    lines += ["```", "", "| from | to | when | shown by |", "|---|---|---|---|"]
    for old, new, operation, test in TRANSITIONS:
        lines.append(f"| {_name(old)} | {_name(new)} | {operation} | `tests/{test}` |")
    return "\n".join(lines) + "\n"


def document(text: str) -> str:
    """The document with its picture as it should be."""
    head, rest = text.split(_BEGIN)
    return head + _BEGIN + rendered() + _END + rest.split(_END, 1)[1]


def _name(state: FrameState) -> str:
    return state.name.lower()


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text()))
