"""One frozen value for each command. Addresses, sizes, lengths and offsets are bytes.

Two commands are equal when they ask for the same thing, wherever they were written. They are msgspec's and not
dataclasses, which take fifty times as long to make: sixty of them were most of what --help takes.
"""

from collections.abc import Mapping

from msgspec import Struct, field


class Command(Struct, frozen=True, eq=False, kw_only=True):
    line: int = 0
    """From 1; 0 for a command that no script holds."""
    name: str = ""
    """The words that select it: "read", "slot set"."""
    source: str = ""
    """The line as it was written, without the blanks around it."""
    columns: Mapping[str, int] = field(default_factory=dict)
    """Where the word of a field starts, from 1; a field that kept its default is missing."""
    vm: str | None = None
    """The VM that it is about; None: the current one."""

    def _asked(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__struct_fields__ if name not in _WHERE_IT_WAS_WRITTEN}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Command) and type(self) is type(other) and self._asked() == other._asked()

    def __hash__(self) -> int:
        return hash((type(self), *self._asked().values()))


_WHERE_IT_WAS_WRITTEN = ("line", "name", "source", "columns")


class SwitchVm(Command, frozen=True):
    """Makes the VM if there is none of that name."""

    to: str


class CreateVcpu(Command, frozen=True):
    vcpu: int


class SlotSet(Command, frozen=True):
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


class SlotDelete(Command, frozen=True):
    id: int
    private: bool


class SlotPunch(Command, frozen=True):
    id: int
    gpa: int
    size: int


class SlotDirty(Command, frozen=True):
    """KVM_GET_DIRTY_LOG."""

    id: int


class SlotSet2(Command, frozen=True):
    """KVM_SET_USER_MEMORY_REGION2, with both memories."""

    id: int
    gpa: int
    size: int
    gmem: str | None
    offset: int
    hva: int | None
    """None: anonymous memory; 0: nothing is there."""
    flags: int


class SlotDelete2(Command, frozen=True):
    id: int


class SetAttributes(Command, frozen=True):
    """KVM_SET_MEMORY_ATTRIBUTES."""

    gpa: int
    size: int
    private: bool


class GmemOpen(Command, frozen=True):
    gmem: str
    file: str


class GmemCreate(Command, frozen=True):
    """KVM_CREATE_GUEST_MEMFD, as a new file of a mount."""

    gmem: str
    file: str
    size: int
    flags: int


class GmemAttributes(Command, frozen=True):
    """KVM_SET_MEMORY_ATTRIBUTES2."""

    gmem: str
    offset: int
    size: int
    private: bool


class GmemDup(Command, frozen=True):
    gmem: str
    to: str


class GmemClose(Command, frozen=True):
    gmem: str


class GuestCommand(Command, frozen=True):
    """KVM_RUN of a vCPU."""

    vcpu: int


class Read(GuestCommand, frozen=True):
    gpa: int
    length: int
    shared: bool


class Write(GuestCommand, frozen=True):
    gpa: int
    data: bytes
    shared: bool


class Touch(GuestCommand, frozen=True):
    gpa: int
    size: int
    shared: bool


class PreFault(GuestCommand, frozen=True):
    """KVM_PRE_FAULT_MEMORY."""

    gpa: int
    size: int
    shared: bool


class Populate(GuestCommand, frozen=True):
    """KVM_TDX_INIT_MEM_REGION, which an ioctl of a vCPU does."""

    gpa: int
    path: str


class Finalize(Command, frozen=True):
    """KVM_TDX_FINALIZE_VM."""


class ShowMeasurement(Command, frozen=True):
    """MRTD."""


class MapRange(GuestCommand, frozen=True):
    """The explicit hypercall, MapGPA, as a guest kernel makes it: to private, or to shared."""

    gpa: int
    size: int
    private: bool


class Load(GuestCommand, frozen=True):
    gpa: int
    path: str


class Sha256(GuestCommand, frozen=True):
    gpa: int
    length: int


