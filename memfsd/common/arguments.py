"""What the command lines of all programs have in common."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .quote import printable

MAX_SHOWN = 40
"""Characters of a word that is wrong."""


class Parser(argparse.ArgumentParser):
    """A usage error is one line that says where the usage is explained; --help keeps line breaks."""

    def __init__(self, **given: object) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **given})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        message = printable(" ".join(message.split()))
        print(f"{self.prog}: {message}: see {self.prog} --help", file=sys.stderr)
        sys.exit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse makes nothing of a standard output that cannot be written; the program's exit status says it."""
        (file or sys.stderr).write(message)


def command_of(arguments: list[str]) -> str:
    """The command, of a program whose own options take no value; "" where there is none."""
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def seconds(wrong: str) -> Callable[[str], float]:
    """The type of an option: 0.1 to 3600. wrong: of another text, as in "is not a delay"."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0.1 <= value <= 3600:
            raise argparse.ArgumentTypeError(f"'{text}' {wrong}: choose 0.1 to 3600 seconds")
        return value

    return parse


def count(text: str) -> int:
    """The type of an option: 1 to 2^31."""
    value = number(text, (1 << 31) + 1)
    if not value:
        raise argparse.ArgumentTypeError(f"'{text[:MAX_SHOWN]}' is not a count: choose 1 or more")
    return value


def number(text: str, end: int) -> int | None:
    """Digits that are less than end; None: anything else."""
    is_short = len(text.lstrip("0")) <= len(str(end))  # of very long ones int() raises
    value = int(text) if text.isascii() and text.isdigit() and is_short else end
    return value if value < end else None
