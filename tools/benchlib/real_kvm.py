"""P2's and P4's peer: a real guest_memfd under /dev/kvm, touched by a real vCPU.

One VM of type 0 has two memslots: a program with its page tables in ordinary memory, and above it the
guest_memfd. The guest writes one byte in each page in order and ends where the slot ends, with an MMIO
exit. It runs 64-bit code at CPL 3, since some KVMs (kvm_pvm) run nothing else without emulating it, and
an emulated write also goes through the host's page table: three times the time, and no fair peer.

Numbers and layouts: include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h (Linux 6.18).
"""

import ctypes
import fcntl
import mmap
import os
import platform
import struct
from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter

from memfsd.common.linux import fallocate, punch_hole
from memfsd.uapi.names import FALLOC_FL_KEEP_SIZE

PAGE_SIZE = 4096

_KVM_API_VERSION = 12
_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_KVM_CHECK_EXTENSION = 0xAE03
_KVM_GET_VCPU_MMAP_SIZE = 0xAE04
_KVM_GET_SUPPORTED_CPUID = 0xC008AE05
_KVM_CREATE_VCPU = 0xAE41
_KVM_SET_USER_MEMORY_REGION2 = 0x40A0AE49
_KVM_RUN = 0xAE80
_KVM_SET_REGS = 0x4090AE82
_KVM_GET_SREGS = 0x8138AE83
_KVM_SET_SREGS = 0x4138AE84
_KVM_SET_CPUID2 = 0x4008AE90
_KVM_CREATE_GUEST_MEMFD = 0xC040AED4

_KVM_CAP_USER_MEMORY2 = 231
_KVM_CAP_GUEST_MEMFD = 234
_KVM_CAP_GUEST_MEMFD_FLAGS = 244

_KVM_MEM_GUEST_MEMFD = 4
_GUEST_MEMFD_FLAG_MMAP = 1
_GUEST_MEMFD_FLAG_INIT_SHARED = 2
_MEMFD_FLAGS = _GUEST_MEMFD_FLAG_MMAP | _GUEST_MEMFD_FLAG_INIT_SHARED


_KVM_EXIT_MMIO = 6
_EXIT_REASON = 8
_EXIT_MMIO_GPA = 32
"""Offsets in struct kvm_run."""

_REGION2 = struct.Struct("=2I4Q2I14Q")
_GUEST_MEMFD = struct.Struct("=8Q")
_REGS = struct.Struct("=18Q")
_RCX, _RDI, _RIP, _RFLAGS = 2, 5, 16, 17
_SEGMENT = struct.Struct("=QIH10B")
_SREGS_BYTES = 312
_CONTROL = struct.Struct("=6Q")
_CONTROL_AT = 8 * _SEGMENT.size + 2 * 16
"""cr0, cr2, cr3, cr4, cr8 and efer in struct kvm_sregs, behind the segments and two table registers."""
_CPUID_ENTRIES = 256
_CPUID_BYTES = 8 + 40 * _CPUID_ENTRIES

_CR0_PG_ET_PE = 1 << 31 | 1 << 4 | 1
_CR4_PAE = 1 << 5
_EFER_LMA_LME = 1 << 10 | 1 << 8
_PTE_USER_TABLE = 0b111
_PTE_USER_2M_DIRTY = 0b1110_0111

_PROGRAM_GPA = 1 << 20
_TABLES_GPA = _PROGRAM_GPA + PAGE_SIZE
_DATA_GPA = 2 << 20
_MAX_BYTES = (3 << 30) - _DATA_GPA
"""The guest's memory ends below 3 GiB, clear of the local APIC."""

_MARK = 0x5A
_CODE = bytes(
    [
        *(0xC6, 0x07, _MARK),  # 1: movb $MARK, (%rdi)
        *(0x48, 0x01, 0xCF),  # add %rcx, %rdi
        *(0xEB, 0xF8),  # jmp 1b
    ]
)


