"""Scenarios: what there is before a race, who runs in it, and what is looked at afterwards.

    # fault x punch: the first comment says what it is about
    store frames=16 resize=any swap=8
    file mem 8
    vm vm0 vcpus=2 encrypted
    before vmm: slot 0 mem 0 0 8
    before vcpu0: write 1 "old"
    vcpu0: write 1 "new"; read 1
    host: punch mem 1 1
    outside: kill vm0
    after vcpu0: read 1

`store` has split=on and abi=ABI, too, and patience=SECONDS: for another invalidation of the same file. `file NAME PAGES
2M` has large pages, `file NAME PAGES init-shared` is a guest_memfd that is born shared, and `file NAME PAGES mmap` one
whose pages are the guest's shared memory, too, where the VM keeps the attributes; `vm NAME
tables=N` has so few for each EPT, and `vm NAME page-map` reads page maps, which the others do without: two loads
more in each fault are many schedules more.
Numbers count pages of 4 KiB: a page of the file, a GFN. A line without `before` or `after` is an *actor*, its own
thread.
Machine code (the extra `cpu`) runs in slices, and between two of them anybody else may act:
`before vcpu0: place store 1`, `vcpu0: code store 1 2 TIMES [SLICE]`.
`vcpuN` and `vmmN` are threads of a VM (`vm1.vcpu0`; vm0 when it is not said), `hostN` acts on the mount, `outsideN`
kills, stops and cuts.
"""

import importlib.resources
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvmsim.cpu.x86 import library
from memfsd.common.quote import quoted
from memfsd.uapi.abi import THREAD, Abi, Attributes, abi_of
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import ORDER_2M

from .programs import PROGRAMS, TEXT_BYTES

MAX_BYTES = 1 << 16
MAX_ACTORS = 16
MAX_PAGES = 1 << 12
MAX_TEXT = TEXT_BYTES
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}\Z")
_ACTOR = re.compile(r"(?:([a-z][a-z0-9_-]*)\.)?(vcpu|vmm|host|outside)([0-9]{0,3})\Z")


class ScenarioError(Exception):
    """A scenario that cannot be understood; names the line."""


def _number(word: str) -> int:
    try:
        value = int(word, 0)
    except ValueError:
        raise ValueError(f"{word[:30]!r} is not a number") from None
    if not 0 <= value <= MAX_PAGES:
        raise ValueError(f"{word[:30]} is not 0 to {MAX_PAGES}")
    return value


def _count(word: str) -> int:
    value = _number(word)
    if not value:
        raise ValueError("0 times, or instructions, is nothing: write 1 or more")
    return value


def _name(word: str) -> str:
    if not _NAME.match(word):
        raise ValueError(f"'{word}' is not a name")
    return word


def _text(word: str) -> str:
    if not 1 <= len(word.encode()) <= MAX_TEXT or "\0" in word:
        raise ValueError(f"{word[:30]!r} is not 1 to {MAX_TEXT} bytes without a NUL")
    return word


def _program(word: str) -> str:
    if word not in PROGRAMS:
        raise ValueError(f"'{word}' is not a program: choose from {', '.join(PROGRAMS)}")
    return word


Parse = Callable[[str], int | str]

