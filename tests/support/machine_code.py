"""Machine code in tests: an assembler, and a vCPU that runs what it made."""

import functools
import subprocess
import tempfile
from pathlib import Path

from kvmsim.cpu.x86.cpus import Cpus
from kvmsim.cpu.x86.engine import Engine
from kvmsim.kvm.exits import Exit

from .both_sides import LocalVm


@functools.cache
def assemble(source: str, at: int = 0) -> bytes:
    """A flat binary of AT&T syntax, linked to `at`."""
    with tempfile.TemporaryDirectory() as place:
        object_, binary = Path(place, "code.o"), Path(place, "code.bin")
        subprocess.run(["as", "--64", "-o", object_, "-"], input=f"{source}\n", text=True, check=True, timeout=60)
        link: list[str | Path] = [
            "ld",
            "-m",
            "elf_x86_64",
            "--oformat",
            "binary",
            f"-Ttext={at:#x}",
            "-e",
            "0",
            "-o",
            binary,
            object_,
        ]
        subprocess.run(link, check=True, timeout=60)
        return binary.read_bytes()


class Code:
    """Code on a vCPU of a VM."""

    def __init__(self, vm: LocalVm, vcpu: int = 0) -> None:
        self.vm = vm
        self.vcpu = vm.vm.vcpu(vcpu)

    @property
    def cpus(self) -> Cpus:
        return self.vm.cpus

    @property
    def engine(self) -> Engine:
        return self.cpus.engine(self.vcpu)

    def place(self, source: str, at: int, **registers: int) -> "Code":
        """Into the memory at a GPA, whose SHARED bit chooses the alias; RIP is there, and the registers are as said."""
        assert self.vm.guest.write(self.vcpu, at, assemble(source, at)) is None
        self.engine.reset()
        self.set(rip=at, **registers)
        return self

    def set(self, **registers: int) -> None:
        for name, value in registers.items():
            self.engine.write(name, value)

    def get(self, name: str) -> int:
        return self.engine.read(name)

    def run(self) -> Exit | None:
        return self.cpus.run(self.vcpu)

    def serve(self) -> Exit | None:
        """Under user space's loop: with its ports."""
        return self.vm.vmm.run(self.vcpu, self.run)

    def step(self, count: int = 1) -> Exit | None:
        return self.cpus.run(self.vcpu, count)

    def console(self) -> str:
        return self.vm.vmm.ports.console(self.vcpu)

    def has_printed(self) -> bool:
        return self.vm.vmm.ports.has_printed(self.vcpu)

    def resume(self) -> object:
        return self.vcpu.kvm_run()

    def answer(self, data: bytes) -> object:
        """What a device says to the MMIO read that the vCPU is at, and KVM_RUN."""
        self.vcpu.run.mmio.data[: len(data)] = list(data)
        return self.vcpu.kvm_run()
