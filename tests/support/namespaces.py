"""A command in namespaces of its own for processes and mounts, which end with it: `python -m tests.support.namespaces
COMMAND...`. However it or this process is killed, no daemon and no mount of it is left.

Where that is not permitted (not root, or a container) one line says so, and the command is run as it is.
"""

import os
import signal
import subprocess
import sys

INSIDE = "MEMFSD_OWN_NAMESPACES"
"""Set for the command: it does not ask for others."""
_UNSHARE = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--")


def main(command: list[str]) -> int:
    os.environ[INSIDE] = "1"
    why = _refusal()
    if why:
        print(f"no namespaces for this run ({why}): if it is killed, mounts may stay", file=sys.stderr)
        os.execvp(command[0], command)
    running: list[subprocess.Popen[bytes]] = []

    def end(number: int, _: object) -> None:
        if running:
            running[0].kill()  # --kill-child: its namespaces end with it
            os.waitpid(running[0].pid, 0)  # not wait(), whose lock the interrupted one holds
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    running.append(subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *_UNSHARE, *command]))
    signal.signal(signal.SIGINT, lambda *_: None)  # the command has it, too, and decides
    status = running[0].wait()
    return status if status >= 0 else 128 - status


def _refusal() -> str:
    """Why there can be none; "" when there can."""
    try:
        tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        return f"{missing.filename}: {missing.strerror}"
    return "" if tried.returncode == 0 else tried.stderr.strip().splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
