"""The table of all commands, and the parser and the help text that are made from it.

The table is the contract with users' scripts. A form's terms stand in the order of its synopsis; options
(key=value) may stand anywhere after the command's words, everything else in the order of the table. The
parser stays with the table, although that makes a long module: it says what the attributes of a term mean.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvmsim.kvm.exits import ExitReason
from kvmsim.vmm.policies import POLICIES, UNDER

from . import commands, values
from .commands import Command, Expect, GuestCommand, SlotSet, Start
from .values import unknown
from .words import ScriptError, Word, split

EXIT_REASONS = tuple(reason.name for reason in ExitReason if reason is not ExitReason.INTR)
"""KVM_EXIT_* without the prefix: what a command can end with."""
EXIT_PREFIX = "KVM_EXIT_"
_ABOUT_NO_VM = ("vm", "sh", "hva", "expect", "start", "repeat", "end", "quiet")
"""`start` leaves it to the command that it starts."""
INFO_TOPICS = ("slots", "ept", "mmu", "memory", "attributes", "run", "stats", "vms", "hva", "gmem")


@dataclass(frozen=True, slots=True)
class Term:
    """One word of a command, positional or (``option``) key=value with the field's name as key."""

    field: str
    metavar: str
    convert: Callable[[Word], object]
    option: bool = False
    required: bool = True
    default: object = None

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes, if they are words: what a metavar in lower case lists."""
        return tuple(self.metavar.split("|")) if self.metavar.islower() else ()

    @property
    def is_path(self) -> bool:
        return self.metavar in ("PATH", "FILE")

    def __str__(self) -> str:
        text = f"{self.field}={self.metavar}" if self.option else self.metavar
        return text if self.required else f"[{text}]"


@dataclass(frozen=True, slots=True)
class Form:
    """One command: the words that select it, what follows, what it makes, what it is for."""

    name: str
    make: Callable[..., Command]
    terms: tuple[Term, ...]
    help: str
    check: Callable[[Any], tuple[str, str] | None] | None = None
    """What no single word shows: the field at fault ("" is the end of the line) and the message."""
    free_fields: bool = False
    """Any other key=value is kept, in order, as ``fields``."""

    @property
    def is_about_a_vm(self) -> bool:
        """It takes vm=NAME."""
        return self.name.split()[0] not in _ABOUT_NO_VM

    @property
    def all_terms(self) -> tuple[Term, ...]:
        return (*self.terms, _VM) if self.is_about_a_vm else self.terms

    @property
    def synopsis(self) -> str:
        words = [self.name, *map(str, self.terms)]
        return " ".join([*words, "[field=value]..."] if self.free_fields else words)


def _exit_reason(word: Word) -> str:
    reason = word.text.upper().removeprefix(EXIT_PREFIX)
    if reason not in EXIT_REASONS:
        raise ValueError(unknown("exit reason", reason, EXIT_REASONS))
    return reason


def _is_private(word: Word) -> bool:
    return values.choice("word", ("private", "shared"))(word) == "private"


def _is_shared(word: Word) -> bool:
    return values.choice("word", ("shared",))(word) == "shared"


def _is_map_private(word: Word) -> bool:
    return values.choice("word", ("private",))(word) == "private"


def _one_backing(slot: SlotSet) -> tuple[str, str] | None:
    if slot.file is not None and slot.hva is not None:
        return "hva", "file= and hva= both say what the slot shows: keep one"
    if slot.private and slot.file is None and slot.hva is None:
        return "", "a private slot needs file=PATH, a file with the guest seal on a memfsd mount, or hva=ADDR"
    if slot.file is None and "offset" in slot.columns:
        return "offset", "offset= needs file=PATH: other memory has no offset"
    return None


def _walk_of_ept(info: commands.Info) -> tuple[str, str] | None:
    if info.gpa is not None and info.what != "ept":
        return "gpa", f"info {info.what} takes no GPA: leave it out, or ask for info ept GPA"
    return None


def _is_on(word: Word) -> bool:
    return values.choice("word", ("on", "off"))(word) == "on"


def _under_overlay(policy: commands.SetPolicy) -> tuple[str, str] | None:
    if policy.policy != "overlay" and "under" in policy.columns:
        return (
            "under",
            f"under= goes with policy overlay: policy {policy.policy} keeps no private page under a shared one",
        )
    return None


_VM = Term("vm", "NAME", values.vm_name, option=True, required=False)
_VCPU = Term("vcpu", "N", values.number, option=True, required=False, default=0)
_GPA = Term("gpa", "GPA", values.address)
_LEN = Term("length", "LEN", values.access_length)
_DATA = Term("data", "DATA", values.data)
_SHARED = Term("shared", "shared", _is_shared, required=False, default=False)
_ALIAS = Term("private", "private|shared", _is_private)
_ID = Term("id", "ID", values.number)
_AT = Term("gpa", "G", values.address, option=True)
_SIZE = Term("size", "S", values.size, option=True)
_FILE = Term("file", "PATH", values.path, option=True, required=False)
_GMEM = Term("gmem", "NAME", values.vm_name)
_GMEM_FLAGS = Term("flags", "mmap,init-shared", values.gmem_flags, option=True, required=False, default=0)
_PATH_OF = Term("file", "PATH", values.path, option=True)
_OFFSET = Term("offset", "O", values.size, option=True, required=False, default=0)
_HVA = Term("hva", "ADDR", values.address, option=True, required=False)
_ADDRESS = Term("address", "ADDR", values.address)
_PLACE = Term("at", "ADDR", values.address, option=True, required=False)
_FLAGS = Term("flags", "readonly,log_dirty", values.slot_flags, option=True, required=False, default=0)


def _register(name: str) -> Term:
    return Term(name, name.upper(), values.register, required=False, default=0)


FORMS: tuple[Form, ...] = (
    Form(
        "vm",
        commands.SwitchVm,
        (Term("to", "NAME", values.vm_name),),
        "switch to a VM, which is made if there is none of that name; vm=NAME makes one command about another VM",
    ),
    Form("vcpu", commands.CreateVcpu, (Term("vcpu", "N", values.long_number),), "create a vCPU of the current VM"),
    Form(
        "slot set",
        SlotSet,
        (_ID, _ALIAS, _AT, _SIZE, _FILE, _OFFSET, _HVA, _FLAGS),
        "set a memslot: a private one needs file= or hva=, a shared one without them is anonymous memory",
        check=_one_backing,
    ),
    Form("slot delete", commands.SlotDelete, (_ID, _ALIAS), "delete a memslot"),
    Form("slot punch", commands.SlotPunch, (_ID, _AT, _SIZE), "punch a hole in a private memslot"),
    Form("slot dirty", commands.SlotDirty, (_ID,), "pages of a shared memslot with flags=log_dirty written since last"),
    Form(
        "slot set2",
        commands.SlotSet2,
        (_ID, _AT, _SIZE, Term("gmem", "NAME", values.vm_name, option=True, required=False), _OFFSET, _HVA, _FLAGS),
        "KVM_SET_USER_MEMORY_REGION2, both memories in one slot: gmem= is an open guest_memfd; hva= is userspace_addr"
        " (0: none), else that is anonymous memory",
    ),
    Form(
        "slot delete2", commands.SlotDelete2, (_ID,), "delete a slot with all that it shows; contents stay the file's"
    ),
    Form(
        "attributes",
        commands.SetAttributes,
        (_GPA, Term("size", "SIZE", values.size), _ALIAS),
        "KVM_SET_MEMORY_ATTRIBUTES: which memory of their slots these addresses are",
    ),
    Form(
        "gmem create",
        commands.GmemCreate,
        (
            _GMEM,
            _PATH_OF,
            _SIZE,
            _GMEM_FLAGS,
        ),
        "KVM_CREATE_GUEST_MEMFD: a new file of a mount with guest_memfds, open and the VM's",
    ),
    Form(
        "gmem attributes",
        commands.GmemAttributes,
        (_GMEM, Term("offset", "OFFSET", values.size), Term("size", "SIZE", values.size), _ALIAS),
        "KVM_SET_MEMORY_ATTRIBUTES2: pages of the file become private or shared where they are",
    ),
    Form("gmem open", commands.GmemOpen, (_GMEM, _PATH_OF), "open a guest_memfd, which belongs to the VM from now on"),
    Form("gmem dup", commands.GmemDup, (_GMEM, Term("to", "NAME", values.vm_name)), "dup(2) of it, by another name"),
    Form("gmem close", commands.GmemClose, (_GMEM,), "close(2); the last one takes the file out of its slots"),
    Form("read", commands.Read, (_VCPU, _GPA, _LEN, _SHARED), "the guest reads"),
    Form("write", commands.Write, (_VCPU, _GPA, _DATA, _SHARED), 'the guest writes "text" or hex bytes'),
    Form(
        "touch",
        commands.Touch,
        (_VCPU, _GPA, Term("size", "SIZE", values.length), _SHARED),
        "the guest touches every page once, in order",
    ),
    Form(
        "prefault",
        commands.PreFault,
        (_VCPU, _GPA, Term("size", "SIZE", values.size), _SHARED),
        "KVM_PRE_FAULT_MEMORY: map pages ahead; shows the gpa and size that are left, less if anything was mapped",
    ),
    Form(
        "populate",
        commands.Populate,
        (_VCPU, _GPA, Term("path", "PATH", values.path)),
        "KVM adds a host file to private memory before the guest runs, and measures it",
    ),
    Form("finalize", commands.Finalize, (), "no page is populated any more"),
    Form("measurement", commands.ShowMeasurement, (), "SHA-384 of what was populated, as MRTD of a TD"),
    Form(
        "map",
        commands.MapRange,
        (_VCPU, _GPA, Term("size", "SIZE", values.size), _ALIAS),
        "the guest converts a range with the MapGPA hypercall",
    ),
    Form(
        "load",
        commands.Load,
        (_VCPU, _GPA, Term("path", "PATH", values.path)),
        "copy a host file into private memory through a vCPU",
    ),
    Form(
        "sha256",
        commands.Sha256,
        (_VCPU, _GPA, Term("length", "LEN", values.length)),
        "digest of memory as the guest sees it",
    ),
    Form(
        "tdvmcall",
        commands.Tdvmcall,
        (_VCPU, Term("r11", "LEAF", values.register), *(_register(f"r{number}") for number in range(12, 16))),
        "the guest executes TDG.VP.VMCALL: LEAF is R11 (0x10001 is MapGPA), then R12 to R15",
    ),
    Form(
        "hypercall",
        commands.Hypercall,
        (_VCPU, Term("nr", "NR", values.register), *(_register(f"a{number}") for number in range(6))),
        "the guest makes a hypercall of KVM; what `cap exit_hypercall` does not name is -KVM_ENOSYS (-1000)",
    ),
    Form("hlt", commands.Hlt, (_VCPU,), "the guest halts; resume wakes it"),
    Form(
        "boot",
        commands.Boot,
        (
            _VCPU,
            Term("path", "FILE", values.path),
            Term("at", "GPA", values.address, option=True, required=False),
            Term("entry", "GPA", values.address, option=True, required=False),
        ),
        "a flat binary (to 0x1000, or at=), an ELF program, or a shipped one, into private memory; the vCPU to its "
        "entry. guest:hello, touch, convert, misbehave, punched; on vCPUs 0 and 1: guest:ring, spinlock",
    ),
    Form("cpu run", commands.CpuRun, (_VCPU,), "the vCPU runs machine code until it exits; what it prints is shown"),
    Form(
        "cpu step",
        commands.CpuStep,
        (_VCPU, Term("count", "N", values.steps, required=False, default=1)),
        "N instructions",
    ),
    Form(
        "cpu irq",
        commands.CpuIrq,
        (_VCPU, Term("vector", "VECTOR", values.vector)),
        "KVM_INTERRUPT: machine code takes it at its next KVM_RUN, once IF is set; it wakes a HLT",
    ),
    Form("cpu nmi", commands.CpuNmi, (_VCPU,), "KVM_NMI: taken whatever IF says, but not until the IRET of one before"),
    Form("cpu regs", commands.CpuRegs, (_VCPU,), "registers of a vCPU"),
    Form(
        "cpu disasm",
        commands.CpuDisasm,
        (
            _VCPU,
            Term("address", "ADDR", values.register, required=False),
            Term("count", "N", values.disasm_count, required=False, default=8),
        ),
        "N instructions from ADDR, or from where the vCPU is",
    ),
    Form("shutdown", commands.Shutdown, (_VCPU,), "the guest's triple fault"),
    Form(
        "resume",
        commands.Resume,
        (
            _VCPU,
            Term("data", "DATA", values.data, option=True, required=False),
            Term("ret", "N", values.register, option=True, required=False),
        ),
        "KVM_RUN again: goes on after the last exit, with data= for an MMIO read or an IN, ret= for a hypercall, or 0 "
        "for a map",
    ),
    Form(
        "start",
        commands.Start,
        (Term("command", "COMMAND", values.text),),
        "a command with vcpu=N on its own thread, beside the commands that follow",
    ),
    Form("join", commands.Join, (_VCPU,), "wait for the started command of a vCPU: its result"),
    Form("kick", commands.Kick, (_VCPU,), "user space asks a vCPU to leave: it ends with EINTR; resume goes on"),
    Form(
        "ioport",
        commands.Ioport,
        (
            Term("port", "PORT", values.port),
            Term("to", "exit|serve", values.choice("word", ("exit", "serve"))),
            Term("count", "N", values.port_count, option=True, required=False, default=1),
        ),
        "exit: KVM_EXIT_IO of N ports from PORT on comes back to the script, and resume data= answers an IN; serve: "
        "user space answers, as at first",
    ),
    Form(
        "cap exit_hypercall",
        commands.CapExitHypercall,
        (Term("mask", "MASK", values.register),),
        "hypercalls that exit to user space, a bit each (0x1000: KVM_HC_MAP_GPA_RANGE, and MapGPA as Linux does it)",
    ),
    Form("host read", commands.HostRead, (_GPA, _LEN), "KVM itself reads, as for emulation"),
    Form("host write", commands.HostWrite, (_GPA, _DATA), "KVM itself writes, as for emulation"),
    Form(
        "host tamper",
        commands.HostTamper,
        (_GPA, _DATA),
        "somebody on the host writes into the frame of a private page, through the store's window",
    ),
    Form(
        "hva map",
        commands.HvaMap,
        (
            Term("path", "PATH", values.path),
            _PLACE,
            Term("length", "L", values.size, option=True, required=False),
            _OFFSET,
            Term("private", "private", _is_map_private, required=False, default=False),
        ),
        "the VMM maps a sealed file in its (simulated) address space: whole, once, shared, for good",
    ),
    Form(
        "hva anon",
        commands.HvaAnon,
        (Term("length", "SIZE", values.size), _PLACE),
        "the VMM maps anonymous memory",
    ),
    Form("hva unmap", commands.HvaUnmap, (_ADDRESS, Term("size", "SIZE", values.size)), "munmap(2)"),
    Form("hva read", commands.HvaRead, (_ADDRESS, _LEN), "the process reads its own memory"),
    Form("hva write", commands.HvaWrite, (_ADDRESS, _DATA), "the process writes its own memory"),
    Form(
        "hva fork",
        commands.HvaFork,
        (Term("process", "NAME", values.vm_name),),
        "a child process, which becomes the current one of the hva commands",
    ),
    Form("hva exit", commands.HvaExit, (), "the current process, a child, ends"),
    Form("hva dump", commands.HvaDump, (), "what a core dump of the current process holds"),
    Form(
        "policy",
        commands.SetPolicy,
        (
            Term("policy", "|".join(POLICIES), values.choice("policy", POLICIES)),
            Term("under", "|".join(UNDER), values.choice("word", UNDER), option=True, required=False, default="kept"),
        ),
        "how user space answers exits that ask for a conversion; under= is for overlay: what becomes of the page below",
        check=_under_overlay,
    ),
    Form(
        "info",
        commands.Info,
        (
            Term("what", "|".join(INFO_TOPICS), values.choice("topic", INFO_TOPICS)),
            Term("gpa", "GPA", values.address, required=False),
        ),
        "show the state of the current VM, or all VMs; info ept GPA is the walk to a page, with the raw entries",
        check=_walk_of_ept,
    ),
    Form(
        "repeat",
        commands.Repeat,
        (
            Term("count", "N", values.number),
            Term("counter", "NAME", values.counter, option=True, required=False, default="i"),
        ),
        "do the lines up to `end` N times; in them {i} is the turn, from 0, and {i*4K} or {1M+i*4K} a multiple of it",
    ),
    Form("end", commands.End, (), "the end of what repeat repeats"),
    Form(
        "quiet",
        commands.Quiet,
        (Term("quiet", "on|off", _is_on),),
        "on: show only what goes wrong, from here on",
    ),
    Form(
        "sh",
        commands.Sh,
        (Term("command", "COMMAND", values.text),),
        "run the rest of the line in a shell; its exit status is the result",
    ),
    Form("expect ok", commands.ExpectOk, (), "the previous command did what it should"),
    Form(
        "expect errno",
        commands.ExpectErrno,
        (Term("errno", "NAME", values.errno_name),),
        "it was refused with this errno",
    ),
    Form(
        "expect exit",
        commands.ExpectExit,
        (Term("reason", "REASON", _exit_reason),),
        "it ended in this exit, with or without KVM_EXIT_, and the fields have these values",
        free_fields=True,
    ),
    Form("expect data", commands.ExpectData, (_DATA,), "it read exactly these bytes"),
    Form(
        "expect ret",
        commands.ExpectRet,
        (Term("ret", "N", values.register),),
        "the hypercall returned this: R10 of tdvmcall, RAX of hypercall",
    ),
    Form(
        "expect status",
        commands.ExpectStatus,
        (Term("status", "N", values.exit_status),),
        "the shell command ended with this status",
    ),
)

_BY_WORDS = {tuple(form.name.split()): form for form in FORMS}
_STARTABLE = tuple(form for form in FORMS if isinstance(form.make, type) and issubclass(form.make, GuestCommand))
_FIRST_WORDS = tuple(dict.fromkeys(words[0] for words in _BY_WORDS))
_OPTION = re.compile(r"([a-z_][a-z0-9_]*)=")


def nothing_to_expect(command: Expect, text: str) -> ScriptError:
    """The error for an `expect`, parsed from ``text``, that no command precedes."""
    message = "expect is about the previous command, and there is none: put one before it"
    return ScriptError(command.line, text.index(command.source) + 1, message)


def parse_line(text: str, line: int) -> Command | None:
    """The command of one line (without its end); None for a blank line or a comment."""
    found = split(text, line)
    first = next(found, None)
    if first is None:
        return None
    source = text.strip(" \t")
    if first.text == "sh":
        return _command(_BY_WORDS[("sh",)], _rest(text, first), first.end, line, source)
    words = [first, *found]
    end = words[-1].end
    if first.text == "start" and len(words) > 1:
        return _started(words, end, line, source)
    return _command(*_form_of(words, line), end, line, source)


def _command(form: Form, words: list[Word], end: int, line: int, source: str) -> Command:
    fields, columns = _fields_of(form, words, end, line)
    command = form.make(**fields, line=line, name=form.name, source=source, columns=columns)
    if form.check and (problem := form.check(command)):
        field, message = problem
        raise ScriptError(line, columns.get(field, end), message)
    return command


def _started(words: list[Word], end: int, line: int, source: str) -> Command:
    """`start`, and the command after it, which is parsed as on its own line."""
    form, rest = _form_of(words[1:], line)
    if form not in _STARTABLE:
        names = ", ".join(startable.name for startable in _STARTABLE)
        raise ScriptError(line, words[1].column, f"'{form.name}' runs no vCPU, so it cannot be started: {names} do")
    command = _command(form, rest, end, line, source)
    assert isinstance(command, GuestCommand)
    columns = {"command": words[1].column}
    return Start(line=line, name="start", source=source, columns=columns, command=command, vm=command.vm)


def help_text(topic: str = "") -> str:
    """Synopsis and purpose of the commands that begin with ``topic``; ValueError when none does."""
    forms = [form for form in FORMS if not topic or f"{form.name} ".startswith(f"{topic} ")]
    if not forms:
        raise ValueError(unknown("command", topic, _FIRST_WORDS))
    return "\n".join(f"{form.synopsis}\n    {form.help}" for form in forms)


def help_names(width: int = 76) -> str:
    """The names of all commands, in a few lines."""
    seconds: dict[str, list[str]] = {}
    for form in FORMS:
        first, *second = form.name.split()
        seconds.setdefault(first, []).extend(second)
    names = [f"{first} {'|'.join(rest)}" if rest else first for first, rest in seconds.items()]
    lines = [""]
    for name in names:
        if lines[-1] and len(lines[-1]) + 2 + len(name) > width:
            lines.append("")
        lines[-1] += f", {name}" if lines[-1] else name
    return ",\n".join(lines)


def _rest(text: str, command_word: Word) -> list[Word]:
    """The rest of the line as one word, if there is any. Quoted as a whole, so it is never an option."""
    rest = text[command_word.end - 1 :].strip(" \t")
    start = text.index(rest, command_word.end - 1) + 1
    return [Word(rest, start, start + len(rest), quoted=True)] if rest else []


def _form_of(words: list[Word], line: int) -> tuple[Form, list[Word]]:
    """The form that the first words select, and the words that follow them."""
    first = words[0]
    form = _BY_WORDS.get((first.text,))
    if form:
        return form, words[1:]
    seconds = [name[1] for name in _BY_WORDS if name[0] == first.text]
    if not seconds:
        raise ScriptError(line, first.column, unknown("command", first.text, _FIRST_WORDS))
    if len(words) == 1:
        raise ScriptError(line, first.end, f"'{first.text}' needs one of: {', '.join(seconds)}")
    form = _BY_WORDS.get((first.text, words[1].text))
    if form is None:
        raise ScriptError(line, words[1].column, unknown(f"{first.text} command", words[1].text, seconds))
    return form, words[2:]


def _fields_of(form: Form, words: list[Word], end: int, line: int) -> tuple[dict[str, object], dict[str, int]]:
    """The values of a form's fields and where each was written."""
    options = {term.field: term for term in form.all_terms if term.option}
    positionals = iter([term for term in form.terms if not term.option])
    fields: dict[str, object] = {term.field: term.default for term in form.terms}
    columns: dict[str, int] = {}
    free: dict[str, str] = {}
    for word in words:
        key, value = _option(word)
        if key is None:
            term = next(positionals, None)
            if term is None:
                message = f"unexpected {values.shown(word.text)}: write {form.synopsis}"
                raise ScriptError(line, word.column, message)
        elif key in free or (key in options and key in columns):
            raise ScriptError(line, word.column, f"{key}= is given twice: keep one")
        elif key in options:
            term = options[key]
        elif form.free_fields:
            free[key] = value.text
            continue
        else:
            raise ScriptError(line, word.column, _no_such_option(form, key, list(options)))
        try:
            fields[term.field] = term.convert(value)
        except ValueError as error:
            raise ScriptError(line, value.column, str(error)) from None
        columns[term.field] = word.column
    for term in form.terms:
        if term.required and term.field not in columns:
            raise ScriptError(line, end, _missing(form, term))
    if form.free_fields:
        fields["fields"] = tuple(free.items())
    return fields, columns


def _missing(form: Form, term: Term) -> str:
    if term.choices and not term.option:
        choices = " or ".join([", ".join(term.choices[:-1]), term.choices[-1]])
        return f"'{form.name}' needs one more word: {choices}"
    return f"'{form.name}' needs {term}: write {form.synopsis}"


def _option(word: Word) -> tuple[str | None, Word]:
    """Key and value of key=value; no key and the word itself for any other word."""
    match = _OPTION.match(word.text, 0, word.bare_length)
    if match is None:
        return None, word
    return match.group(1), Word(word.text[match.end() :], word.column + match.end(), word.end, word.quoted)


def _no_such_option(form: Form, key: str, known: list[str]) -> str:
    if key == _VM.field:
        return f"'{form.name}' is about no VM, so it takes no vm=: leave it out"
    if not known:
        return f"'{form.name}' has no options, so not {key}=: quote the word if it is an argument"
    return f"{unknown(f'{form.name} option', key, known)} (if it is an argument, quote the word)"
