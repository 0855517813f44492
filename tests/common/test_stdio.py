"""Programs that are started without stdin, stdout or stderr."""

import os
import subprocess
import sys

import pytest

from tests.support.threads import DEADLINE_S

SHOW = """
import os, sys
from memfsd.common.stdio import fill_standard_fds
fill_standard_fds()
os.write(int(sys.argv[1]), " ".join(os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)).encode())
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_what_is_closed_becomes_dev_null_and_the_rest_stays(closed: tuple[int, ...]) -> None:
    reader, writer = os.pipe()
    closing = " ".join(f"{fd}<&-" for fd in closed)
    with subprocess.Popen(
        ["/bin/bash", "-c", f'exec {closing}; exec "$@"', "bash", sys.executable, "-c", SHOW, str(writer)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(writer,),
    ) as process:
        process.communicate(timeout=DEADLINE_S)
    os.close(writer)
    with open(reader) as shown:
        found = shown.read().split()
    assert [fd for fd in range(3) if found[fd] == "/dev/null"] == list(closed)


def test_a_closed_stdin_can_not_be_read_nor_a_closed_stdout_be_written() -> None:
    program = "from memfsd.common.stdio import fill_standard_fds as f; f(); import os; os.{}"
    for closing, call in (("<&-", "read(0, 1)"), (">&-", "write(1, b'x')")):
        done = subprocess.run(
            ["/bin/bash", "-c", f'"$@" {closing}', "bash", sys.executable, "-c", program.format(call)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.stderr.endswith("OSError: [Errno 9] Bad file descriptor\n")
