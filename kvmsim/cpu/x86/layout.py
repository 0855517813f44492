"""The structures that _fill.c shares with Python: what a fill needs to know, and what it reports."""

import ctypes
from ctypes import c_uint32, c_uint64, c_void_p
from enum import IntEnum

from . import _fill

MAX_VCPUS = 256
MAX_REGIONS = 256
MAX_COPIES = 64
MAX_SCRATCH = 8
_EXECUTED = 4096
_GUESSES = 512
_SEEN = 4096


class Access(IntEnum):
    """unicorn's uc_mem_type."""

    READ = 16
    WRITE = 17
    FETCH = 18


class Refusal(IntEnum):
    """Why a fill was refused."""

    NONE = 0
    VIOLATION = 1
    """Of the EPT."""
    NOT_MAPPED = 2
    """The frame is of a memory that unicorn does not have yet."""
    NOT_COPIED = 3
    """The page has to be decrypted first."""
    UNREACHABLE = 4
    """The page is of a memory that is read and written by system calls."""
    GATE_CLOSED = 5
    """The tables are being changed."""
    PAGE_FAULT = 6
    """Of the guest's own tables: error_code is #PF's."""
    NOT_CANONICAL = 7
    BEYOND = 8
    """Past the guest's physical addresses."""


class Stopped(IntEnum):
    """By which hook, and why."""

    GOES_ON = 0
    KICKED = 1
    UNSEEN = 2
    """Before a block that may have port instructions."""
    AT_STOP = 3
    """Before an instruction that must not be executed."""


class RegionKind(IntEnum):
    """How code reaches a memory: by itself, by decrypted copies, or not at all."""

    DIRECT = 0
    COPIED = 1
    WAITS = 2


class Region(ctypes.Structure):
    """Frames [pfn, end) of the host, and where this process has the first one."""

    _fields_ = (("pfn", c_uint64), ("end", c_uint64), ("host", c_uint64), ("kind", c_uint64))


class VmState(ctypes.Structure):
    """One for each VM."""

    _fields_ = (
        ("tables", c_uint64 * 2),
        ("region_count", c_uint64),
        ("regions", Region * MAX_REGIONS),
        ("executed", c_uint64 * _EXECUTED),
        ("executed_count", c_uint64),
        ("vcpu_count", c_uint64),
        ("vcpus", c_void_p * MAX_VCPUS),
        ("gate", c_uint32),
        ("waiting", c_uint32),
    )


class Copy(ctypes.Structure):
    """A decrypted page: the frame that it is of."""

    _fields_ = (("pfn", c_uint64), ("dirty", c_uint64))


class Scratch(ctypes.Structure):
    """A page of virtual addresses that one instruction finds elsewhere."""

    _fields_ = (("va", c_uint64), ("paddr", c_uint64))


class VcpuState(ctypes.Structure):
    """One for each vCPU."""

    _fields_ = (
        ("vm", c_void_p),
        ("emu_stop", c_void_p),
        ("reg_read", c_void_p),
        ("uc", c_void_p),
        ("kicked", c_void_p),
        ("immediate_exit", c_void_p),
        ("cr0_id", c_uint64),
        ("cr3_id", c_uint64),
        ("rflags_id", c_uint64),
        ("slice", c_uint64),
        ("blocks", c_uint64),
        ("copies_paddr", c_uint64),
        ("copies_host", c_uint64),
        ("copy_count", c_uint64),
        ("copies", Copy * MAX_COPIES),
        ("scratch_count", c_uint64),
        ("scratch", Scratch * MAX_SCRATCH),
        ("fills", c_uint64),
        ("sites", c_uint64),
        ("va", c_uint64),
        ("gpa", c_uint64),
        ("pfn", c_uint64),
        ("guesses", c_uint64 * _GUESSES),
        ("of_table", c_uint32),
        ("refusal", c_uint32),
        ("access", c_uint32),
        ("error_code", c_uint32),
        ("stopped", c_uint32),
        ("flush_tlb", c_uint32),
        ("flush_code", c_uint32),
        ("ran_copies", c_uint32),
        ("walking", c_uint32),
        ("wants_window", c_uint32),
        ("confidence", c_uint32),
        ("looks_for_ports", c_uint32),
        ("looks_for_irets", c_uint32),
        ("until_look", c_uint32),
        ("block_bytes", c_uint32),
        ("padding", c_uint32),
        ("block", c_uint64),
        ("seen_count", c_uint64),
        ("seen", c_uint64 * _SEEN),
    )


assert ctypes.sizeof(VmState) == _fill.VM_BYTES, "layout.py and _fill.c differ: build the extension again"
assert ctypes.sizeof(VcpuState) == _fill.VCPU_BYTES, "layout.py and _fill.c differ: build the extension again"
