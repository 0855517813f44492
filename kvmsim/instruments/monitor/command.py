"""`kvmsim monitor`: the VMs that run, and a prompt or one command for the monitor of one."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from kvmsim.shell.interrupt import Interrupt
from kvmsim.shell.prompt import prompt
from kvmsim.shell.script.grammar import INFO_TOPICS
from memfsd.common.qmp import Client, Facts, QmpError
from memfsd.common.quote import printable, quoted
from memfsd.uapi.errors import PeerLost

from .places import running
from .schema import BY_NAME, COMMANDS

_LOOK_S = 1.0
"""For each process, when all are listed."""
_LEAVE = ("exit", "leave", "q")
_HELP = f"""\
info TOPIC [vm=NAME]     {", ".join(INFO_TOPICS)}; info ept GPA: the walk to it
stop, cont [vm=NAME]     hold the vCPUs, and let them run on
quit                     ends the VM's process; exit or q leaves this prompt, and the VM runs on
COMMAND [NAME=VALUE ...] any command of QMP: {", ".join(c.name for c in COMMANDS if c.name.startswith("query"))}
Events are shown before the next prompt; an empty line looks for them. docs/monitor.md explains all."""
EPILOG = f"""\
Without VM: the processes of kvmsim that listen, of this user. VM is a pid, a VM's name, or a socket's path.
A line of the prompt, or COMMAND:
{_HELP}

examples:
  kvmsim monitor                          what runs
  kvmsim monitor vm0                      a prompt
  kvmsim monitor vm0 info memory          one command
  kvmsim monitor 4711 query-ept space=private limit=4 --json

exit status: 0 done, 1 refused, or nothing runs there, 2 usage
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("vm", nargs="?", metavar="VM", help="a pid, a VM's name, or a socket's path")
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="one command instead of a prompt")
    parser.add_argument("--json", action="store_true", help="answers, events and the list as JSON, one a line")


def monitor(asked: argparse.Namespace) -> int:
    try:
        if asked.vm is None:
            return _list(as_json=asked.json)
        with Client(path_of(asked.vm)) as client:
            session = _Session(client, as_json=asked.json)
            if asked.words:
                session.feed(" ".join(asked.words))
            elif sys.stdin is not None and sys.stdin.isatty():
                interrupt = Interrupt()
                greeting = f"{quoted(asked.vm)}: 'help' lists the commands, 'exit' leaves, and the VM runs on."
                with interrupt.listen():
                    prompt(session, interrupt, greeting, text="(monitor) ", complete=_completions)
                return 0
            else:
                for line in sys.stdin or ():
                    if not session.feed(line):
                        break
            return session.status
    except PeerLost as lost:
        return _say(str(lost))


class _Session:
    """Lines to commands of QMP."""

    is_open = False
    """Every line is a whole."""

    def __init__(self, client: Client, *, as_json: bool) -> None:
        self._client = client
        self._as_json = as_json
        self.status = 0

    def feed(self, text: str) -> bool:
        """False when nothing can follow."""
        line = text.strip()
        if line in _LEAVE:
            return False
        try:
            if line in ("help", "?"):
                print(_HELP)
            elif line:
                name, arguments = _request(line)
                self._show(self._client.ask(name, arguments))
            for event in self._client.take_events():
                print(json.dumps(event))
        except (QmpError, ValueError) as error:
            self.status = 1
            _say(error.description if isinstance(error, QmpError) else str(error))
        except PeerLost:
            if line != "quit":
                raise
            return False
        return line != "quit"

    def _show(self, value: Any) -> None:
        if self._as_json:
            print(json.dumps(value))
        elif isinstance(value, str):
            for line in value.splitlines():
                print(printable(line))
        elif value != {}:
            print(json.dumps(value, indent=2))


def _request(line: str) -> tuple[str, Facts]:
    """ValueError, with what is wrong."""
    if line.split()[0] == "info":
        return "human-monitor-command", {"command-line": line}
    name, *words = shlex.split(line)
    if name not in BY_NAME:
        raise ValueError(f"{quoted(name)} is no command of the monitor: see help")
    arguments: Facts = {}
    for word in words:
        key, given, value = word.partition("=")
        if not given:
            raise ValueError(f"{quoted(word)} is no argument: write NAME=VALUE")
        arguments[key] = _value(value)
    return name, arguments


def _value(text: str) -> Any:
    """JSON where it is, a number in hex, else the text."""
    try:
        return int(text, 16) if text.startswith("0x") else json.loads(text)
    except ValueError:
        return text


def _completions(before: str, word: str) -> list[str]:
    words = before.split()
    if words[:1] == ["info"]:
        return [f"{topic} " for topic in INFO_TOPICS if topic.startswith(word)] if len(words) == 1 else []
    if words:
        known = BY_NAME.get(words[0])
        return [f"{one.name}=" for one in known.arguments if one.name.startswith(word)] if known else []
    names = ["help", "info", "exit", *(command.name for command in COMMANDS)]
    return [f"{name} " for name in names if name.startswith(word)]


# -- which one


def _list(*, as_json: bool) -> int:
    facts = list(running_vms())
    if as_json:
        print(json.dumps(facts))
        return 0
    if not facts:
        print("no kvmsim of yours runs with a monitor")
        return 0
    print(f"{'PID':>8} {'VM':16} {'STATE':8} {'VCPUS':>5} {'SLOTS':>5} SOCKET")
    for fact in facts:
        print(
            f"{fact['pid']:>8} {quoted(fact['vm']):16} {fact['state']:8} {fact['vcpus']:>5} {fact['slots']:>5}"
            f" {quoted(fact['socket'])}"
        )
    return 0


def running_vms() -> Iterator[Facts]:
    """Every VM of every process that answers."""
    for path in running():
        try:
            with Client(path, _LOOK_S) as client:
                pid = client.ask("query-monitor")["pid"]
                for vm in client.ask("query-vms"):
                    yield {
                        "pid": pid,
                        "vm": vm["vm"],
                        "state": "running" if vm["running"] else "paused",
                        "vcpus": len(vm["vcpus"]),
                        "slots": vm["slots"],
                        "socket": path,
                    }
        except (PeerLost, QmpError):  # it ends just now, or is no kvmsim
            continue


def path_of(name: str) -> str:
    """PeerLost when it is no socket, and no one VM."""
    if "/" in name:
        return name
    found = {fact["socket"] for fact in running_vms() if name in (fact["vm"], str(fact["pid"]))}
    if len(found) == 1:
        return str(found.pop())
    why = "several processes have a VM of that name: give a pid" if found else "no VM of that name or pid runs"
    raise PeerLost(f"{quoted(name)}: {why}: see 'kvmsim monitor'")


def _say(what: str) -> int:
    print(f"kvmsim: {printable(what)}", file=sys.stderr)
    return 1