_STEP, _OFFSET = 1664525, 1013904223
"""page = page * STEP + OFFSET, modulo a power of two: every page once, in an order that no one foresees."""


def scattered(page_count: int) -> list[int]:
    """All pages in the order in which the guest of `random_touch` writes them. ValueError unless a power of two."""
    if page_count & page_count - 1:
        raise ValueError(f"{page_count} pages: give a power of two")
    pages, page = [], 0
    for _ in range(page_count):
        page = page * _STEP + _OFFSET & page_count - 1
        pages.append(page)
    return pages


def _scattered_code(page_count: int) -> bytes:
    """Writes one byte in each page of `scattered`, then one after the last page."""
    return b"".join(
        [
            b"\xbb" + struct.pack("=I", page_count),  # mov $page_count, %ebx
            b"\x31\xc0",  # xor %eax, %eax
            b"\x69\xc0" + struct.pack("=I", _STEP),  # 1: imul $STEP, %eax, %eax
            b"\x05" + struct.pack("=I", _OFFSET),  # add $OFFSET, %eax
            b"\x25" + struct.pack("=I", page_count - 1),  # and $(page_count - 1), %eax
            b"\x48\x89\xc2\x48\xc1\xe2\x0c",  # mov %rax, %rdx; shl $12, %rdx
            bytes([0xC6, 0x04, 0x17, _MARK]),  # movb $MARK, (%rdi,%rdx)
            b"\xff\xcb\x75\xe1",  # dec %ebx; jnz 1b
            b"\xba" + struct.pack("=I", page_count * PAGE_SIZE),  # mov $size, %edx
            bytes([0xC6, 0x04, 0x17, _MARK]),  # movb $MARK, (%rdi,%rdx)
        ]
    )


