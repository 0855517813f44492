"""The commands and events of the monitor: names, arguments, what is answered. The document is rendered from here."""

from dataclasses import dataclass, field
from typing import Any

from memfsd.common.qmp import QmpError
from memfsd.uapi.limits import MAX_QMP_PAGE, MAX_VCPUS

_TYPES: dict[str, type | tuple[type, ...]] = {"string": str, "integer": int, "boolean": bool, "array": list}


@dataclass(frozen=True, slots=True)
class Argument:
    """Of a command."""

    name: str
    type: str
    """Of JSON, as QEMU's messages name it."""
    doc: str
    required: bool = False
    choices: tuple[str, ...] = ()
    most: int | None = None
    """Of an integer, whose least is 0."""


@dataclass(frozen=True, slots=True)
class Command:
    """What it takes and answers; `returns` names the members."""

    name: str
    doc: str
    returns: str
    arguments: tuple[Argument, ...] = ()
    is_qemus: bool = True
    """Else this project's."""


@dataclass(frozen=True, slots=True)
class Event:
    """What comes by itself, with these members and their types."""

    name: str
    doc: str
    data: dict[str, str] = field(default_factory=dict)
    is_qemus: bool = True


_VM = Argument("vm", "string", "the VM's name (default: the current one)")
_MAX_GPA = (1 << 48) - 1

COMMANDS = (
    Command(
        "qmp_capabilities",
        "Ends the negotiation: the first command of each client.",
        "{}",
        (Argument("enable", "array", "capabilities to enable: there are none, so it is empty"),),
    ),
    Command("query-commands", "All commands.", '[{"name"}]'),
    Command("query-version", "kvmsim's version, in QEMU's shape.", '{"qemu": {"major", "minor", "micro"}, "package"}'),
    Command("query-name", "The current VM's name.", '{"name"}'),
    Command(
        "query-status",
        "Does the VM run? `running` is false and `status` is `paused` after `stop`.",
        '{"running", "status"}',
        (_VM,),
    ),
    Command("query-kvm", "There is a KVM, the simulated one.", '{"enabled", "present"}'),
    Command(
        "query-cpus-fast",
        "vCPUs. `thread-id` is the process, since a vCPU is run by whatever thread has a command for it; `state` is"
        " `idle`, `running`, or `under way` when the rest of an access waits for `resume`, and `exit` why it came"
        " back.",
        '[{"cpu-index", "qom-path", "thread-id", "target", "state", "exit"}]',
        (_VM,),
    ),
    Command(
        "query-stats",
        "Counters, in QEMU's shape: those of `info stats` and `info mmu` for the VM; those of each vCPU.",
        '[{"provider": "kvm", "qom-path"?, "stats": [{"name", "value"}]}]',
        (
            Argument("target", "string", "of what", required=True, choices=("vm", "vcpu")),
            Argument("vcpus", "array", "qom-paths: of these vCPUs only"),
            Argument("providers", "array", '[{"provider": "kvm", "names": [...]}]: these counters only'),
            _VM,
        ),
    ),
    Command(
        "query-stats-schemas",
        "What query-stats answers: `cumulative` counters since the VM was made, `instant` values of now.",
        '[{"provider", "target", "stats": [{"name", "type"}]}]',
        (Argument("provider", "string", "of this one", choices=("kvm",)),),
    ),
    Command(
        "stop",
        "Every vCPU leaves KVM_RUN between two accesses of its guest, and none enters until `cont`; the store can take"
        " memory back as before. GenericError when one is still on its way out after 5 s: it waits for the store, and"
        " stays out then.",
        "{}",
        (Argument("vm", "string", "the VM's name (default: all VMs of the process)"),),
    ),
    Command(
        "cont",
        "vCPUs run on.",
        "{}",
        (Argument("vm", "string", "the VM's name (default: all VMs of the process)"),),
    ),
    Command(
        "human-monitor-command",
        "`info TOPIC [vm=NAME]` of the script language, as a person reads it, also `info ept GPA`; `help` says how.",
        "a string",
        (
            Argument("command-line", "string", "the line", required=True),
            Argument("cpu-index", "integer", "ignored, as no topic is of a vCPU", most=MAX_VCPUS - 1),
        ),
    ),
    Command(
        "trace-event-set-state",
        "Events of `--trace FILE` on or off, while VMs run; an event that was chosen with a filter keeps it. A"
        " GenericError without --trace.",
        "{}",
        (
            Argument(
                "name",
                "string",
                "events as for -e: [SYSTEM:]EVENT or SYSTEM, with * and ?",
                required=True,
            ),
            Argument("enable", "boolean", "on or off", required=True),
            Argument("ignore-unavailable", "boolean", "no error without --trace: then {}"),
        ),
    ),
    Command("quit", "The process ends in order, with exit status 0: SHUTDOWN, then the end of the connection.", "{}"),
    Command(
        "query-vms",
        "All VMs of the process; `stores` says of each pairing `connected`, or why it was lost.",
        '[{"vm", "current", "running", "vcpus", "slots", "policy", "stores"}]',
        is_qemus=False,
    ),
    Command(
        "query-memslots",
        f"Memslots of both address spaces, at most {MAX_QMP_PAGE}, by space and GPA; `segments` are what a punched slot"
        " still shows. `next`, if there is one, is the `from` that goes on.",
        '{"slots": [{"id", "space", "gpa", "size", "flags", "offset", "file", "segments"}], "total", "next"?}',
        (
            Argument("from", "integer", "number of the first one (default 0)", most=1 << 20),
            Argument("limit", "integer", f"how many (default {MAX_QMP_PAGE})", most=MAX_QMP_PAGE),
            _VM,
        ),
        is_qemus=False,
    ),
    Command(
        "query-memory",
        "What memory costs the host, in bytes for which the kernel has memory: `private` in the windows of the files,"
        " `shared` where the host reaches it, `doubled` in both for one GPA, `punched` what slots have and do not show."
        " `held-twice` names the first 1024 ranges of GPAs.",
        '{"private", "shared", "doubled", "punched", "files": [{"inode", "file", "private", "doubled", "punched"}],'
        ' "held-twice": [{"gpa", "size"}]}',
        (_VM,),
        is_qemus=False,
    ),
    Command(
        "query-ept",
        f"Mapped runs of one EPT, at most {MAX_QMP_PAGE}, by GPA: `pfn` is the first frame in the memory behind them"
        " (of private ones, the store's), `page-size` that of their leaves. `next`, if there is one, is the `gpa` that"
        " goes on.",
        '{"mappings": [{"gpa", "size", "pfn", "page-size", "memory-type"}], "next"?}',
        (
            Argument("space", "string", "which EPT (default private)", choices=("shared", "private")),
            Argument("gpa", "integer", "where to begin (default 0)", most=_MAX_GPA),
            Argument("limit", "integer", f"how many (default {MAX_QMP_PAGE})", most=MAX_QMP_PAGE),
            _VM,
        ),
        is_qemus=False,
    ),
    Command(
        "query-monitor",
        "The monitor itself: clients now, clients that were disconnected since they read nothing, and events that were"
        " dropped since too many waited.",
        '{"pid", "sockets", "clients", "clients-dropped", "events-dropped"}',
        is_qemus=False,
    ),
)