VERBS: dict[str, dict[str, tuple[list[tuple[str, Parse]], int, str]]] = {
    "vcpu": {
        "read": ([("GFN", _number), ("PAGES", _number)], 1, "read the first bytes of each page"),
        "write": ([("GFN", _number), ("TEXT", _text), ("PAGES", _number)], 2, "write them"),
        "share": (
            [("GFN", _number), ("PAGES", _number)],
            1,
            "MapGPA to shared; the VMM's policy punch handles the exit",
        ),
        "unshare": ([("GFN", _number), ("PAGES", _number)], 1, "MapGPA to private, likewise"),
        "place": ([("PROGRAM", _program), ("GFN", _number)], 2, f"write machine code: {', '.join(PROGRAMS)}"),
        "code": (
            [("PROGRAM", _program), ("GFN", _number), ("DATA", _number), ("TIMES", _count), ("SLICE", _count)],
            4,
            "run it there on the page DATA, in slices of so many instructions (1)",
        ),
        "prefault": ([("GFN", _number), ("PAGES", _number)], 1, "KVM_PRE_FAULT_MEMORY of private pages"),
        "read-shared": ([("GFN", _number)], 1, "read the first bytes by the shared alias (ABIs with attributes)"),
        "write-shared": ([("GFN", _number), ("TEXT", _text)], 2, "write them"),
    },
    "vmm": {
        "slot": (
            [("ID", _number), ("FILE", _name), ("GFN", _number), ("PGOFF", _number), ("PAGES", _number)],
            5,
            "create a private slot; pairs and binds",
        ),
        "delete": ([("ID", _number)], 1, "delete a private slot; unbinds"),
        "hole": ([("ID", _number), ("GFN", _number), ("PAGES", _number)], 3, "punch a hole in a private slot; unbinds"),
        "fill": ([("ID", _number), ("GFN", _number), ("PAGES", _number)], 3, "fill a hole; binds"),
        "private": ([("GFN", _number), ("PAGES", _number)], 2, "KVM_SET_MEMORY_ATTRIBUTES: these GFNs are private"),
        "shared": ([("GFN", _number), ("PAGES", _number)], 2, "or shared"),
        "release": ([("FILE", _name)], 1, "close(2) of the last descriptor of a guest_memfd"),
        "close": ([], 0, "the VM ends in good order: BYE"),
        "pair": ([("FILE", _name)], 1, "pair once more, which KVM would not do before BYE is answered, and BYE"),
    },
    "host": {
        "punch": ([("FILE", _name), ("PGOFF", _number), ("PAGES", _number)], 3, "fallocate(PUNCH_HOLE)"),
        "poison": ([("FILE", _name), ("PGOFF", _number)], 2, "memfs poison: the page's frame fails"),
        "revoke": ([("FILE", _name)], 1, "memfs device remove"),
        "move": (
            [("FILE", _name), ("PGOFF", _number), ("PAGES", _number)],
            3,
            "pages go to other frames of their node",
        ),
        "allocate": ([("FILE", _name), ("PGOFF", _number), ("PAGES", _number)], 3, "fallocate"),
        "swapout": ([("FILE", _name), ("PGOFF", _number), ("PAGES", _number)], 3, "memfs swapout"),
        "swapoff": ([], 0, "memfs swapoff"),
        "truncate": ([("FILE", _name), ("PAGES", _number)], 2, "truncate"),
        "unlink": ([("FILE", _name)], 1, "unlink"),
        "private": (
            [("FILE", _name), ("PGOFF", _number), ("PAGES", _number)],
            3,
            "KVM_SET_MEMORY_ATTRIBUTES2: these pages are private (gmem-inplace)",
        ),
        "shared": ([("FILE", _name), ("PGOFF", _number), ("PAGES", _number)], 3, "or shared"),
        "load": ([("FILE", _name), ("PGOFF", _number)], 2, "read the first bytes of a page through a mapping"),
        "store": ([("FILE", _name), ("PGOFF", _number), ("TEXT", _text)], 3, "write them"),
        "check": ([], 0, "memfs check: asks the VMs for their state"),
    },
    "outside": {
        "kill": ([("PROCESS", _name)], 1, "SIGKILL a VM, or the store"),
        "stop": ([("VM", _name), ("SECONDS", _number)], 2, "SIGSTOP a VM, and SIGCONT later"),
        "cut": ([("VM", _name)], 1, "its connections end, and it lives"),
    },
}


@dataclass(frozen=True, slots=True)
class Command:
    """What an actor does in one line: a verb and its arguments."""

    verb: str
    arguments: tuple[int | str, ...]

    def __str__(self) -> str:
        return " ".join(
            [self.verb, *(f'"{a}"' if isinstance(a, str) and self.verb == "write" else str(a) for a in self.arguments)]
        )


@dataclass(frozen=True, slots=True)
class Actor:
    """vm: "" for host and outside. index: of the vCPU."""

    name: str
    vm: str
    role: str
    index: int
    commands: tuple[Command, ...]


