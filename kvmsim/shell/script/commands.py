"""One frozen dataclass for each command. Addresses, sizes, lengths and offsets are bytes.

Two commands are equal when they ask for the same thing, wherever they were written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Command:
    line: int = field(default=0, compare=False)
    """From 1; 0 for a command that no script holds."""
    name: str = field(default="", compare=False)
    """The words that select it: "read", "slot set"."""
    source: str = field(default="", compare=False)
    """The line as it was written, without the blanks around it."""
    vm: str | None = None
    """The VM that it is about; None: the current one."""
    columns: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    """Where the word of a field starts, from 1; a field that kept its default is missing."""

    # For all commands: made for each of sixty classes, these are most of what --help takes.

    def _asked(self) -> tuple[object, ...]:
        return tuple(getattr(self, field.name) for field in fields(self) if field.compare)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._asked() == other._asked()

    def __hash__(self) -> int:
        return hash((type(self), self._asked()))

    def __repr__(self) -> str:
        shown = (f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.repr)
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, eq=False, repr=False)
class SwitchVm(Command):
    """Makes the VM if there is none of that name."""

    to: str


@dataclass(frozen=True, eq=False, repr=False)
class CreateVcpu(Command):
    vcpu: int


@dataclass(frozen=True, eq=False, repr=False)
class SlotSet(Command):
    """KVM_SET_USER_MEMORY_REGION: alignment, overlap and limits are KVM's to check."""

    id: int
    private: bool
    gpa: int
    size: int
    file: str | None
    """None: anonymous memory, for a shared slot only."""
    offset: int
    flags: int
    hva: int | None = None
    """Instead of a file: an address of the VMM's."""


@dataclass(frozen=True, eq=False, repr=False)
class SlotDelete(Command):
    id: int
    private: bool


@dataclass(frozen=True, eq=False, repr=False)
class SlotPunch(Command):
    id: int
    gpa: int
    size: int


@dataclass(frozen=True, eq=False, repr=False)
class SlotDirty(Command):
    """KVM_GET_DIRTY_LOG."""

    id: int


@dataclass(frozen=True, eq=False, repr=False)
class SlotSet2(Command):
    """KVM_SET_USER_MEMORY_REGION2, with both memories."""

    id: int
    gpa: int
    size: int
    gmem: str | None
    offset: int
    hva: int | None
    """None: anonymous memory; 0: nothing is there."""
    flags: int


@dataclass(frozen=True, eq=False, repr=False)
class SlotDelete2(Command):
    id: int


@dataclass(frozen=True, eq=False, repr=False)
class SetAttributes(Command):
    """KVM_SET_MEMORY_ATTRIBUTES."""

    gpa: int
    size: int
    private: bool


@dataclass(frozen=True, eq=False, repr=False)
class GmemOpen(Command):
    gmem: str
    file: str


@dataclass(frozen=True, eq=False, repr=False)
class GmemCreate(Command):
    """KVM_CREATE_GUEST_MEMFD, as a new file of a mount."""

    gmem: str
    file: str
    size: int
    flags: int


@dataclass(frozen=True, eq=False, repr=False)
class GmemAttributes(Command):
    """KVM_SET_MEMORY_ATTRIBUTES2."""

    gmem: str
    offset: int
    size: int
    private: bool


@dataclass(frozen=True, eq=False, repr=False)
class GmemDup(Command):
    gmem: str
    to: str


@dataclass(frozen=True, eq=False, repr=False)
class GmemClose(Command):
    gmem: str


@dataclass(frozen=True, eq=False, repr=False)
class GuestCommand(Command):
    """KVM_RUN of a vCPU."""

    vcpu: int


@dataclass(frozen=True, eq=False, repr=False)
class Read(GuestCommand):
    gpa: int
    length: int
    shared: bool


@dataclass(frozen=True, eq=False, repr=False)
class Write(GuestCommand):
    gpa: int
    data: bytes
    shared: bool


@dataclass(frozen=True, eq=False, repr=False)
class Touch(GuestCommand):
    gpa: int
    size: int
    shared: bool


@dataclass(frozen=True, eq=False, repr=False)
class PreFault(GuestCommand):
    """KVM_PRE_FAULT_MEMORY."""

    gpa: int
    size: int
    shared: bool


@dataclass(frozen=True, eq=False, repr=False)
class Populate(GuestCommand):
    """KVM_TDX_INIT_MEM_REGION, which an ioctl of a vCPU does."""

    gpa: int
    path: str


@dataclass(frozen=True, eq=False, repr=False)
class Finalize(Command):
    """KVM_TDX_FINALIZE_VM."""


@dataclass(frozen=True, eq=False, repr=False)
class ShowMeasurement(Command):
    """MRTD."""


@dataclass(frozen=True, eq=False, repr=False)
class MapRange(GuestCommand):
    """The explicit hypercall, MapGPA, as a guest kernel makes it: to private, or to shared."""

    gpa: int
    size: int
    private: bool


@dataclass(frozen=True, eq=False, repr=False)
class Load(GuestCommand):
    gpa: int
    path: str


@dataclass(frozen=True, eq=False, repr=False)
class Sha256(GuestCommand):
    gpa: int
    length: int


