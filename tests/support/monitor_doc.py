"""The reference of the monitor in docs/monitor.md, from its schema: `python -m tests.support.monitor_doc` writes it."""

from pathlib import Path

from kvmsim.instruments.monitor.schema import COMMANDS, EVENTS, Argument, Command, Event

FILE = Path(__file__).parents[2] / "docs/monitor.md"
_BEGIN, _END = "<!-- reference: rendered -->\n", "<!-- end -->\n"


def render() -> str:
    qemus = [command for command in COMMANDS if command.is_qemus]
    ours = [command for command in COMMANDS if not command.is_qemus]
    return "\n".join(
        [
            "### QEMU's commands\n",
            *map(_command, qemus),
            "### This project's commands\n",
            *map(_command, ours),
            "### Events\n",
            *map(_event, EVENTS),
        ]
    )


def _command(command: Command) -> str:
    lines = [f"**{command.name}**: {command.doc}\n", f"Returns `{command.returns}`.\n"]
    lines += [_argument(argument) for argument in command.arguments]
    return "\n".join(lines) + ("\n" if command.arguments else "")


def _argument(argument: Argument) -> str:
    kind = " or ".join(f"`{choice}`" for choice in argument.choices) or argument.type
    limit = f" up to {argument.most:#x}" if argument.most is not None else ""
    return f"* `{argument.name}` ({kind}{limit}{', required' if argument.required else ''}): {argument.doc}"


def _event(event: Event) -> str:
    members = ", ".join(f"`{name}` ({kind})" for name, kind in event.data.items())
    return f"**{event.name}**{'' if event.is_qemus else ' (ours)'}: {event.doc}\n\nData: {members}.\n"


def documented() -> str:
    return FILE.read_text().split(_BEGIN)[1].split(_END)[0]


def main() -> None:
    before, rest = FILE.read_text().split(_BEGIN)
    FILE.write_text(before + _BEGIN + render() + _END + rest.split(_END)[1])


if __name__ == "__main__":
    main()
