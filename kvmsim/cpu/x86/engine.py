"""unicorn as the CPU of one vCPU: registers, a stretch of guest mode, and why it ended.

A stretch ends precisely, at an instruction: refused accesses leave everything as it was, and kicks take effect between
two blocks. unicorn's TLB and translated code are flushed before the next stretch when something says so. A block that
may have port instructions is looked at before it runs the first time, and gets a hook that stops before the first one.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import unicorn
from unicorn import unicorn_const as uc_const
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

from kvmsim.kvm.kvm_run import KvmRun
from kvmsim.kvm.vcpu import Vcpu
from memfsd.uapi.units import PAGE_SIZE

from . import _fill, decode
from .decrypted import Copies
from .layout import Access, Refusal, Stopped, VcpuState
from .machine import Machine

SLICE_BLOCKS = 20_000
"""Blocks of a turn while another vCPU waits for its own, or while code runs on decrypted copies."""
MAX_STOPS = 256
"""Instructions with a hook before them; when there would be more, all are forgotten, and found again."""
_TCG_BYTES = 32 << 20
_RESET_CR0 = 0x80050033
_RESET_CR4 = 0x6A0
"""Paging is on in both: else a load of CR3 would not flush unicorn's TLB."""

GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
"""In the order of gdb's packets."""
REGISTERS = (*GENERAL, "rip", "rflags", "cr0", "cr2", "cr3", "cr4")
_PAGING = frozenset(("cr0", "cr3", "cr4"))
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
BASES = ("fs_base", "gs_base")
_IDS = {name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in (*REGISTERS, *SEGMENTS, *BASES)}
_REFUSALS = {int(refusal): refusal for refusal in Refusal}
_ACCESSES = {int(access): access for access in Access}
_TABLES = {"idtr": x86.UC_X86_REG_IDTR, "gdtr": x86.UC_X86_REG_GDTR, "tr": x86.UC_X86_REG_TR}


class Why(Enum):
    """What ended a stretch."""

    KICKED = auto()
    """Somebody wants it out, or its turn is over."""
    COUNTED = auto()
    """As many instructions as were asked for have retired."""
    HALTED = auto()
    REFUSED = auto()
    """A fill: the state says which."""
    INVALID = auto()
    """An instruction that unicorn does not know, those that exit to a VMM among them."""
    STOP = auto()
    """Before a port instruction, or one that cannot be decoded."""
    EXCEPTION = auto()
    """The vector is in `Stop.vector`."""
    MACHINE_CHECK = auto()
    """A page of encrypted memory does not verify: its gpa, and in `va` the frame's place in its window."""


@dataclass(slots=True)
class Stop:
    """The end of a stretch. From refusal on: of a refused fill. Not frozen, which would make it four times as slow."""

    why: Why
    refusal: Refusal = Refusal.NONE
    access: Access = Access.READ
    va: int = 0
    gpa: int = 0
    pfn: int = 0
    of_table: bool = False
    """gpa is of an entry of the guest's page tables."""
    error_code: int = 0
    vector: int = -1
    code: bytes = b""
    """From RIP to the end of its page, at most an instruction's; of a stop before it."""