@dataclass(frozen=True, eq=False, repr=False)
class Tdvmcall(GuestCommand):
    """TDG.VP.VMCALL, register by register."""

    r11: int
    r12: int
    r13: int
    r14: int
    r15: int


@dataclass(frozen=True, eq=False, repr=False)
class Hypercall(GuestCommand):
    """KVM's own: the number, and up to six arguments."""

    nr: int
    a0: int
    a1: int
    a2: int
    a3: int
    a4: int
    a5: int


@dataclass(frozen=True, eq=False, repr=False)
class Hlt(GuestCommand):
    pass


@dataclass(frozen=True, eq=False, repr=False)
class Boot(GuestCommand):
    """A flat binary or an ELF program into memory, and the vCPU's registers to its entry."""

    path: str
    at: int | None
    entry: int | None


@dataclass(frozen=True, eq=False, repr=False)
class CpuRun(GuestCommand):
    """KVM_RUN of machine code."""


@dataclass(frozen=True, eq=False, repr=False)
class CpuStep(GuestCommand):
    count: int


@dataclass(frozen=True, eq=False, repr=False)
class CpuRegs(Command):
    vcpu: int


@dataclass(frozen=True, eq=False, repr=False)
class CpuDisasm(Command):
    vcpu: int
    address: int | None
    count: int


@dataclass(frozen=True, eq=False, repr=False)
class Shutdown(GuestCommand):
    """A triple fault."""


@dataclass(frozen=True, eq=False, repr=False)
class Resume(GuestCommand):
    """KVM_RUN again, after user space has filled in the answer that the exit asked for."""

    data: bytes | None
    ret: int | None


@dataclass(frozen=True, eq=False, repr=False)
class Start(Command):
    """The command on its own thread."""

    command: GuestCommand


@dataclass(frozen=True, eq=False, repr=False)
class Join(Command):
    vcpu: int


@dataclass(frozen=True, eq=False, repr=False)
class Kick(Command):
    vcpu: int


@dataclass(frozen=True, eq=False, repr=False)
class CapExitHypercall(Command):
    """KVM_ENABLE_CAP of KVM_CAP_EXIT_HYPERCALL."""

    mask: int


@dataclass(frozen=True, eq=False, repr=False)
class HostRead(Command):
    gpa: int
    length: int


@dataclass(frozen=True, eq=False, repr=False)
class HostWrite(Command):
    gpa: int
    data: bytes


@dataclass(frozen=True, eq=False, repr=False)
class HostTamper(Command):
    gpa: int
    data: bytes


@dataclass(frozen=True, eq=False, repr=False)
class HvaMap(Command):
    """mmap(2) of a sealed file."""

    path: str
    at: int | None
    length: int | None
    offset: int
    private: bool


@dataclass(frozen=True, eq=False, repr=False)
class HvaAnon(Command):
    length: int
    at: int | None


@dataclass(frozen=True, eq=False, repr=False)
class HvaUnmap(Command):
    address: int
    size: int


@dataclass(frozen=True, eq=False, repr=False)
class HvaRead(Command):
    address: int
    length: int


@dataclass(frozen=True, eq=False, repr=False)
class HvaWrite(Command):
    address: int
    data: bytes


@dataclass(frozen=True, eq=False, repr=False)
class HvaFork(Command):
    process: str


@dataclass(frozen=True, eq=False, repr=False)
class HvaExit(Command):
    pass


@dataclass(frozen=True, eq=False, repr=False)
class HvaDump(Command):
    """What a core dump of the process would hold."""


@dataclass(frozen=True, eq=False, repr=False)
class SetPolicy(Command):
    policy: str
    under: str = "kept"


@dataclass(frozen=True, eq=False, repr=False)
class Info(Command):
    what: str
    gpa: int | None = None
    """The walk to this page; of `ept` alone."""


@dataclass(frozen=True, eq=False, repr=False)
class Sh(Command):
    command: str
    """Raw: the shell does its own quoting and comments."""


@dataclass(frozen=True, eq=False, repr=False)
class Expect(Command):
    """About the last command that is not an `expect` itself."""


@dataclass(frozen=True, eq=False, repr=False)
class ExpectOk(Expect):
    pass


@dataclass(frozen=True, eq=False, repr=False)
class ExpectErrno(Expect):
    errno: str


@dataclass(frozen=True, eq=False, repr=False)
class ExpectExit(Expect):
    reason: str
    """Without KVM_EXIT_: one of grammar.EXIT_REASONS."""
    fields: tuple[tuple[str, str], ...]
    """Name and value as written: what type a value has is known when there is an exit to compare with."""


@dataclass(frozen=True, eq=False, repr=False)
class ExpectData(Expect):
    data: bytes


@dataclass(frozen=True, eq=False, repr=False)
class ExpectRet(Expect):
    ret: int
    """Of 64 bits, unsigned."""


@dataclass(frozen=True, eq=False, repr=False)
class ExpectStatus(Expect):
    status: int


@dataclass(frozen=True, eq=False, repr=False)
class Repeat(Command):
    """The lines up to `end` are done so many times."""

    count: int
    counter: str


@dataclass(frozen=True, eq=False, repr=False)
class End(Command):
    """Of the innermost block."""


@dataclass(frozen=True, eq=False, repr=False)
class Quiet(Command):
    """Whether only what goes wrong is shown, from here on."""

    quiet: bool
