"""What the commands of the monitor do. Called from the thread of a client: nothing here is the script's alone."""

import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from kvmsim.kvm.alias import Alias
from kvmsim.kvm.statistics import vcpu_statistics
from kvmsim.kvm.vcpu import Vcpu
from kvmsim.shell import info
from kvmsim.shell.execute import Executor
from kvmsim.shell.script import commands as c
from kvmsim.shell.script.grammar import INFO_TOPICS, parse_line
from kvmsim.shell.script.words import ScriptError
from kvmsim.shell.script_vm import ScriptVm
from memfsd.common.qmp import QmpError
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_QMP_PAGE, STOP_DEADLINE_S

from . import state
from .protocol import Request, version
from .schema import BY_NAME, COMMANDS, check_arguments

Arguments = dict[str, Any]

_NEGOTIATE = "qmp_capabilities"
_HELP = {
    "help": "info TOPIC [vm=NAME], info ept GPA -- what the script language shows; info lists the topics\r\n",
    "info": "".join(f"info {topic}\r\n" for topic in INFO_TOPICS),
}
"""As qmp-shell -H asks for names to complete."""


class Server(Protocol):
    """What the commands ask of what serves them."""

    @property
    def sockets(self) -> list[str]: ...

    @property
    def client_count(self) -> int: ...

    @property
    def dropped_events(self) -> int: ...

    dropped_clients: int

    def emit(self, name: str, data: Arguments) -> None: ...


_MAX_PATTERN = 64
"""Of the events of a trace: none has so long a name."""


