"""`kvmsim top`: a VM that runs, on a full screen."""

import argparse
import json
import shutil
import sys
import time

from kvmsim.instruments.monitor.command import path_of, running_vms
from memfsd.common import fullscreen
from memfsd.common.arguments import count, seconds
from memfsd.common.lines import plain
from memfsd.common.qmp import Client, Facts, QmpError
from memfsd.common.quote import printable, quoted
from memfsd.uapi.errors import PeerLost, Refused, errno_name

from .vm_view import VmView
from .watching import Watched

_EPILOG = """\
VM is a pid, a VM's name, or a socket's path; without it, the only one that runs. It is asked through its monitor.
  a second         faults handled, pages converted, invalidations, exits, EPT entries zapped, messages to the store
  memory           what the kernel has memory for: held twice is what is both private and shared, and costs double
  EPT              leaves of each size, and page tables
  pool, nodes      of the store, when a file of the VM can be seen from here
  map              a letter for so many pages; what has changed is in reverse
q and Ctrl-C quit. Without a terminal, and with --json, views follow each other. On a terminal it needs rich
(pip install 'memfsd[top]').

examples:
  kvmsim top                        the VM that runs
  kvmsim top vm0 -d 0.2
  kvmsim top 4711 --once --json     one JSON object

exit status: 0 quit, or the VM has ended; 1 no such VM runs, 2 usage
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Watch a VM that runs: slots, EPT, rates, memory and a map of its pages."
    parser.epilog = _EPILOG
    parser.add_argument("vm", nargs="?", metavar="VM", help="a pid, a VM's name, or a socket's path")
    parser.add_argument(
        "-d", "--delay", type=seconds("is no delay"), default=1.0, metavar="SECONDS", help="between views (default 1)"
    )
    parser.add_argument("-n", "--count", type=count, default=0, metavar="N", help="stop after N views")
    parser.add_argument("--once", dest="count", action="store_const", const=1, help="one view")
    parser.add_argument("--json", action="store_true", help="a JSON object for each view")


def command(asked: argparse.Namespace) -> int:
    seen: list[str] = []
    try:
        path, name = _which(asked.vm)
        with Client(path) as client:
            watched = Watched(client, name)
            _watch(asked, watched, seen)
    except (PeerLost, QmpError) as lost:
        if not seen:
            return _failed(str(lost))
        if not asked.json:
            print(f"{quoted(seen[0])} has ended")
    except Refused as refused:
        return _failed(f"{refused.reason} ({errno_name(refused.errno)})")
    except KeyboardInterrupt:
        if not seen:
            raise
    return 0


def _failed(why: str) -> int:
    print(f"kvmsim: {printable(why)}", file=sys.stderr)
    return 1


def _which(vm: str | None) -> tuple[str, str]:
    """The socket, and the VM's name if that is what was given. PeerLost."""
    if vm is not None:
        return path_of(vm), "" if "/" in vm or vm.isdigit() else vm
    running = list(running_vms())
    if len(running) == 1:
        return str(running[0]["socket"]), str(running[0]["vm"])
    why = "several VMs run: name one" if running else "no kvmsim of yours runs with a monitor"
    raise PeerLost(f"{why}: see 'kvmsim monitor'")


def _watch(asked: argparse.Namespace, watched: Watched, seen: list[str]) -> None:
    view = VmView()

    def look() -> Facts:
        facts = watched.look()
        seen.append(facts["vm"])
        view.advance()
        return facts

    def draw() -> fullscreen.Draw:
        facts = look()
        return lambda columns, rows: view.lines(facts, columns, rows)

    if not asked.json and asked.count != 1 and fullscreen.is_possible():
        fullscreen.show(draw, asked.delay, asked.count)
        return
    while True:
        facts = look()
        if asked.json:
            print(json.dumps(facts), flush=True)
        else:
            columns, rows = shutil.get_terminal_size()
            print("\n".join(plain(line, columns) for line in view.lines(facts, columns, rows)), flush=True)
        if len(seen) == asked.count:
            return
        time.sleep(asked.delay)