EVENTS = (
    Event("STOP", "A VM was stopped.", {"vm": "string"}),
    Event("RESUME", "It runs again.", {"vm": "string"}),
    Event(
        "SHUTDOWN",
        "The process ends, and the connection after it. `reason` is `host-qmp-quit`, `host-signal` (Ctrl-C), or"
        " `host-ui`: the script or the prompt has ended.",
        {"guest": "boolean", "reason": "string"},
    ),
    Event(
        "MEMORY_ERROR",
        "KVM_EXIT_MEMORY_ERROR that user space does not repair: the fields of kvm_run.memory_error, and `errno` and"
        " `why` when a slot covers the range and its page cannot be had.",
        {
            "vm": "string",
            "cpu-index": "integer",
            "gpa": "integer",
            "size": "integer",
            "private": "boolean",
            "explicit": "boolean",
            "illegal": "boolean",
            "errno?": "integer",
            "hwpoison?": "boolean",
            "why?": "string",
        },
        is_qemus=False,
    ),
    Event(
        "INVALIDATE",
        "The store takes file pages back: they are unmapped, and every vCPU was out of the guest once; it is being"
        " acknowledged. `ranges` are their GPAs and sizes, at most 64, and `more` is how many others there are.",
        {
            "vm": "string",
            "inode": "integer",
            "offset": "integer",
            "size": "integer",
            "reason": "string",
            "ranges": "array",
            "more": "integer",
        },
        is_qemus=False,
    ),
    Event(
        "CONVERSION",
        "User space has converted memory for the guest, by its policy.",
        {"vm": "string", "gpa": "integer", "size": "integer", "private": "boolean"},
        is_qemus=False,
    ),
    Event(
        "PAIRING_LOST",
        "The store of a file is gone, or has revoked it: everything that came from it is unmapped.",
        {"vm": "string", "inode": "integer", "why": "string"},
        is_qemus=False,
    ),
)

BY_NAME = {command.name: command for command in COMMANDS}


def check_arguments(command: Command, given: dict[str, Any]) -> None:
    """QmpError in QEMU's words when they are not those of the command."""
    known = {argument.name: argument for argument in command.arguments}
    for name in given:
        if name not in known:
            raise QmpError(f"Parameter '{name}' is unexpected")
    for argument in command.arguments:
        if argument.name in given:
            _check(argument, given[argument.name])
        elif argument.required:
            raise QmpError(f"Parameter '{argument.name}' is missing")


def _check(argument: Argument, value: Any) -> None:
    if not isinstance(value, _TYPES[argument.type]) or (argument.type == "integer" and isinstance(value, bool)):
        raise QmpError(f"Invalid parameter type for '{argument.name}', expected: {argument.type}")
    if argument.choices and value not in argument.choices:
        raise QmpError(f"Parameter '{argument.name}' does not accept value '{value}': give {_or(argument.choices)}")
    if isinstance(value, int) and argument.most is not None and not 0 <= value <= argument.most:
        raise QmpError(f"Parameter '{argument.name}' expects a value from 0 to {argument.most}")


def _or(words: tuple[str, ...]) -> str:
    return " or ".join(words)
