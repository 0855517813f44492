"""Small programs of x86-64 code that race: their bytes, and what each instruction does to memory.

RBX has the address of the data, ECX how often the loop goes round, RSI what is stored. RAX is an address that does not
exist: where the code has become zeros (ADD [RAX], AL) the guest ends with a triple fault.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from .history import History, Page

NOWHERE = 1 << 62
TEXT_BYTES = 8


class Does(Enum):
    """What an instruction does with the data, if it retires."""

    NOTHING = auto()
    STORE = auto()
    LOAD = auto()
    """Into RDX."""
    ADD = auto()
    """1, with LOCK."""


@dataclass(frozen=True, slots=True)
class Program:
    """A loop, and HLT. The loop ends with DEC ECX and JNZ."""

    about: str
    loop: tuple[tuple[bytes, Does], ...]

    @property
    def code(self) -> bytes:
        return b"".join(part for part, _ in self._instructions)

    @property
    def text(self) -> bytes:
        """What a page with the code begins with."""
        return self.code[:TEXT_BYTES]

    @property
    def _instructions(self) -> tuple[tuple[bytes, Does], ...]:
        back = sum(len(part) for part, _ in self.loop) + len(_DEC) + 2
        return (
            *self.loop,
            (_DEC, Does.NOTHING),
            (b"\x75" + (-back & 0xFF).to_bytes(1), Does.NOTHING),
            (_HLT, Does.NOTHING),
        )

    def retired(self, offset: int, left: int, times: int) -> int:
        """How many instructions have retired when RIP is so far behind the beginning and ECX is `left`."""
        instructions = self._instructions
        index, at = 0, 0
        while at < offset:
            at += len(instructions[index][0])
            index += 1
        around = len(instructions) - 1
        if index > around - 1:
            return times * around + index - around
        return (times - left - (index == around - 1)) * around + index

    def effects(self, first: int, end: int, times: int) -> list[Does]:
        """Of the instructions from the one that follows `first` others."""
        instructions = self._instructions
        around = len(instructions) - 1
        return [instructions[number % around][1] for number in range(first, min(end, times * around))]

    def length(self, times: int) -> int:
        """Instructions of the whole run, HLT among them."""
        return times * (len(self._instructions) - 1) + 1


@dataclass(slots=True)
class Work:
    """A run of a program: what it may read, and what it has done."""

    program: Program
    code: int
    """GFNs of the code and of the data."""
    data: int
    times: int
    slice: int
    value: bytes
    """What it stores."""
    history: History
    shown: Callable[[int], list[Page]]
    """The pages that a GFN may show now."""
    wrong: Callable[[str], None]
    gone: bool = field(default=False, init=False)
    """Its code has become zeros."""


_DEC, _HLT = b"\xff\xc9", b"\xf4"
PROGRAMS = {
    "store": Program(
        "stores its name and loads it again", ((b"\x48\x89\x33", Does.STORE), (b"\x48\x8b\x13", Does.LOAD))
    ),
    "count": Program("adds 1, with LOCK", ((b"\xf0\x48\xff\x03", Does.ADD),)),
    "print": Program(
        "adds 1, with LOCK, and exits for an OUT", ((b"\xf0\x48\xff\x03", Does.ADD), (b"\xe6\xe9", Does.NOTHING))
    ),
}
