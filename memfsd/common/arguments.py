"""What the command lines of all programs have in common."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from .quote import printable

T = TypeVar("T")

_MAX_SHOWN = 40
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


def whole(least: int, most: int, wrong: str) -> Callable[[str], int]:
    """The type of an argument: decimal digits, least to most. wrong: of another text, as in "is not a count: choose 1
    or more"."""

    def parse(text: str) -> int:
        digits = text.lstrip("0") or text[-1:]  # int() raises for very many
        value = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= len(str(most)) else -1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"'{text[:_MAX_SHOWN]}' {wrong}")
        return value

    return parse


count = whole(1, 1 << 31, "is not a count: choose 1 or more")


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The type of an argument: what `parse` returns, or its ValueError, which says what is wrong."""

    def parse_argument(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_argument
