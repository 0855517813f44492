"""A run as a diagram: time goes down, a column for each task, the store's on the left and the VMs' on the right."""

from memfsd.uapi.errors import one_line

from .runner import Result
from .scheduler import Step

_WIDTH = 30


def columns(steps: list[Step]) -> list[tuple[str, str]]:
    """(process, task) of every column: the store's, then the host's, then the VMs'."""
    found = dict.fromkeys((step.task.process, step.task.name) for step in steps)
    return sorted(found, key=lambda column: (column[0] != "store", column[0] == "outside", column[0]))


def draw(result: Result) -> str:
    order = columns(result.steps)
    processes = list(dict.fromkeys(process for process, _ in order))
    head = []
    for process in processes:
        width = sum(owner == process for owner, _ in order) * _WIDTH
        head.append(f" {process} ".center(width - 2, "=") + "  ")
    lines = ["      " + "".join(head).rstrip(), "      " + "".join(_cell(name) for _, name in order).rstrip()]
    for number, step in enumerate(result.steps, 1):
        column = order.index((step.task.process, step.task.name))
        cells = ["|".ljust(_WIDTH)] * len(order)
        cells[column] = _cell(("(time) " if step.fired else "") + _short(step))
        lines.append(f"{number:4}  " + "".join(cells).rstrip())
        if step.note:
            cells[column] = _cell("> " + step.note)
            lines.append("      " + "".join(cells).rstrip())
    lines += [f"FAILED {one_line(failure)}" for failure in result.failures]
    return "\n".join(lines)


def _short(step: Step) -> str:
    """Messages without what the column shows."""
    name = step.name
    for side in ("store", "vm"):
        for channel in ("down", "up"):
            name = name.replace(f"{side} {channel} send answer to", "<< answers").replace(
                f"{side} {channel} receive answer to", ">> gets answer to"
            )
            name = name.replace(f"{side} {channel} send", "<< sends").replace(
                f"{side} {channel} receive", ">> receives"
            )
    return name


def _cell(text: str) -> str:
    text = one_line(text)
    return text.ljust(_WIDTH) if len(text) < _WIDTH - 1 else text[: _WIDTH - 3] + ".. "