@dataclass(slots=True)
class Scenario:
    """A race of a few actors: one file of scenarios/."""

    name: str
    about: str = ""
    text: str = ""
    frames: int = 64
    resize_any: bool = False
    split: bool = False
    swap_slots: int = 0
    patience_s: int | None = None
    """How long an invalidation of a file waits for another one of it."""
    abi: Abi = THREAD
    files: dict[str, int] = field(default_factory=dict)
    born_shared: set[str] = field(default_factory=set)
    """Of the guest_memfds."""
    mappable: set[str] = field(default_factory=set)
    """Of the guest_memfds, where the VM keeps the attributes."""
    devices: set[str] = field(default_factory=set)
    """Of the files."""
    page_sizes: dict[str, str] = field(default_factory=dict)
    """Of files with large pages."""
    vms: dict[str, int] = field(default_factory=dict)
    """VMs and how many vCPUs each has."""
    encrypted: set[str] = field(default_factory=set)
    """VMs with memory encryption."""
    page_maps: set[str] = field(default_factory=set)
    """VMs that read page maps."""
    tables: dict[str, int] = field(default_factory=dict)
    """Of each EPT of a VM, where they are few."""
    said: set[str] = field(default_factory=set)
    """Settings that are made."""
    before: list[Actor] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    after: list[Actor] = field(default_factory=list)

    def uses(self, *verbs: str) -> bool:
        return any(command.verb in verbs for actor in self.actors for command in actor.commands)

    @property
    def code_vms(self) -> list[str]:
        """VMs that run machine code."""
        everyone = (*self.before, *self.actors, *self.after)
        return sorted({actor.vm for actor in everyone for command in actor.commands if command.verb == "code"})


_SHIPPED = importlib.resources.files(__package__) / "scenarios"


def _names() -> list[str]:
    return sorted(entry.name.removesuffix(".race") for entry in _SHIPPED.iterdir() if entry.name.endswith(".race"))


def _text_of(name: str) -> str:
    return (_SHIPPED / f"{name}.race").read_text()


def shipped() -> list[str]:
    """Names of the shipped scenarios that can be run here: some need the extra `cpu`."""
    if not library.missing():
        return _names()
    return [name for name in _names() if not _parse(name, _text_of(name), name).code_vms]


def load(name: str) -> Scenario:
    """A shipped one, or a path. OSError, ScenarioError."""
    if name in _names():
        return parse(name, _text_of(name))
    path = Path(name)
    if "/" not in name and not path.exists():
        raise ScenarioError(f"no scenario '{name}': name a file, or one of: {', '.join(shipped())}")
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ScenarioError(f"{quoted(name)}: more than {MAX_BYTES} bytes: shorten the scenario")
    try:
        return parse(path.stem, data.decode(), name)
    except UnicodeDecodeError:
        raise ScenarioError(f"{quoted(name)}: not UTF-8 text: name a scenario") from None


def parse(name: str, text: str, where: str = "") -> Scenario:
    """ScenarioError says where it is: the path, if there is one."""
    scenario = _parse(name, text, where or name)
    if scenario.code_vms:
        try:
            library.check()
        except Refused as refused:
            raise ScenarioError(f"{quoted(where or name)}: {refused.reason}") from None
    return scenario


def with_page_maps(scenario: Scenario, *, on: bool) -> Scenario:
    """The same, but that every VM reads page maps, or none does."""
    lines = []
    for line in scenario.text.splitlines():
        if line.strip().partition(" ")[0] == "vm":
            words = [word for word in line.partition("#")[0].split() if word != "page-map"]
            line = " ".join([*words, "page-map"] if on else words)
        lines.append(line)
    return parse(scenario.name, "\n".join(lines) + "\n")


def _parse(name: str, text: str, where: str) -> Scenario:
    scenario = Scenario(name, text=text)
    for number, line in enumerate(text.splitlines(), 1):
        try:
            _line(scenario, line.strip())
        except (ValueError, KeyError) as error:
            raise ScenarioError(f"{quoted(where)}, line {number}: {error}") from None
    if not scenario.actors:
        raise ScenarioError(f"{quoted(where)}: there is no actor: write for example 'vcpu0: read 0'")
    return scenario


