"""The machine a figure was measured on, and pinning to one of its cores."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

_KVM_MODULES = ("kvm_intel", "kvm_amd", "kvm_pvm")


@contextmanager
def pin(cpu: int) -> Iterator[None]:
    """Run the calling thread, and the processes it starts meanwhile, on one core only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def first_cpu() -> int:
    """The lowest core that this thread may run on."""
    return min(os.sched_getaffinity(0))


def describe(date: str) -> dict[str, str | int | bool | None]:
    """Kernel, processor, versions and KVM of this machine; None where there is none.

    kvm_module distinguishes real hardware virtualisation from kvm_pvm, which shadows page tables in software.
    """
    return {
        "date": date,
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "pyfuse3": _pyfuse3_version(),
        "libfuse": _libfuse_version(),
        "dev_kvm": os.access("/dev/kvm", os.R_OK | os.W_OK),
        "kvm_module": next((name for name in _KVM_MODULES if Path("/sys/module", name).exists()), None),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _pyfuse3_version() -> str | None:
    try:
        return metadata.version("pyfuse3")
    except metadata.PackageNotFoundError:
        return None


def _libfuse_version() -> str | None:
    # libfuse3.so.4 came with libfuse 3.17.
    for soname in ("libfuse3.so.3", "libfuse3.so.4"):
        try:
            version = ctypes.CDLL(soname).fuse_pkgversion
        except OSError:
            continue
        version.restype = ctypes.c_char_p
        return str(version().decode())
    return None
