"""Records which functions of memfsd and kvmsim each test executes, in pytest and in every process that a test starts.

The workplace's .venv imports this at the start of each interpreter. With MUTATE_RECORD=FILE one line per test and
function is appended: the value of PYTEST_CURRENT_TEST, which children inherit, and FILE:FUNCTION. It is written at
once, because daemons are killed and children leave by _exit(2).
"""

import os
import sys
import threading
from types import CodeType, FrameType


def start(log: str, root: str) -> None:
    beginnings = tuple(os.path.join(root, package) + os.sep for package in ("memfsd", "kvmsim"))
    fd = _high(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644))
    seen: set[tuple[str, CodeType]] = set()
    foreign: set[CodeType] = set()
    environ = os.environ

    def called(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or code in foreign:
            return
        test = environ.get("PYTEST_CURRENT_TEST", "")
        if (test, code) in seen:
            return
        if not code.co_filename.startswith(beginnings):
            foreign.add(code)
            return
        seen.add((test, code))
        function = code.co_qualname.split(".<locals>")[0]  # type: ignore[attr-defined, unused-ignore]
        os.write(fd, f"{test}\t{code.co_filename[len(root) + 1 :]}:{function}\n".encode())

    threading.setprofile(called)
    sys.setprofile(called)


def _high(fd: int) -> int:
    """Out of the way of tests that count or close low descriptors."""
    import fcntl

    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200)
    os.close(fd)
    return high


if "MUTATE_RECORD" in os.environ:
    start(os.environ["MUTATE_RECORD"], os.environ["MUTATE_ROOT"])