class Handlers:
    """Of one process. What a client may ask depends on whether it has negotiated."""

    def __init__(self, executor: Executor, server: Server) -> None:
        self._executor = executor
        self._server = server
        self._handlers: dict[str, Callable[[Arguments], object]] = {
            "query-commands": lambda _: [{"name": command.name} for command in COMMANDS],
            "query-version": lambda _: version(),
            "query-name": lambda _: {"name": executor.current.vm.name},
            "query-status": self._status,
            "query-kvm": lambda _: {"enabled": True, "present": True},
            "query-cpus-fast": lambda given: state.cpus(self._machine(given)),
            "query-stats": self._stats,
            "query-stats-schemas": self._stats_schemas,
            "query-vms": self._vms,
            "query-memslots": self._memslots,
            "query-ept": self._ept,
            "query-memory": lambda given: state.memory(self._machine(given)),
            "query-monitor": self._monitor,
            "stop": self._stop,
            "cont": self._cont,
            "human-monitor-command": self._human,
            "trace-event-set-state": self._trace,
            "quit": lambda _: {},  # and then, when it is answered, the server does
        }

    def execute(self, request: Request, *, negotiated: bool) -> object:
        """What it answers. QmpError."""
        if (request.name == _NEGOTIATE) == negotiated or request.name not in BY_NAME:
            raise QmpError(
                f"The command {request.name[:64]} has not been found"
                if negotiated
                else f"Expecting capabilities negotiation with '{_NEGOTIATE}'",
                "CommandNotFound",
            )
        check_arguments(BY_NAME[request.name], request.arguments)
        if request.name == _NEGOTIATE:
            if request.arguments.get("enable"):
                raise QmpError("there are no capabilities to enable: leave 'enable' out")
            return {}
        try:
            return self._handlers[request.name](request.arguments)
        except Refused as refused:
            raise QmpError(str(refused)) from None

    # -- VMs

    def _machine(self, given: Arguments) -> ScriptVm:
        return self._executor.machine(given.get("vm"))

    def _machines(self, given: Arguments) -> list[ScriptVm]:
        return [self._machine(given)] if "vm" in given else list(self._executor.machines.values())

    def _status(self, given: Arguments) -> object:
        stopped = self._machine(given).vmm.is_stopped
        return {"running": not stopped, "status": "paused" if stopped else "running"}

    def _vms(self, _: Arguments) -> object:
        machines = self._executor.machines
        facts = info.vms(machines, self._executor.current)[0]
        assert isinstance(facts, list)
        return [{**fact, "running": not machines[fact["vm"]].vmm.is_stopped} for fact in facts]

    def _memslots(self, given: Arguments) -> object:
        return state.memslots(self._machine(given), given.get("from", 0), given.get("limit", MAX_QMP_PAGE))

    def _ept(self, given: Arguments) -> object:
        alias = Alias[given.get("space", "private").upper()]
        return state.mappings(self._machine(given), alias, given.get("gpa", 0), given.get("limit", MAX_QMP_PAGE))

    def _stop(self, given: Arguments) -> object:
        late = []
        for machine in self._machines(given):
            was_stopped = machine.vmm.is_stopped
            if not machine.vmm.stop(STOP_DEADLINE_S):
                late.append(quoted(machine.vm.name))
            if not was_stopped:
                self._server.emit("STOP", {"vm": machine.vm.name})
        if late:
            raise QmpError(
                f"a vCPU of VM {', '.join(late)} has not left KVM_RUN within {STOP_DEADLINE_S:g} s: it waits for the"
                " store, and stays out when it comes; cont lets it run on"
            )
        return {}

    def _cont(self, given: Arguments) -> object:
        for machine in self._machines(given):
            if machine.vmm.is_stopped:
                machine.vmm.cont()
                self._server.emit("RESUME", {"vm": machine.vm.name})
        return {}

    # -- statistics, as QEMU's query-stats

    def _stats(self, given: Arguments) -> object:
        machine, names = self._machine(given), _names(given.get("providers"))
        if names is None:
            return []
        if given["target"] == "vm":
            return [{"provider": "kvm", "stats": _chosen(state.counters(machine), names)}]
        vcpus = sorted(machine.vm.vcpus.values(), key=lambda vcpu: vcpu.id)
        return [
            {
                "provider": "kvm",
                "qom-path": state.qom_path(vcpu),
                "stats": _chosen(vcpu_statistics(vcpu), names),
            }
            for vcpu in _of_paths(vcpus, given.get("vcpus"))
        ]

    def _stats_schemas(self, _: Arguments) -> object:
        machine = self._executor.current
        targets = {"vm": state.counters(machine), "vcpu": vcpu_statistics(next(iter(machine.vm.vcpus.values())))}
        return [
            {
                "provider": "kvm",
                "target": target,
                "stats": [{"name": name, "type": state.kind_of(name)} for name in counters],
            }
            for target, counters in targets.items()
        ]

    # -- others

    def _monitor(self, _: Arguments) -> object:
        return {
            "pid": os.getpid(),
            "sockets": self._server.sockets,
            "clients": self._server.client_count,
            "clients-dropped": self._server.dropped_clients,
            "events-dropped": self._server.dropped_events,
        }

    def _human(self, given: Arguments) -> object:
        line = given["command-line"].strip()
        topics = ", ".join(INFO_TOPICS)
        if line in _HELP:
            return _HELP[line]
        try:
            command = parse_line(line, 1)
        except ScriptError as error:
            raise QmpError(f"column {error.column}: {error.message}") from None
        if not isinstance(command, c.Info):
            raise QmpError(f"a monitor only looks: give info TOPIC, of {topics}")
        _, text = self._executor.info(command.what, self._executor.machine(command.vm), command.gpa)
        return "".join(f"{line}\r\n" for line in text.splitlines())

    def _trace(self, given: Arguments) -> object:
        switch, pattern = self._executor.switch_events, given["name"]
        if len(pattern) > _MAX_PATTERN:
            raise QmpError(
                f"no event has a name as long as {quoted(pattern[:_MAX_PATTERN])}: kvmsim trace list shows them"
            )
        if switch is not None:
            switch(pattern, on=given["enable"])
        elif not given.get("ignore-unavailable"):
            raise QmpError("no trace is written whose events could be switched: start kvmsim with --trace FILE")
        return {}


def _names(providers: list[Any] | None) -> set[str] | None:
    """Names that are asked for; an empty set: all; None: kvm is not asked."""
    if providers is None:
        return set()
    for provider in providers:
        if not isinstance(provider, dict) or provider.get("provider") != "kvm":
            raise QmpError("Parameter 'providers' does not accept it: give [{'provider': 'kvm', 'names': [...]}]")
        names = provider.get("names", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise QmpError("Invalid parameter type for 'providers[].names', expected: array of strings")
        return set(names)
    return None


def _chosen(counters: dict[str, int], names: set[str]) -> list[dict[str, object]]:
    return [{"name": name, "value": value} for name, value in counters.items() if not names or name in names]


def _of_paths(vcpus: list[Vcpu], paths: list[Any] | None) -> Iterable[Vcpu]:
    """QEMU's message for a path that is none."""
    if paths is None:
        return vcpus
    by_path = {state.qom_path(vcpu): vcpu for vcpu in vcpus}
    for path in paths:
        if not isinstance(path, str) or path not in by_path:
            raise QmpError(f"Device '{path}' not found: see qom-path in query-cpus-fast", "DeviceNotFound")
    return [by_path[path] for path in paths]
