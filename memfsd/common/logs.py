"""Lines of a log, of both programs: one each, and nothing in them that controls a terminal."""

import logging

from .quote import printable


class OneLine(logging.Formatter):
    """A message may hold names of files and VMs. A traceback after it keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        return printable(super().formatMessage(record))
