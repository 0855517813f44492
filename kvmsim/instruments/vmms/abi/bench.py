"""One store and its VMs, and what situations ask of them: each answer is recorded in words.

What the ABIs call alike is asked as each has it: `make`, `bind`, `convert`. All else is one call, which an ABI has or
has not.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvmsim.kvm.exits import Exit, FailedExit, MemoryErrorExit, MemoryFaultExit
from kvmsim.kvm.hypercalls import MAP_GPA, SHARED_BIT, STATUS_NAMES, SUBFUNC_UNSUPPORTED, Registers
from kvmsim.kvm.region import ATTRIBUTE_PRIVATE, AttributesRange, MemoryRegion, Region2, SlotFlag, Userspace
from kvmsim.machine import VirtualMachine
from kvmsim.memory.memory import AnonymousMemory
from kvmsim.store.link import FileId
from memfsd.core.gmem import NoRoom
from memfsd.uapi.abi import Abi, Attributes, GmemFlag
from memfsd.uapi.errors import NO_RESOURCES, PeerLost, Refused, errno_name
from memfsd.uapi.gmem_ioctls import MemoryAttributes2
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .store import AbiStore, File

GPA = 0x100000
PAGES = 8
SIZE = PAGES * PAGE_SIZE
RAM = Region2(0, SlotFlag.GUEST_MEMFD, GPA, SIZE)
_FRAMES = 64
_SLOTS = 16
_NOT_THERE = (errno.ENOTTY, errno.EOPNOTSUPP)


class Answer(NamedTuple):
    """To what was asked. reason: of a refusal, for people."""

    asked: str
    answer: str
    reason: str = ""


class CannotBegin(Exception):
    """What a situation begins with was refused: its answer is the situation's."""


