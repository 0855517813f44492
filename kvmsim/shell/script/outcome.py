"""What a command did."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from memfsd.uapi.errors import Refused, errno_name

from .commands import Command

_ADDRESSES = ("gpa", "phys_addr", "addr", "port")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one command did. ``ok``: what it should; else ``errno``, ``exit`` or ``status`` says why not."""

    ok: bool
    errno: str | None = None
    """"EINVAL": the request was refused."""
    exit: str | None = None
    """"KVM_EXIT_MMIO": the vCPU came back to user space."""
    exit_fields: Mapping[str, int | str | bool] = field(default_factory=dict)
    data: bytes | None = None
    address: int | None = None
    """Where data was read, when it is to be shown by address."""
    ret: int | None = None
    """What a hypercall returned, unsigned."""
    status: int | None = None
    """Exit status of a shell command."""
    text: str = ""
    """For a person, as many lines as it takes."""
    info: object = None
    """For a program: anything that JSON can say."""
    reason: str = ""
    """One line, when not ok."""

    def __post_init__(self) -> None:
        assert not (self.ok and self.errno), "a command cannot be refused and do what it should"
        assert self.exit or not self.exit_fields, "exit fields without an exit"

    @classmethod
    def refused(cls, refusal: Refused) -> "Outcome":
        return cls(ok=False, errno=errno_name(refusal.errno), reason=refusal.reason)


@dataclass(frozen=True, slots=True)
class Record:
    """A command with what it did, as it is printed. For an `expect`, ok says whether it matched."""

    command: Command
    outcome: Outcome
    failed: bool
    """The run failed here: a mismatch, or a trouble that no `expect` follows."""
    expected: bool = False
    """An `expect` is known to follow."""
    seconds: float | None = None
    """How long the command took; None: nothing was done."""


def format_exit(name: str, fields: Mapping[str, int | str | bool]) -> str:
    """ "KVM_EXIT_MMIO phys_addr=0x5000 len=4 is_write=1"."""
    return " ".join([name, *(f"{field}={format_field(field, value)}" for field, value in fields.items())])


def format_field(name: str, value: int | str | bool) -> str:
    """Addresses and what is as large as a page in hex; a boolean as kvm_run holds it, 0 or 1."""
    if isinstance(value, str):
        return value
    return hex(value) if name in _ADDRESSES or value >= 4096 else str(int(value))
