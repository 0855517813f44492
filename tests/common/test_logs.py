"""Lines of a log: one each, whatever names they hold."""

import logging
import sys

from memfsd.common.logs import OneLine


def record(message: str, *arguments: object, failed: bool = False) -> logging.LogRecord:
    why = sys.exc_info() if failed else None
    return logging.LogRecord("memfsd", logging.INFO, __file__, 1, message, arguments, why)


def test_a_name_of_a_file_cannot_make_a_second_line_or_control_a_terminal() -> None:
    said = OneLine("%(levelname)s: %(message)s").format(record("%s is sealed", "a\nb\x1b[2J"))
    assert said == r"INFO: a\nb\033[2J is sealed"


def test_a_traceback_after_it_keeps_its_lines() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        first, *rest = OneLine().format(record("broken", failed=True)).splitlines()
    assert first == "broken"
    assert (rest[0], rest[-1]) == ("Traceback (most recent call last):", "KeyError: 'x'")