class Bench:
    """Of one ABI. Close it."""

    def __init__(self, abi: Abi) -> None:
        self.abi = abi
        self.store = AbiStore(_FRAMES, abi)
        self.machine = VirtualMachine("abi", _SLOTS, pair=self.store.pair, abi=abi)
        self._machines = [self.machine]
        self._owned: dict[int, VirtualMachine] = {}
        self._closed: set[int] = set()
        self._names = 0
        self.answers: list[Answer] = []

    def close(self) -> None:
        for machine in self._machines:
            machine.close()
        self.store.close()

    # -- asking

    def ask(self, asked: str, call: Callable[[], object]) -> None:
        """Record what it answers. Raises only what this process has no more of."""
        try:
            self.answers.append(Answer(asked, in_words(call())))
        except (Refused, OSError) as error:
            self._refused(asked, error)
        except PeerLost as lost:
            self.answers.append(Answer(asked, "EHOSTDOWN", str(lost)))

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """What the situation needs: a refusal in here ends it."""
        try:
            yield
        except (Refused, OSError) as error:
            self._refused("to begin with", error)
            raise CannotBegin from None

    def _refused(self, asked: str, error: Refused | OSError) -> None:
        number = error.errno or errno.EIO
        if number in NO_RESOURCES and not isinstance(error, NoRoom):
            raise error
        reason = error.reason if isinstance(error, Refused) else str(error)
        self.answers.append(Answer(asked, refusal(number), reason))

    # -- files

    def new(self) -> File:
        self._names += 1
        return self.store.new(f"file{self._names}")

    def make(self, size: int = SIZE, flags: int | None = None, vm: VirtualMachine | None = None) -> File:
        """A file for a guest, with its size, and its VM where it has one from the beginning. flags: None are those with
        which the ABI can convert it."""
        file = self.new()
        if not self.abi.is_sized_at_creation:
            self.store.seal(file)
            self.store.truncate(file, size)
            return file
        if flags is None:
            flags = GmemFlag.MMAP if self.abi.attributes is Attributes.FILE else 0
        self.store.create_guest_memfd(file, size, flags)
        machine = vm or self.machine
        machine.kvm.guest_memfds.own(file.gmem)
        self._owned[file.ino] = machine
        return file

    def release(self, file: File) -> None:
        """close(2) of its last descriptor: KVM hears of it where the file is KVM's."""
        machine = self._owned.pop(file.ino, None)
        if machine is not None:
            self._closed.add(file.ino)
            status = os.fstat(file.fd)
            machine.kvm.guest_memfds.release(FileId(status.st_dev, status.st_ino))

    # -- VMs and slots

    def vm(self, abi: Abi | None = None) -> VirtualMachine:
        """Another one, of this ABI or another."""
        machine = VirtualMachine(f"abi{len(self._machines)}", _SLOTS, pair=self.store.pair, abi=abi or self.abi)
        self._machines.append(machine)
        return machine

    def bind(
        self, file: File, gpa: int = GPA, *, slot: int = 0, size: int = SIZE, offset: int = 0, flags: int = 0,
        vm: VirtualMachine | None = None,
    ) -> None:  # fmt: skip
        """A slot of the file: with memory of user space beside it where both are one slot."""
        machine = vm or self.machine
        memory = machine.vmm.memory
        with memory.lock:
            if not machine.vm.abi.has_one_space:
                memory.set_private_slot(MemoryRegion.private(slot, gpa, size, flags=flags, offset=offset), file.path)
                return
        self.region2(file, Region2(slot, flags | SlotFlag.GUEST_MEMFD, gpa, size, offset=offset), machine)

    def region2(self, file: File, region: Region2 = RAM, vm: VirtualMachine | None = None) -> None:
        """KVM_SET_USER_MEMORY_REGION2 with memory of user space beside the file's."""
        memory, mapped = (vm or self.machine).vmm.memory, AnonymousMemory(SIZE)
        gmem = None if file.ino in self._closed else file.gmem
        with memory.lock:
            memory.set_region2(region, Userspace(mapped, 0, "(anonymous)", owned=True), gmem)

    def delete(self, slot: int = 0) -> None:
        memory = self.machine.vmm.memory
        with memory.lock:
            if self.abi.has_one_space:
                memory.set_region2(Region2(slot, 0, 0, 0), Userspace())
            else:
                memory.delete_slot(slot, private=True)

    def guest(self, flags: int | None = None) -> File:
        """RAM: a file in slot 0 at GPA, all of it private."""
        with self.beginning():
            file = self.make(flags=flags)
            self.bind(file)
            if self.abi.attributes is Attributes.VM:
                self.vm_attributes(GPA, SIZE, ATTRIBUTE_PRIVATE)
            if self.abi.attributes is Attributes.NONE:
                self.machine.vmm.set_policy("punch")
        return file

    @property
    def is_born_shared(self) -> bool:
        """Pages that `make` makes are shared before anybody converts them."""
        return self.abi.attributes is Attributes.VM

    # -- conversion

    def convert(self, file: File, *, private: bool, page: int = 0, count: int = PAGES) -> None:
        """RAM of `guest`, by user space: the attributes of the VM or of the file, or the policy `punch`."""
        offset, size, attributes = page * PAGE_SIZE, count * PAGE_SIZE, ATTRIBUTE_PRIVATE if private else 0
        if self.abi.attributes is Attributes.VM:
            self.vm_attributes(GPA + offset, size, attributes)
        elif self.abi.attributes is Attributes.FILE:
            self.file_attributes(file, offset, size, attributes)
        else:
            first = Gfn((GPA >> PAGE_SHIFT) + page)
            if self.machine.vmm.convert(first, first + count, private=private) is None:
                raise Refused(errno.EINVAL, "no slots that can be converted are there")

    def vm_attributes(
        self, gpa: int, size: int, attributes: int, flags: int = 0, vm: VirtualMachine | None = None
    ) -> None:
        (vm or self.machine).kvm.attributes.set(AttributesRange(gpa, size, attributes, flags))

    def file_attributes(self, file: File, offset: int, size: int, attributes: int, flags: int = 0) -> None:
        self.store.set_attributes(file, MemoryAttributes2(offset, size, attributes, flags))

    # -- the guest, on vCPU 0

    def read(self, page: int = 0, *, shared: bool = False) -> object:
        vcpu = self.machine.vm.vcpu(0)
        return self.machine.guest.read(vcpu, GPA + page * PAGE_SIZE, 8, shared=shared)

    def write(self, data: bytes, page: int = 0, *, shared: bool = False) -> Exit | None:
        vcpu = self.machine.vm.vcpu(0)
        return self.machine.guest.write(vcpu, GPA + page * PAGE_SIZE, data.ljust(8), shared=shared)

    def written(self, data: bytes, page: int = 0, *, shared: bool = False) -> None:
        """What a situation begins with."""
        exit_ = self.write(data, page, shared=shared)
        if exit_ is not None:
            self.answers.append(Answer("to begin with", in_words(exit_)))
            raise CannotBegin

    def again(self) -> object:
        """KVM_RUN."""
        return self.machine.vm.vcpu(0).kvm_run()

    def map_gpa(self, *, private: bool, gpa: int = GPA, size: int = PAGE_SIZE) -> object:
        """TDG.VP.VMCALL<MapGPA>."""
        asked = Registers(r11=MAP_GPA, r12=gpa if private else gpa | SHARED_BIT, r13=size)
        return self.machine.guest.tdvmcall(self.machine.vm.vcpu(0), asked)

    def vmcall(self, nr: int, *args: int) -> object:
        answer = self.machine.guest.vmcall(self.machine.vm.vcpu(0), nr, args)
        return answer - (1 << 64) if isinstance(answer, int) and answer >> 63 else answer

    def prefault(self, gpa: int = GPA, size: int = SIZE, *, shared: bool = False) -> str:
        left = self.machine.kvm.pre_fault(self.machine.vm.vcpu(0), gpa, size, shared=shared)
        return f"{left >> PAGE_SHIFT} pages are left" if left else "all"


def refusal(number: int) -> str:
    return f"not there ({errno_name(number)})" if number in _NOT_THERE else errno_name(number)


def in_words(answer: object) -> str:
    """As the tables show it."""
    match answer:
        case None:
            return "done"
        case bytes():
            return answer.rstrip().decode() if answer.strip(b"\0") else "zeros"
        case Registers(r10=status):
            return "not there (unsupported)" if status == SUBFUNC_UNSUPPORTED else STATUS_NAMES[status]
        case MemoryErrorExit():
            return " ".join(["MEMORY_ERROR,", *_alias(answer), *(["explicit"] if answer.explicit else [])])
        case MemoryFaultExit() | FailedExit():
            return " ".join([f"{answer.reason.name},", *_alias(answer)])
    return answer.reason.name if isinstance(answer, Exit) else str(answer)


def _alias(exit_: MemoryErrorExit | MemoryFaultExit | FailedExit) -> list[str]:
    words = [] if isinstance(exit_, FailedExit) else ["private" if exit_.private else "shared"]
    return [*words, *([errno_name(exit_.errno)] if exit_.errno else [])]
