"""What the command lines of all programs have in common."""

import argparse
import sys
from typing import Any, NoReturn

from .quote import printable


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
