"""One frozen dataclass for each command. Addresses, sizes, lengths and offsets are bytes.

Two commands are equal when they ask for the same thing, wherever they were written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True)
class SwitchVm(Command):
    """Makes the VM if there is none of that name."""

    to: str


@dataclass(frozen=True, slots=True)
class CreateVcpu(Command):
    vcpu: int


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class SlotDelete(Command):
    id: int
    private: bool


@dataclass(frozen=True, slots=True)
class SlotPunch(Command):
    id: int
    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class SlotDirty(Command):
    """KVM_GET_DIRTY_LOG."""

    id: int


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class SlotDelete2(Command):
    id: int


@dataclass(frozen=True, slots=True)
class SetAttributes(Command):
    """KVM_SET_MEMORY_ATTRIBUTES."""

    gpa: int
    size: int
    private: bool


@dataclass(frozen=True, slots=True)
class GmemOpen(Command):
    gmem: str
    file: str


@dataclass(frozen=True, slots=True)
class GmemCreate(Command):
    """KVM_CREATE_GUEST_MEMFD, as a new file of a mount."""

    gmem: str
    file: str
    size: int
    flags: int


@dataclass(frozen=True, slots=True)
class GmemAttributes(Command):
    """KVM_SET_MEMORY_ATTRIBUTES2."""

    gmem: str
    offset: int
    size: int
    private: bool


@dataclass(frozen=True, slots=True)
class GmemDup(Command):
    gmem: str
    to: str


@dataclass(frozen=True, slots=True)
class GmemClose(Command):
    gmem: str


@dataclass(frozen=True, slots=True)
class GuestCommand(Command):
    """KVM_RUN of a vCPU."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class Read(GuestCommand):
    gpa: int
    length: int
    shared: bool


@dataclass(frozen=True, slots=True)
class Write(GuestCommand):
    gpa: int
    data: bytes
    shared: bool


@dataclass(frozen=True, slots=True)
class Touch(GuestCommand):
    gpa: int
    size: int
    shared: bool


@dataclass(frozen=True, slots=True)
class PreFault(GuestCommand):
    """KVM_PRE_FAULT_MEMORY."""

    gpa: int
    size: int
    shared: bool


@dataclass(frozen=True, slots=True)
class Populate(GuestCommand):
    """KVM_TDX_INIT_MEM_REGION, which an ioctl of a vCPU does."""

    gpa: int
    path: str


@dataclass(frozen=True, slots=True)
class Finalize(Command):
    """KVM_TDX_FINALIZE_VM."""


@dataclass(frozen=True, slots=True)
class ShowMeasurement(Command):
    """MRTD."""


@dataclass(frozen=True, slots=True)
class MapRange(GuestCommand):
    """The explicit hypercall, MapGPA, as a guest kernel makes it: to private, or to shared."""

    gpa: int
    size: int
    private: bool


@dataclass(frozen=True, slots=True)
class Load(GuestCommand):
    gpa: int
    path: str


@dataclass(frozen=True, slots=True)
class Sha256(GuestCommand):
    gpa: int
    length: int


@dataclass(frozen=True, slots=True)
class Tdvmcall(GuestCommand):
    """TDG.VP.VMCALL, register by register."""

    r11: int
    r12: int
    r13: int
    r14: int
    r15: int


@dataclass(frozen=True, slots=True)
class Hypercall(GuestCommand):
    """KVM's own: the number, and up to six arguments."""

    nr: int
    a0: int
    a1: int
    a2: int
    a3: int
    a4: int
    a5: int


@dataclass(frozen=True, slots=True)
class Hlt(GuestCommand):
    pass


@dataclass(frozen=True, slots=True)
class Boot(GuestCommand):
    """A flat binary or an ELF program into memory, and the vCPU's registers to its entry."""

    path: str
    at: int | None
    entry: int | None


@dataclass(frozen=True, slots=True)
class CpuRun(GuestCommand):
    """KVM_RUN of machine code."""