def available() -> str | None:
    """None when `first_touch` and `punch` can run here, else in one line why they cannot."""
    if platform.machine() != "x86_64":
        return f"the guest's code is for x86_64, this machine is {platform.machine()}"
    with ExitStack() as stack:
        try:
            kvm = _owned(stack, os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return f"/dev/kvm cannot be opened: {error.strerror}"
        version = fcntl.ioctl(kvm, _KVM_GET_API_VERSION, 0)
        if version != _KVM_API_VERSION:
            return f"KVM's API version is {version}, not {_KVM_API_VERSION}"
        try:
            vm = _owned(stack, fcntl.ioctl(kvm, _KVM_CREATE_VM, 0))
        except OSError as error:
            return f"KVM makes no VM: {error.strerror}"
        if not fcntl.ioctl(vm, _KVM_CHECK_EXTENSION, _KVM_CAP_USER_MEMORY2):
            return "this KVM has no KVM_SET_USER_MEMORY_REGION2 (Linux 6.8)"
        if not fcntl.ioctl(vm, _KVM_CHECK_EXTENSION, _KVM_CAP_GUEST_MEMFD):
            return "this KVM has no guest_memfd for ordinary VMs"
        if fcntl.ioctl(vm, _KVM_CHECK_EXTENSION, _KVM_CAP_GUEST_MEMFD_FLAGS) & _MEMFD_FLAGS != _MEMFD_FLAGS:
            return "this KVM's guest_memfd has no MMAP and INIT_SHARED flags (Linux 6.18)"
    return None


def first_touch(size_bytes: int = 1 << 30) -> float:
    """Seconds in which a fresh guest writes one byte in every 4 KiB page of a fresh guest_memfd, in order.

    ValueError unless size_bytes is whole pages below 3 GiB. OSError when KVM refuses a step, RuntimeError
    when the guest stops anywhere but at the end of its memory or has left a page unwritten.
    """
    with _Guest(size_bytes) as guest:
        elapsed_s = guest.touch()
        guest.check(_MARK)
        return elapsed_s


def random_touch(size_bytes: int) -> float:
    """As `first_touch`, of a guest_memfd that is allocated whole, in the order of `scattered`."""
    with _Guest(size_bytes, _scattered_code(size_bytes // PAGE_SIZE)) as guest:
        guest.allocate()
        elapsed_s = guest.touch()
        guest.check(_MARK)
        return elapsed_s


def punch(size_bytes: int = 1 << 30, mapped: bool = True, host_mapped: bool = False) -> float:
    """Seconds of one fallocate(PUNCH_HOLE) over a whole guest_memfd.

    mapped: the guest has touched every page before, so KVM maps them; else they are only allocated.
    host_mapped: this process too has mapped and touched every page. Errors as `first_touch`;
    RuntimeError also when a byte outlives the hole.
    """
    with _Guest(size_bytes) as guest:
        if mapped:
            guest.touch()
            guest.check(_MARK, 1024)
        else:
            guest.allocate()
        if host_mapped:
            guest.map_in_host()
        elapsed_s = guest.punch()
        guest.check(0, 1024)
        return elapsed_s


def run_code(loop: bytes, count: int, start: int, size_bytes: int, prepare: Callable[[mmap.mmap], None]) -> float:
    """Seconds of a loop in a guest_memfd that `prepare` has filled: rdi its address, rcx the count, rbx the start."""
    begin = b"\xb9" + struct.pack("=I", count) + b"\xbb" + struct.pack("=I", start)  # mov into %ecx, %ebx
    end = b"\xba" + struct.pack("=I", size_bytes) + bytes([0xC6, 0x04, 0x17, _MARK])  # the store after the last page
    with _Guest(size_bytes, begin + loop + end) as guest:
        prepare(guest.memory)
        return guest.touch()


class _Guest:
    """A VM with one vCPU and its guest_memfd; `with` ends them all."""

    def __init__(self, size_bytes: int, code: bytes = _CODE) -> None:
        if size_bytes % PAGE_SIZE or not 0 < size_bytes <= _MAX_BYTES:
            raise ValueError(f"{size_bytes} bytes: give whole 4 KiB pages, at least 1, at most {_MAX_BYTES} bytes")
        self._size_bytes = size_bytes
        with ExitStack() as stack:
            kvm = _owned(stack, os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
            vm = _owned(stack, fcntl.ioctl(kvm, _KVM_CREATE_VM, 0))
            self._vcpu = _owned(stack, fcntl.ioctl(vm, _KVM_CREATE_VCPU, 0))
            run_bytes = fcntl.ioctl(kvm, _KVM_GET_VCPU_MMAP_SIZE, 0)
            self._run = stack.enter_context(mmap.mmap(self._vcpu, run_bytes))

            request = bytearray(_GUEST_MEMFD.pack(size_bytes, _MEMFD_FLAGS, *[0] * 6))
            self._memfd = _owned(stack, fcntl.ioctl(vm, _KVM_CREATE_GUEST_MEMFD, request))
            self._host = stack.enter_context(mmap.mmap(self._memfd, size_bytes))
            program = code.ljust(PAGE_SIZE, b"\0") + _identity_tables()
            memory = stack.enter_context(mmap.mmap(-1, len(program)))
            memory[:] = program
            _set_slot(vm, 0, 0, _PROGRAM_GPA, memory, 0)
            _set_slot(vm, 1, _KVM_MEM_GUEST_MEMFD, _DATA_GPA, self._host, self._memfd)

            cpuid = bytearray(_CPUID_BYTES)
            struct.pack_into("=I", cpuid, 0, _CPUID_ENTRIES)
            fcntl.ioctl(kvm, _KVM_GET_SUPPORTED_CPUID, cpuid)
            fcntl.ioctl(self._vcpu, _KVM_SET_CPUID2, cpuid)
            _enter_long_mode(self._vcpu)
            self._stack = stack.pop_all()

    def __enter__(self) -> "_Guest":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def memory(self) -> mmap.mmap:
        return self._host

    def touch(self) -> float:
        """Seconds of KVM_RUN in which the guest writes every page."""
        start = perf_counter()
        while True:
            try:
                fcntl.ioctl(self._vcpu, _KVM_RUN, 0)
                break
            except InterruptedError:
                continue
        elapsed_s = perf_counter() - start
        (reason,) = struct.unpack_from("=I", self._run, _EXIT_REASON)
        (gpa,) = struct.unpack_from("=Q", self._run, _EXIT_MMIO_GPA)
        if reason != _KVM_EXIT_MMIO or gpa != _DATA_GPA + self._size_bytes:
            raise RuntimeError(f"the guest stopped with KVM exit {reason}, not at the end of its memory")
        return elapsed_s

    def allocate(self) -> None:
        fallocate(self._memfd, FALLOC_FL_KEEP_SIZE, 0, self._size_bytes)

    def map_in_host(self) -> None:
        with memoryview(self._host) as window:
            bytes(window[::PAGE_SIZE])

    def punch(self) -> float:
        """Seconds of punching all of the guest_memfd."""
        start = perf_counter()
        punch_hole(self._memfd, 0, self._size_bytes)
        return perf_counter() - start

    def check(self, value: int, page_step: int = 1) -> None:
        """RuntimeError unless every page_step-th page begins with this byte.

        It looks through its own mapping: page table entries that stayed would slow a later punch.
        """
        with mmap.mmap(self._memfd, self._size_bytes) as view, memoryview(view) as window:
            found = bytes(window[:: page_step * PAGE_SIZE])
        wrong = len(found) - found.count(value)
        if wrong:
            raise RuntimeError(f"{wrong} of {len(found)} pages do not begin with {value:#x}")


def _identity_tables() -> bytes:
    """Six page tables at _TABLES_GPA that map the first 4 GiB one to one in 2 MiB pages, for CPL 3."""
    directories = [_TABLES_GPA + index * PAGE_SIZE for index in range(2, 6)]
    tables = [
        [_TABLES_GPA + PAGE_SIZE | _PTE_USER_TABLE],
        [directory | _PTE_USER_TABLE for directory in directories],
    ]
    frames = [frame << 21 | _PTE_USER_2M_DIRTY for frame in range(4 * 512)]
    return b"".join(struct.pack(f"={len(table)}Q", *table).ljust(PAGE_SIZE, b"\0") for table in [*tables, frames])


def _enter_long_mode(vcpu: int) -> None:
    """Flat 64-bit segments at CPL 3, the page tables above, rdi at the data and rcx one page."""
    sregs = bytearray(_SREGS_BYTES)
    fcntl.ioctl(vcpu, _KVM_GET_SREGS, sregs)
    # base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding
    code = _SEGMENT.pack(0, 0xFFFFFFFF, 0x8 | 3, 0xB, 1, 3, 0, 1, 1, 1, 0, 0, 0)
    data = _SEGMENT.pack(0, 0xFFFFFFFF, 0x10 | 3, 0x3, 1, 3, 1, 1, 0, 1, 0, 0, 0)
    sregs[: 6 * _SEGMENT.size] = code + data * 5
    _CONTROL.pack_into(sregs, _CONTROL_AT, _CR0_PG_ET_PE, 0, _TABLES_GPA, _CR4_PAE, 0, _EFER_LMA_LME)
    fcntl.ioctl(vcpu, _KVM_SET_SREGS, sregs)

    regs = [0] * 18
    regs[_RCX], regs[_RDI], regs[_RIP] = PAGE_SIZE, _DATA_GPA, _PROGRAM_GPA
    regs[_RFLAGS] = 1 << 1  # always set
    fcntl.ioctl(vcpu, _KVM_SET_REGS, _REGS.pack(*regs))


def _set_slot(vm: int, slot: int, flags: int, gpa: int, memory: mmap.mmap, guest_memfd: int) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = _REGION2.pack(slot, flags, gpa, len(memory), address, 0, guest_memfd, 0, *[0] * 14)
    fcntl.ioctl(vm, _KVM_SET_USER_MEMORY_REGION2, region)


def _owned(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd
