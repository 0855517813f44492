"""C1 to C3: machine code behind our EPTs against the same loop in plain unicorn, and under the real /dev/kvm.

C1 computes in registers (xorshift and a hash: 16 instructions), C2 loads, stores and adds to memory, C3 follows
pointers from page to page of a gibibyte in random order, to a random place in each, so that each load misses every
TLB. The time is CPU time of the thread. KVM's figure is a part, not a peer.
"""

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import thread_time

import numpy as np

from benchlib import our_mount, real_kvm
from benchlib.figure import Figure, Part, Progress, spread
from benchlib.machine import first_cpu, pin
from benchlib.plain_unicorn import CODE, DATA, PlainUnicorn
from kvmsim.cpu.x86.library import check
from kvmsim.kvm.exits import HltExit
from kvmsim.machine import VirtualMachine
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_ACCESS_BYTES
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE

Run = Callable[[], float]
Prepare = Callable[[mmap.mmap], None]

_REGISTERS = bytes.fromhex(
    "4889c248c1e20d4831d0"  # 1: mov %rax, %rdx; shl $13, %rdx; xor %rdx, %rax
    "4889c248c1ea074831d0"  # mov %rax, %rdx; shr $7, %rdx; xor %rdx, %rax
    "4889c248c1e2114831d0"  # mov %rax, %rdx; shl $17, %rdx; xor %rdx, %rax
    "4801c6488d5c1e014c0fafc3"  # add %rax, %rsi; lea 1(%rsi,%rbx), %rbx; imul %rbx, %r8
    "49c1c0054d01c148ffc975ca"  # rol $5, %r8; add %r8, %r9; dec %rcx; jnz 1b
)
_TIGHT = bytes.fromhex("48ffc975fb")  # 1: dec %rcx; jnz 1b
_MEMORY = bytes.fromhex(
    "488b074801c8488947084801471048ffc975ed"
)  # 1: mov (%rdi), %rax; add %rcx, %rax; mov %rax, 8(%rdi); add %rax, 16(%rdi); dec %rcx; jnz 1b
_CHASE = bytes.fromhex("488b1c1f48ffc975f7")  # 1: mov (%rdi,%rbx), %rbx; dec %rcx; jnz 1b
_REGISTERS_LENGTH, _MEMORY_LENGTH, _CHASE_LENGTH = 16, 6, 3
_SMALL_BYTES = 2 << 20
_COPIES = 4
"""Of the chased memory that have to fit: the pool's, plain unicorn's, KVM's, and the one that they are made of."""


def registers(progress: Progress, rounds: int = 15, count: int = 2_000_000) -> Figure:
    """The tightest loop there is comes as a part: there, each block has two instructions."""
    what = "a register loop of 16 instructions behind our EPTs / in plain unicorn"
    figure = _measure(progress, what, _REGISTERS, _REGISTERS_LENGTH, rounds, count, _SMALL_BYTES)
    tight = _measure(progress, what, _TIGHT, 2, rounds, count, _SMALL_BYTES)
    if figure.value is None or tight.value is None:
        return figure
    parts = {**figure.parts, "ratio, 2 instructions": tight.value, "mips, 2 instructions": tight.parts["mips"]}
    return Figure(figure.what, figure.unit, figure.target, True, figure.value, parts)


def memory(progress: Progress, rounds: int = 15, count: int = 500_000) -> Figure:
    what = "a loop of a load, a store and an add to memory behind our EPTs / in plain unicorn"
    return _measure(progress, what, _MEMORY, _MEMORY_LENGTH, rounds, count, _SMALL_BYTES)