@dataclass(frozen=True, slots=True)
class CpuStep(GuestCommand):
    count: int


@dataclass(frozen=True, slots=True)
class CpuRegs(Command):
    vcpu: int


@dataclass(frozen=True, slots=True)
class CpuDisasm(Command):
    vcpu: int
    address: int | None
    count: int


@dataclass(frozen=True, slots=True)
class Shutdown(GuestCommand):
    """A triple fault."""


@dataclass(frozen=True, slots=True)
class Resume(GuestCommand):
    """KVM_RUN again, after user space has filled in the answer that the exit asked for."""

    data: bytes | None
    ret: int | None


@dataclass(frozen=True, slots=True)
class Start(Command):
    """The command on its own thread."""

    command: GuestCommand


@dataclass(frozen=True, slots=True)
class Join(Command):
    vcpu: int


@dataclass(frozen=True, slots=True)
class Kick(Command):
    vcpu: int


@dataclass(frozen=True, slots=True)
class CapExitHypercall(Command):
    """KVM_ENABLE_CAP of KVM_CAP_EXIT_HYPERCALL."""

    mask: int


@dataclass(frozen=True, slots=True)
class HostRead(Command):
    gpa: int
    length: int


@dataclass(frozen=True, slots=True)
class HostWrite(Command):
    gpa: int
    data: bytes


@dataclass(frozen=True, slots=True)
class HostTamper(Command):
    gpa: int
    data: bytes


@dataclass(frozen=True, slots=True)
class HvaMap(Command):
    """mmap(2) of a sealed file."""

    path: str
    at: int | None
    length: int | None
    offset: int
    private: bool


@dataclass(frozen=True, slots=True)
class HvaAnon(Command):
    length: int
    at: int | None


@dataclass(frozen=True, slots=True)
class HvaUnmap(Command):
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class HvaRead(Command):
    address: int
    length: int


@dataclass(frozen=True, slots=True)
class HvaWrite(Command):
    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class HvaFork(Command):
    process: str


@dataclass(frozen=True, slots=True)
class HvaExit(Command):
    pass


@dataclass(frozen=True, slots=True)
class HvaDump(Command):
    """What a core dump of the process would hold."""


@dataclass(frozen=True, slots=True)
class SetPolicy(Command):
    policy: str
    under: str = "kept"


@dataclass(frozen=True, slots=True)
class Info(Command):
    what: str
    gpa: int | None = None
    """The walk to this page; of `ept` alone."""


@dataclass(frozen=True, slots=True)
class Sh(Command):
    command: str
    """Raw: the shell does its own quoting and comments."""


@dataclass(frozen=True, slots=True)
class Expect(Command):
    """About the last command that is not an `expect` itself."""


@dataclass(frozen=True, slots=True)
class ExpectOk(Expect):
    pass


@dataclass(frozen=True, slots=True)
class ExpectErrno(Expect):
    errno: str


@dataclass(frozen=True, slots=True)
class ExpectExit(Expect):
    reason: str
    """Without KVM_EXIT_: one of grammar.EXIT_REASONS."""
    fields: tuple[tuple[str, str], ...]
    """Name and value as written: what type a value has is known when there is an exit to compare with."""


@dataclass(frozen=True, slots=True)
class ExpectData(Expect):
    data: bytes


@dataclass(frozen=True, slots=True)
class ExpectRet(Expect):
    ret: int
    """Of 64 bits, unsigned."""


@dataclass(frozen=True, slots=True)
class ExpectStatus(Expect):
    status: int


@dataclass(frozen=True, slots=True)
class Repeat(Command):
    """The lines up to `end` are done so many times."""

    count: int
    counter: str


@dataclass(frozen=True, slots=True)
class End(Command):
    """Of the innermost block."""


@dataclass(frozen=True, slots=True)
class Quiet(Command):
    """Whether only what goes wrong is shown, from here on."""

    quiet: bool