class Engine:
    """Used by one thread at a time: in guest mode, and in the vCPU's turn."""

    def __init__(self, machine: Machine, vcpu: Vcpu) -> None:
        self._machine = machine
        self._vcpu = vcpu
        self.uc = uc = unicorn.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
        uc.ctl_set_tcg_buffer_size(_TCG_BYTES)  # before what initialises it
        uc.ctl_set_tlb_mode(uc_const.UC_TLB_VIRTUAL)
        uc.ctl_exits_enabled(True)
        self.state = state = VcpuState()
        state.emu_stop = _address(uclib.uc_emu_stop)
        state.reg_read = _address(uclib.uc_reg_read)
        self._handle = uc._uch
        state.uc = self._handle.value if hasattr(self._handle, "value") else self._handle
        self._register = ctypes.c_uint64()
        self._to_register = ctypes.byref(self._register)
        state.kicked = ctypes.addressof(vcpu.kicked)
        state.immediate_exit = ctypes.addressof(vcpu.run) + KvmRun.immediate_exit.offset
        state.cr0_id, state.cr3_id, state.rflags_id = _IDS["cr0"], _IDS["cr3"], _IDS["rflags"]
        state.slice = SLICE_BLOCKS
        self.copies = Copies(state)
        self._hooks = [
            _hook(uc, uc_const.UC_HOOK_TLB_FILL, _fill.FILL, state),
            _hook(uc, uc_const.UC_HOOK_BLOCK, _fill.BLOCK, state),
        ]
        uc.hook_add(uc_const.UC_HOOK_INTR, self._on_interrupt)
        uc.mem_map_ptr(self.copies.paddr, self.copies.size_bytes, uc_const.UC_PROT_ALL, self.copies.host)
        self._vector = -1
        self._mapped: set[tuple[int, int, int]] = set()
        """(first, end, host) of the machine's regions that unicorn has."""
        self._stops: dict[int, ctypes.c_size_t] = {}
        """Hooks by the address of their instruction."""
        self._counts = False
        self._seen_version = 0
        self._seen_flushes = -1
        self.write("cr4", _RESET_CR4)
        self.write("cr0", _RESET_CR0)
        self._as_reset = uc.context_save()

    def reset(self) -> None:
        """Long mode at CPL 0 with flat segments; CR3 0: virtual addresses are guest physical ones."""
        self.uc.context_restore(self._as_reset)
        self.flush()

    def read(self, name: str) -> int:
        """unicorn's own function takes ten times as long to find out how wide it is."""
        self._register.value = 0
        _check(uclib.uc_reg_read(self._handle, _IDS[name], self._to_register))
        return self._register.value

    def write(self, name: str, value: int) -> None:
        self._register.value = value
        _check(uclib.uc_reg_write(self._handle, _IDS[name], self._to_register))
        if name in _PAGING:
            self.flush_tlb()

    def registers(self) -> dict[str, int]:
        return {name: self.read(name) for name in REGISTERS}

    def segments(self) -> dict[str, int]:
        """Selectors."""
        return {name: self.read(name) for name in SEGMENTS}

    def cpuid_hook(self, answer: Callable[[int, int], tuple[int, int, int, int] | None]) -> None:
        """(leaf, subleaf) to EAX, EBX, ECX, EDX; None leaves it to unicorn."""

        def on_cpuid(_: object, __: object) -> int:
            found = answer(self.read("rax") & 0xFFFFFFFF, self.read("rcx") & 0xFFFFFFFF)
            if found is None:
                return 0
            for name, value in zip(("rax", "rbx", "rcx", "rdx"), found, strict=True):
                self.write(name, value)
            return 1

        self.uc.hook_add(uc_const.UC_HOOK_INSN, on_cpuid, None, 1, 0, x86.UC_X86_INS_CPUID)

    def table(self, name: str) -> tuple[int, int, int, int]:
        """selector, base, limit, flags of IDTR, GDTR or TR."""
        value: tuple[int, int, int, int] = self.uc.reg_read(_TABLES[name])
        return value

    def flush_tlb(self) -> None:
        self.state.flush_tlb = 1

    def flush_code(self) -> None:
        """What is translated, not the TLB: what the code was read from may have changed, not where it is."""
        self.state.flush_code = 1

    def flush(self) -> None:
        self.state.flush_tlb = self.state.flush_code = 1

    def enter(self) -> None:
        """Before the first stretch of a turn: what was taken away meanwhile is forgotten."""
        tlb = self._vcpu.tlb
        flushes = tlb.flush_count + tlb.ranged_flush_count + self._vcpu.kick_count
        if flushes != self._seen_flushes:
            self._seen_flushes = flushes
            self.flush()
        self.map_regions()
        self.state.blocks = 0

    def map_regions(self) -> None:
        known = self._machine.ram()
        if self._seen_version == self._machine.version:
            return
        wanted = {(ram.first, ram.end, ram.host) for ram in known if ram.host}
        self._seen_version = self._machine.version
        for first, end, _ in self._mapped - wanted:
            self.uc.mem_unmap(first << 12, end - first << 12)
        for first, end, host in wanted - self._mapped:
            self.uc.mem_map_ptr(first << 12, end - first << 12, uc_const.UC_PROT_ALL, host)
        self._mapped = wanted
        self.flush()

    def run(self, count: int = 0) -> Stop:
        """A stretch; count: of so many instructions at most."""
        state = self.state
        if bool(count) is not self._counts:  # what is translated already does not count
            self._counts = bool(count)
            self.flush_code()
        state.looks_for_ports = count != 1  # of one that is stepped the caller knows
        while True:
            self._flush()
            state.stopped, state.refusal, state.until_look = Stopped.GOES_ON, Refusal.NONE, 1
            stop = self._emulate(count)
            if state.stopped != Stopped.UNSEEN:
                return stop
            refused = self._see(state.block, state.block_bytes)
            if refused is not None or count:
                return refused or Stop(Why.KICKED)

    def _emulate(self, count: int) -> Stop:
        state = self.state
        self._vector = -1
        try:
            self.uc.emu_start(self.read("rip"), 0, 0, count)
        except unicorn.UcError as error:
            if state.refusal:
                return self._refused()
            if error.errno == uc_const.UC_ERR_INSN_INVALID:
                return Stop(Why.INVALID)
            if self._vector < 0:
                raise
        if self._vector >= 0:
            return Stop(Why.EXCEPTION, vector=self._vector)
        if state.stopped == Stopped.AT_STOP:
            return self._stop()
        if state.stopped:
            return Stop(Why.KICKED)
        if count:
            return Stop(Why.COUNTED)
        return Stop(Why.HALTED)

    def _flush(self) -> None:
        state = self.state
        if state.flush_code:
            self.uc.ctl_flush_tb()
            state.flush_code = 0
        if state.flush_tlb:
            self.uc.ctl(uc_const.UC_CTL_TLB_FLUSH, uc_const.UC_CTL_IO_WRITE)
            state.flush_tlb = 0

    # -- port instructions

    def _see(self, va: int, length: int) -> Stop | None:
        """A hook for a block before it runs; what follows it is another block. The refusal if it cannot be read."""
        code = b""
        while len(code) < length:
            at = va + len(code)
            found = self.look(at, Access.FETCH)
            if isinstance(found, Stop):
                return found
            code += ctypes.string_at(found[1], min(length - len(code), PAGE_SIZE - at % PAGE_SIZE))
        first = decode.first_stop(code, va, irets=self._vcpu.is_in_nmi)
        if first is not None and first not in self._stops:
            if len(self._stops) == MAX_STOPS:
                self.forget_stops()
            self._stops[first] = _hook(self.uc, uc_const.UC_HOOK_CODE, _fill.STOP, self.state, first, first)
            self.flush_code()
        _fill.see(ctypes.addressof(self.state), va, code)
        return None

    def _stop(self) -> Stop:
        rip = self.read("rip")
        found = self.look(rip, Access.FETCH)
        if isinstance(found, Stop):
            return found
        length = min(decode.MAX_INSN_BYTES, PAGE_SIZE - rip % PAGE_SIZE)
        return Stop(Why.STOP, code=ctypes.string_at(found[1], length))

    def forget_stops(self) -> None:
        """Also those of code that has changed."""
        for hook in self._stops.values():
            uclib.uc_hook_del(self.uc._uch, hook)
        self._stops.clear()
        ctypes.memset(ctypes.addressof(self.state) + VcpuState.seen.offset, 0, VcpuState.seen.size)
        self.state.seen_count = 0
        self.flush_code()

    def block_nmis(self, *, on: bool) -> None:
        """Meanwhile each IRET is a stop."""
        if on != self._vcpu.is_in_nmi:
            self._vcpu.is_in_nmi = on
            self.state.looks_for_irets = on
            self.forget_stops()

    def look(self, va: int, access: Access) -> tuple[int, int] | Stop:
        """(guest physical address, address in this process) of a virtual address; what a fill would be refused for."""
        self.state.refusal = Refusal.NONE
        found = _fill.look(ctypes.addressof(self.state), va, access)
        return self._refused() if found is None else found

    def _refused(self) -> Stop:
        state = self.state
        return Stop(
            Why.REFUSED,
            _REFUSALS[state.refusal],
            _ACCESSES[state.access],
            state.va,
            state.gpa,
            state.pfn,
            bool(state.of_table),
            state.error_code,
        )

    def _on_interrupt(self, uc: unicorn.Uc, number: int, _: object) -> None:
        self._vector = number
        uc.emu_stop()


def _address(function: object) -> int:
    value = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert value
    return value


def _hook(uc: unicorn.Uc, kind: int, function: int, state: VcpuState, first: int = 1, last: int = 0) -> ctypes.c_size_t:
    """Everywhere, or at addresses from first to last."""
    handle = ctypes.c_size_t()
    data = ctypes.c_void_p(ctypes.addressof(state))
    bounds = ctypes.c_uint64(first), ctypes.c_uint64(last)
    _check(uclib.uc_hook_add(uc._uch, ctypes.byref(handle), kind, ctypes.c_void_p(function), data, *bounds))
    return handle


def _check(status: int) -> None:
    if status != uc_const.UC_ERR_OK:
        raise unicorn.UcError(status)