def _line(scenario: Scenario, line: str) -> None:
    if line.startswith("#"):
        scenario.about = scenario.about or line.lstrip("# ")
        return
    if not line:
        return
    first, _, rest = line.partition(" ")
    if first in ("store", "file", "device", "vm"):
        _setting(scenario, first, rest.split("#")[0].split())
        return
    phase = scenario.actors
    if first in ("before", "after"):
        phase, line = (scenario.before if first == "before" else scenario.after), rest
        if rest.startswith("outside"):
            raise ValueError("'outside' acts only during the race: leave out 'before' or 'after'")
    who, colon, commands = line.partition(":")
    if not colon:
        raise ValueError(f"'{first}': expected store, file, device, vm, before, after, or an actor and a colon")
    actor = _actor(scenario, who.strip(), commands)
    if phase is scenario.actors:
        if any(other.name == actor.name for other in phase):
            way_out = "write its commands in one line" if actor.role == "vcpu" else f"give it a number ({actor.role}2)"
            raise ValueError(f"{actor.name} is an actor already: {way_out}")
        if len(phase) >= MAX_ACTORS:
            raise ValueError(f"more than {MAX_ACTORS} actors: leave some out")
    phase.append(actor)


def _once(scenario: Scenario, what: str) -> None:
    """A second one would silently be the one that counts."""
    if what in scenario.said:
        raise ValueError(f"{what} is said twice: leave one out, or give it another name")
    scenario.said.add(what)


def _setting(scenario: Scenario, what: str, words: list[str]) -> None:
    {"store": _store, "file": _file, "device": _device, "vm": _vm}[what](scenario, words)


def _store(scenario: Scenario, words: list[str]) -> None:
    for word in words:
        key, _, value = word.partition("=")
        if key == "frames":
            scenario.frames = _number(value)
            if not scenario.frames:
                raise ValueError("a store needs at least one frame: write frames=1 or more")
        elif word == "resize=any":
            scenario.resize_any = True
        elif key == "swap":
            scenario.swap_slots = _number(value)
        elif word == "split=on":
            scenario.split = True
        elif key == "patience":
            scenario.patience_s = _number(value)
        elif key == "abi":
            scenario.abi = _abi(value)
        else:
            known = "frames=N, swap=N, resize=any, split=on, patience=SECONDS and abi=ABI"
            raise ValueError(f"store has {known}, not '{word}'")
        _once(scenario, f"store {key}")


def _abi(name: str) -> Abi:
    try:
        return abi_of(name)
    except Refused as refused:
        raise ValueError(refused.reason) from None


def _file(scenario: Scenario, words: list[str]) -> None:
    if not 2 <= len(words) <= 3 or words[2:] not in ([], ["2M"], ["init-shared"], ["mmap"]):
        raise ValueError("'file' needs a name and a size: file NAME PAGES [2M | init-shared | mmap]")
    _once(scenario, f"file {_name(words[0])}")
    pages = scenario.files[words[0]] = _number(words[1])
    if words[2:] == ["init-shared"]:
        if scenario.abi.attributes is not Attributes.FILE:
            raise ValueError("only a file that keeps attributes is born shared: write 'store abi=gmem-inplace' first")
        scenario.born_shared.add(words[0])
    elif words[2:] == ["mmap"]:
        if scenario.abi.attributes is not Attributes.VM:
            raise ValueError("only where the VM keeps the attributes: write 'store abi=gmem-6.18' first")
        scenario.mappable.add(words[0])
    elif words[2:]:
        scenario.page_sizes[words[0]] = words[2]
        if pages % (1 << ORDER_2M):
            raise ValueError(f"{pages} pages are not whole pages of 2M: write a multiple of {1 << ORDER_2M}")


def _device(scenario: Scenario, words: list[str]) -> None:
    if len(words) != 2:
        raise ValueError("'device' needs a name and a size: device NAME PAGES")
    _once(scenario, f"file {_name(words[0])}")
    scenario.files[words[0]] = _number(words[1])
    scenario.devices.add(words[0])


def _vm(scenario: Scenario, words: list[str]) -> None:
    settings = [(word.partition("=")[0], word.partition("=")[2]) for word in words[1:] if "=" in word]
    said = dict(settings)
    flags = {word for word in words[1:] if "=" not in word}
    if not words or not said.keys() <= {"vcpus", "tables"} or not flags <= {"encrypted", "page-map"}:
        raise ValueError("'vm' needs a name: vm NAME [vcpus=N] [tables=N] [encrypted] [page-map]")
    count = _number(said.get("vcpus", "1"))
    if not 1 <= count <= 8:
        raise ValueError(f"vcpus={count}: a VM has 1 to 8")
    if words[0] in ("store", "outside", "nobody"):
        raise ValueError(f"a VM cannot be named {words[0]}, which has another meaning: choose another name")
    _once(scenario, f"vm {_name(words[0])}")
    for key, _ in settings:
        _once(scenario, f"{key} of {words[0]}")
    scenario.vms[words[0]] = count
    if "encrypted" in flags:
        scenario.encrypted.add(words[0])
    if "page-map" in flags:
        scenario.page_maps.add(words[0])
    if "tables" in said:
        tables = scenario.tables[words[0]] = _number(said["tables"])
        if tables < 3:
            raise ValueError(f"tables={tables}: a page of 2M takes 3, one of 4 KiB takes 4: write 3 or more")


def _actor(scenario: Scenario, who: str, commands: str) -> Actor:
    match = _ACTOR.match(who)
    if not match:
        raise ValueError(f"'{who}' is not an actor: write vcpuN, vmmN (vm1.vcpuN for another VM), hostN or outsideN")
    vm, role, digits = match[1] or "", match[2], match[3]
    if role in ("vcpu", "vmm"):
        vm = vm or "vm0"
        if vm not in scenario.vms:
            raise ValueError(f"there is no VM {vm}: write 'vm {vm}' first")
    elif vm:
        raise ValueError(f"{role} belongs to no VM: leave out '{vm}.'")
    index = int(digits or 0)
    if role == "vcpu" and index >= scenario.vms[vm]:
        raise ValueError(f"{vm} has {scenario.vms[vm]} vCPUs: write 'vm {vm} vcpus={index + 1}'")
    number = str(index) if digits or role == "vcpu" else ""
    name = f"{vm}.{role}{number}" if vm else f"{role}{number}"
    lexer = shlex.shlex(commands, posix=True, punctuation_chars=";")
    lexer.whitespace_split = True
    words, parsed = [], []
    for word in [*lexer, ";"]:
        if word != ";":
            words.append(word)
        elif words:
            parsed.append(_command(scenario, role, words))
            words = []
    if not parsed:
        raise ValueError(f"{name} does nothing: write its commands after the colon")
    return Actor(name, vm, role, index, tuple(parsed))


def _command(scenario: Scenario, role: str, words: list[str]) -> Command:
    verbs = VERBS[role]
    if words[0] not in verbs:
        raise ValueError(f"{role} has no command '{words[0]}': choose from {', '.join(verbs)}")
    parameters, least, _ = verbs[words[0]]
    given = words[1:]
    if not least <= len(given) <= len(parameters):
        raise ValueError(f"wrong number of arguments: {words[0]} {' '.join(name for name, _ in parameters)}")
    arguments = tuple(kind(word) for word, (_, kind) in zip(given, parameters, strict=False))
    for value, (what, _) in zip(arguments, parameters, strict=False):
        if what == "FILE" and value not in scenario.files:
            raise ValueError(f"there is no file {value}: write 'file {value} PAGES' first")
        if (what == "VM" and value not in scenario.vms) or (
            what == "PROCESS" and value != "store" and value not in scenario.vms
        ):
            raise ValueError(f"there is no {'VM' if what == 'VM' else 'process'} {value}: write 'vm {value}' first")
    return Command(words[0], arguments)