def chase(progress: Progress, rounds: int = 7, size_bytes: int = 1 << 30) -> Figure:
    """A smaller size where there is not memory for all copies; the parts say which."""
    while size_bytes > _SMALL_BYTES and _COPIES * size_bytes > _available_bytes():
        size_bytes //= 2
    pages = size_bytes // PAGE_SIZE
    random = np.random.default_rng(1)
    order = random.permutation(pages)
    pointers = (np.arange(pages) << PAGE_SHIFT) + random.integers(0, PAGE_SIZE // 8, pages) * 8
    pointers[0] = 0
    follows = np.empty_like(pointers)
    follows[order] = pointers[np.roll(order, -1)]

    def prepare(memory: mmap.mmap) -> None:
        with memoryview(memory) as view:
            np.frombuffer(view, np.int64)[pointers >> 3] = follows

    what = f"a pointer chase over {size_bytes >> 20} MiB behind our EPTs / in plain unicorn"
    return _measure(progress, what, _CHASE, _CHASE_LENGTH, rounds, pages, size_bytes, prepare)


def _measure(
    progress: Progress,
    what: str,
    loop: bytes,
    length: int,
    rounds: int,
    count: int,
    size_bytes: int,
    prepare: Prepare = lambda memory: None,
) -> Figure:
    """Ours and the peer in turns, after a round that is not counted."""
    try:
        check()
    except Refused as refused:
        return Figure(what, "x", 1.3, True, None, reason=str(refused))
    ours_s, plain_s, kvm_s = [], [], []
    reason = real_kvm.available()
    with pin(first_cpu()), _ours(loop, count, size_bytes, prepare) as ours:
        plain = PlainUnicorn(loop, size_bytes, prepare)
        for round_ in range(rounds + 1):
            progress.round(round_, rounds)
            plain_s.append(plain.run(count, 0))
            ours_s.append(ours())
        if reason is None:
            kvm_s = [_kvm(loop, count, size_bytes, prepare) for _ in range(3)]
    ratios = [a / b for a, b in zip(ours_s[1:], plain_s[1:], strict=True)]
    instructions = length * count / 1e6
    parts: dict[str, Part] = {
        "mips": instructions / median(ours_s[1:]),
        "mips, plain unicorn": instructions / median(plain_s[1:]),
    }
    if reason is None:
        parts |= {
            "mips, /dev/kvm": instructions / median(kvm_s),
            "times as long as /dev/kvm": median(ours_s[1:]) / median(kvm_s),
        }
    else:
        parts["/dev/kvm"] = reason
    return Figure(what, "x", 1.3, True, median(ratios), parts | {**spread(ratios), "rounds": rounds})


def _kvm(loop: bytes, count: int, size_bytes: int, prepare: Prepare) -> float:
    """Without the faults of the first time."""
    once, twice = (real_kvm.run_code(loop, times * count, 0, size_bytes, prepare) for times in (1, 2))
    return max(twice - once, 1e-9)


@contextmanager
def _ours(loop: bytes, count: int, size_bytes: int, prepare: Prepare) -> Iterator[Run]:
    """The loop in private memory of a VM."""
    with our_mount.mounted(DATA + size_bytes) as mountpoint:
        file = our_mount.sealed_file(Path(mountpoint, "memory"), DATA + size_bytes)
        with our_mount.attached(file, DATA + size_bytes) as machine:
            _load(machine, prepare, size_bytes)
            vcpu = machine.vm.vcpu(0)
            if machine.guest.write(vcpu, CODE, loop + b"\xf4") is not None:
                raise RuntimeError("the guest stopped while the loop was loaded")
            engine = machine.cpus.engine(vcpu)
            engine.reset()

            def run() -> float:
                for name, value in (("rip", CODE), ("rdi", DATA), ("rcx", count), ("rbx", 0)):
                    engine.write(name, value)
                began = thread_time()
                stopped = machine.cpus.run(vcpu)
                elapsed_s = thread_time() - began
                if stopped != HltExit():
                    raise RuntimeError(f"the guest stopped: {stopped}")
                return elapsed_s

            yield run
        file.unlink()


def _load(machine: VirtualMachine, prepare: Prepare, size_bytes: int) -> None:
    with mmap.mmap(-1, size_bytes) as image:
        prepare(image)
        chunks = (image[at : at + MAX_ACCESS_BYTES] for at in range(0, size_bytes, MAX_ACCESS_BYTES))
        if machine.guest.load(machine.vm.vcpu(0), DATA, chunks) != size_bytes:
            raise RuntimeError("the guest stopped while its memory was loaded")


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0