class Tdvmcall(GuestCommand, frozen=True):
    """TDG.VP.VMCALL, register by register."""

    r11: int
    r12: int
    r13: int
    r14: int
    r15: int


class Hypercall(GuestCommand, frozen=True):
    """KVM's own: the number, and up to six arguments."""

    nr: int
    a0: int
    a1: int
    a2: int
    a3: int
    a4: int
    a5: int


class Hlt(GuestCommand, frozen=True):
    pass


class Boot(GuestCommand, frozen=True):
    """A flat binary or an ELF program into memory, and the vCPU's registers to its entry."""

    path: str
    at: int | None
    entry: int | None


class CpuRun(GuestCommand, frozen=True):
    """KVM_RUN of machine code."""


class CpuStep(GuestCommand, frozen=True):
    count: int


class CpuRegs(Command, frozen=True):
    vcpu: int


class CpuIrq(Command, frozen=True):
    """KVM_INTERRUPT."""

    vcpu: int
    vector: int


class CpuNmi(Command, frozen=True):
    """KVM_NMI."""

    vcpu: int


class CpuDisasm(Command, frozen=True):
    vcpu: int
    address: int | None
    count: int


class Shutdown(GuestCommand, frozen=True):
    """A triple fault."""


class Resume(GuestCommand, frozen=True):
    """KVM_RUN again, after user space has filled in the answer that the exit asked for."""

    data: bytes | None
    ret: int | None


class Start(Command, frozen=True):
    """The command on its own thread."""

    command: GuestCommand


class Join(Command, frozen=True):
    vcpu: int


class Kick(Command, frozen=True):
    vcpu: int


class Ioport(Command, frozen=True):
    """Ports [port, port + count): whose their exits are."""

    port: int
    to: str
    count: int


class CapExitHypercall(Command, frozen=True):
    """KVM_ENABLE_CAP of KVM_CAP_EXIT_HYPERCALL."""

    mask: int


class HostRead(Command, frozen=True):
    gpa: int
    length: int


class HostWrite(Command, frozen=True):
    gpa: int
    data: bytes


class HostTamper(Command, frozen=True):
    gpa: int
    data: bytes


class HvaMap(Command, frozen=True):
    """mmap(2) of a sealed file."""

    path: str
    at: int | None
    length: int | None
    offset: int
    private: bool


class HvaAnon(Command, frozen=True):
    length: int
    at: int | None


class HvaUnmap(Command, frozen=True):
    address: int
    size: int


class HvaRead(Command, frozen=True):
    address: int
    length: int


class HvaWrite(Command, frozen=True):
    address: int
    data: bytes


class HvaFork(Command, frozen=True):
    process: str


class HvaExit(Command, frozen=True):
    pass


class HvaDump(Command, frozen=True):
    """What a core dump of the process would hold."""


class SetPolicy(Command, frozen=True):
    policy: str
    under: str = "kept"


class Info(Command, frozen=True):
    what: str
    gpa: int | None = None
    """The walk to this page; of `ept` alone."""


class Sh(Command, frozen=True):
    command: str
    """Raw: the shell does its own quoting and comments."""


class Expect(Command, frozen=True):
    """About the last command that is not an `expect` itself."""


class ExpectOk(Expect, frozen=True):
    pass


class ExpectErrno(Expect, frozen=True):
    errno: str


class ExpectExit(Expect, frozen=True):
    reason: str
    """Without KVM_EXIT_: one of grammar.EXIT_REASONS."""
    fields: tuple[tuple[str, str], ...]
    """Name and value as written: what type a value has is known when there is an exit to compare with."""


class ExpectData(Expect, frozen=True):
    data: bytes


class ExpectRet(Expect, frozen=True):
    ret: int
    """Of 64 bits, unsigned."""


class ExpectStatus(Expect, frozen=True):
    status: int


class Repeat(Command, frozen=True):
    """The lines up to `end` are done so many times."""

    count: int
    counter: str


class End(Command, frozen=True):
    """Of the innermost block."""


class Quiet(Command, frozen=True):
    """Whether only what goes wrong is shown, from here on."""

    quiet: bool
