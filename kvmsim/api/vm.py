"""A VM, as a VMM has it."""

import errno
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from kvmsim.instruments.monitor.events import Events
from kvmsim.kvm.alias import PRIVATE, SHARED, Alias
from kvmsim.kvm.region import MemoryRegion, SlotFlag
from kvmsim.kvm.tampering import tamper
from kvmsim.machine import VirtualMachine
from kvmsim.memory.memory import Memory, OpenWindow, WindowMemory, shared_memory
from kvmsim.shell import info
from kvmsim.vmm.policies import POLICIES, UNDER
from kvmsim.vmm.vmm import MakeDesign
from memfsd.common import sync, trace
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_SLOTS, STOP_DEADLINE_S
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .vcpu import VCPU

File = str | os.PathLike[str] | int
"""A path, or an open descriptor."""
EventName = Literal["INVALIDATE", "CONVERSION", "MEMORY_ERROR", "PAIRING_LOST"]
_EVENTS = ("INVALIDATE", "CONVERSION", "MEMORY_ERROR", "PAIRING_LOST")
_numbers = itertools.count()
_names: set[str] = set()
"""Of VMs that are open: traces and events know a VM by its name."""
_names_lock = sync.lock("VM.names")


class Event(NamedTuple):
    """data: as the monitor's event of this name has it (docs/monitor.md), addresses and sizes in bytes."""

    name: str
    data: Mapping[str, Any]


class MemorySlot(NamedTuple):
    """A memslot of one alias; bytes. shows: [start, end) of what it shows, in which punched ranges are missing."""

    slot: int
    private: bool
    guest_phys_addr: int
    memory_size: int
    flags: SlotFlag
    offset: int
    file: str
    shows: tuple[tuple[int, int], ...]


class EptMapping(NamedTuple):
    """A run of leaves of one size in an EPT; bytes. pfn: the first one's frame in its memory (of a private one, the
    store's)."""

    private: bool
    gpa: int
    size: int
    pfn: int
    page_size: int


class VM:
    """A virtual machine of this process: KVM_CREATE_VM. Close it, or use it in a `with` statement.

    Its calls are Refused with the errno that KVM or the store answers, and have then changed nothing. GPAs and sizes
    are bytes. All may come from any thread.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        policy: str = "none",
        under: str = "kept",
        max_slots: int = MAX_SLOTS,
        memory_encryption: Literal["mce", "refuse"] | None = None,
    ) -> None:
        """name: of 1 to 64 bytes, one of its kind in this process; a new one if None. policy, under: as set_policy().
        max_slots: KVM_CAP_NR_MEMSLOTS, of each alias. memory_encryption: private memory is ciphertext in the store's
        windows, and a page that was tampered with ends in a machine check ("mce", as TDX) or the tampering is refused
        ("refuse", as SEV-SNP).

        EEXIST: an open VM has the name. EINVAL: no such policy.
        """
        if not 1 <= max_slots <= MAX_SLOTS:
            raise Refused(errno.EINVAL, f"max_slots {max_slots}: choose 1 to {MAX_SLOTS}")
        self._setup(VirtualMachine(name or _free_name(), max_slots, open_window=_windows(memory_encryption)))
        try:
            self.set_policy(policy, under)
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, machine: VirtualMachine) -> Self:
        """This interface over a VirtualMachine that is put together otherwise; it is closed with it."""
        self = cls.__new__(cls)
        self._setup(machine)
        return self

    def _setup(self, machine: VirtualMachine) -> None:
        with _names_lock:
            if machine.vm.name in _names:
                raise Refused(errno.EEXIST, f"VM {quoted(machine.vm.name)} is open: close it, or choose another name")
            _names.add(machine.vm.name)
        self.machine = machine
        """What it is made of: kvm, vm, guest, vmm. For what this interface does not offer."""
        self._vcpus: dict[int, VCPU] = {}
        self._callbacks: list[tuple[str, Callable[[Event], None]]] = []
        self._observing = ExitStack()
        self._closed = False

    @property
    def name(self) -> str:
        return self.machine.vm.name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Every vCPU leaves KVM_RUN, slots go, and each pairing ends: the store frees the memory. The files stay this
        VM's, for life. EBUSY: a vCPU waits for the store past its deadline."""
        if self._closed:
            return
        self.machine.vmm.cont()  # else a vCPU that is stopped could not leave
        for vcpu in self._vcpus.values():
            vcpu.close()
        self._closed = True
        self.machine.close()
        self._observing.close()
        with _names_lock:
            _names.discard(self.name)

    # -- vCPUs

    def create_vcpu(self, id_: int = 0) -> VCPU:
        """KVM_CREATE_VCPU. EEXIST twice, EINVAL beyond the cap."""
        vm = self.machine.vm
        vcpu = vm.vcpu(0) if id_ == 0 and 0 not in self._vcpus else vm.create_vcpu(id_)  # vCPU 0 is born with its VM
        made = self._vcpus[id_] = VCPU(self.machine, vcpu)
        return made

    @property
    def vcpus(self) -> tuple[VCPU, ...]:
        """In the order in which they were created."""
        return tuple(self._vcpus.values())

    def stop(self) -> None:
        """As QEMU's vm_stop(): no vCPU runs until cont(). EBUSY: one waits for the store, and stays out when it has
        left."""
        if not self.machine.vmm.stop(STOP_DEADLINE_S):
            raise Refused(errno.EBUSY, f"a vCPU has not left KVM_RUN within {STOP_DEADLINE_S:g} s: it stays out after")

    def cont(self) -> None:
        """As QEMU's vm_start()."""
        self.machine.vmm.cont()

    @property
    def is_stopped(self) -> bool:
        return self.machine.vmm.is_stopped

    # -- memslots

    def set_user_memory_region(
        self,
        slot: int,
        guest_phys_addr: int,
        memory_size: int,
        *,
        guest_memfd: File | None = None,
        userspace: File | None = None,
        offset: int = 0,
        flags: SlotFlag = SlotFlag(0),  # noqa: B008 - a constant
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION2. Each alias has its own slots: with guest_memfd, a sealed file, this is a
        private slot, and this is where the file pairs with the VM, for life. Without, it is a shared slot over
        userspace, an ordinary file, or over new anonymous memory (None).

        offset: in the file, in bytes. flags: SlotFlag.LOG_DIRTY_PAGES and READONLY, of a shared slot. A shared slot
        that exists keeps its memory, moves, and gets other flags.
        Refused: EINVAL unaligned, empty, past the end of the file, or not sealed; EEXIST it overlaps a slot of its
        alias; EPERM the file is another VM's; EHOSTDOWN its store is gone; errors of open(2).
        """
        if guest_memfd is not None and userspace is not None:
            raise Refused(errno.EINVAL, "a slot is of guest_memfd or of userspace memory: give one of them")
        if not memory_size:
            raise Refused(errno.EINVAL, "memory_size 0: delete a slot with delete_memory_region")
        alias = SHARED if guest_memfd is None else PRIVATE
        region = MemoryRegion(slot, alias, flags, guest_phys_addr, memory_size, offset)
        memory = self.machine.vmm.memory
        with memory.lock, _os_errors():
            if guest_memfd is not None:
                memory.set_private_slot(region, _path(guest_memfd))
                return
            shown: Memory | None = None
            path = "" if userspace is None else _path(userspace)
            if memory.ram.shared.get(slot) is None:
                memory.check_shared_slot(region)
                shown, path = shared_memory(path or None, offset + memory_size)
            memory.set_shared_slot(region, shown, owned=True, path=path)

    def delete_memory_region(self, slot: int, *, private: bool) -> None:
        """KVM_SET_USER_MEMORY_REGION2 with memory_size 0. What a private slot showed is destroyed. EINVAL: no such
        slot."""
        memory = self.machine.vmm.memory
        with memory.lock:
            memory.delete_slot(slot, private=private)

    def punch_slot(self, slot: int, gpa: int, size: int) -> None:
        """The proposed ioctl: a hole in a private slot, whose contents are destroyed; data around it stays. EINVAL:
        unaligned, or not all inside what the slot shows."""
        memory = self.machine.vmm.memory
        with memory.lock:
            memory.punch_slot(slot, gpa, size)

    def get_dirty_log(self, slot: int) -> list[tuple[int, int]]:
        """KVM_GET_DIRTY_LOG: (gpa, size) of what was written since the last call. ENOENT: the slot does not log."""
        memory = self.machine.vmm.memory
        with memory.lock:
            ranges = memory.get_dirty_log(slot)
        return [(start << PAGE_SHIFT, end - start << PAGE_SHIFT) for start, end in ranges]

    @property
    def memory_slots(self) -> list[MemorySlot]:
        """Of both aliases, as KVM has them."""
        facts: Any = info.slots(self.machine)[0]
        return [
            MemorySlot(
                f["id"],
                f["space"] == "private",
                f["gpa"],
                f["size"],
                SlotFlag(f["flags"]),
                f["offset"],
                f["file"],
                tuple((start, end) for start, end in f["segments"]),
            )
            for f in facts
        ]

    # -- conversions

    @property
    def policy(self) -> str:
        """The name of the policy, or of the design that was set."""
        return self.machine.vmm.policy

    def set_policy(self, name: str, under: str = "kept") -> None:
        """How VCPU.run() handles a guest's wish to convert memory: "none", or by the design "recreate", "punch" or
        "overlay". under: with overlay, what becomes of the private page ("kept" or "freed"). EINVAL."""
        if name not in POLICIES or under not in UNDER:
            choices = f"{', '.join(POLICIES)}, and under {', '.join(UNDER)}"
            raise Refused(errno.EINVAL, f"policy {name!r} under {under!r} does not exist: choose {choices}")
        self.machine.vmm.set_policy(name, under)

    def set_design(self, make: MakeDesign) -> None:
        """A design of conversion of your own: make(memory, shared_copy, tally) returns a Design, which converts from
        now on. EEXIST: a policy has its name."""
        self.machine.vmm.set_design(make)

    def convert(self, gpa: int, size: int, *, private: bool) -> int:
        """Convert [gpa, gpa + size) by the policy's design with all vCPUs out of KVM_RUN; how many bytes changed.

        EINVAL: unaligned, empty, no policy converts, or not all of it is memory that can be. Other refusals are
        KVM's and the store's: all of it, or nothing, is converted.
        """
        if (gpa | size) % PAGE_SIZE or size <= 0 or gpa < 0:
            raise Refused(errno.EINVAL, f"gpa {gpa:#x} and size {size:#x}: convert whole pages of 4096 bytes")
        start = Gfn(gpa >> PAGE_SHIFT)
        changed = self.machine.vmm.convert(start, start + (size >> PAGE_SHIFT), private=private)
        if changed is None:
            raise Refused(
                errno.EINVAL,
                f"{size:#x} bytes at gpa {gpa:#x} cannot be converted with policy {self.policy}: set slots for all of "
                "it, and a policy",
            )
        return changed << PAGE_SHIFT

    # -- the initial image, and what KVM and the host do with guest memory

    def finalize(self) -> None:
        """KVM_TDX_FINALIZE_VM: no image is added any more. EINVAL the second time."""
        self.machine.kvm.image.finalize()

    def measurement(self) -> bytes:
        """48 bytes: of what VCPU.init_mem_region() has added."""
        return self.machine.kvm.image.measurement()

    def enable_exit_hypercall(self, mask: int) -> None:
        """KVM_CAP_EXIT_HYPERCALL: a bit for each hypercall that comes to user space as HypercallExit."""
        self.machine.vm.exit_hypercalls = mask

    def read_guest(self, gpa: int, length: int) -> bytes:
        """kvm_read_guest(): KVM's own access, which reaches shared slots only. EFAULT: private memory, or none."""
        return self._host_access(gpa, length, None)

    def write_guest(self, gpa: int, data: bytes) -> None:
        """kvm_write_guest(). EFAULT: private memory, none, or a READONLY slot."""
        self._host_access(gpa, len(data), data)

    def _host_access(self, gpa: int, length: int, data: bytes | None) -> bytes:
        got = self.machine.guest.host_access(gpa, length, data)
        if isinstance(got, bytes):
            return got
        raise Refused(errno.EFAULT, f"gpa {gpa:#x} is private memory, which the host does not reach: convert it first")

    def tamper(self, gpa: int, data: bytes) -> None:
        """The host attacks: bytes over what a window of the store holds of private memory. ENOENT: no frame is there.
        EFAULT: the hardware stops it (memory_encryption="refuse")."""
        tamper(self.machine.vm, gpa, data)

    # -- looking at it

    def stats(self) -> dict[str, int]:
        """Counters since the VM was made, by KVM's names where it has them; then those of conversions."""
        facts: Any = info.stats(self.machine)[0]
        return dict(facts)

    def memory(self) -> dict[str, int]:
        """Bytes: private_mapped, private_populated, shared_populated, and doubled, which are held twice."""
        facts: Any = info.memory(self.machine)[0]
        return dict(facts)

    def ept(self, *, private: bool) -> Iterable[EptMapping]:
        """What one EPT maps now, in order."""
        alias = Alias.PRIVATE if private else Alias.SHARED
        for f in info.mappings(self.machine, alias):
            yield EptMapping(private, f["gpa"], f["size"], f["pfn"], f["page_size"])

    def on(self, event: EventName, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call back when it happens: INVALIDATE before the store gets its acknowledgement, which waits for the
        callback; CONVERSION; MEMORY_ERROR, with which KVM_RUN comes back; PAIRING_LOST. Returns what ends it.

        The thread is the one that does it, with locks held: the callback must not call this VM. What it raises goes to
        sys.unraisablehook. EINVAL: no such event.
        """
        if event not in _EVENTS:
            raise Refused(errno.EINVAL, f"event {event!r} does not exist: choose {', '.join(_EVENTS)}")
        if not self._callbacks:
            self._observing.enter_context(trace.observed(vm=Events(self._emit)))
        entry = event, callback
        self._callbacks = [*self._callbacks, entry]

        def end() -> None:
            self._callbacks = [other for other in self._callbacks if other is not entry]
            if not self._callbacks:
                self._observing.close()

        return end

    def _emit(self, name: str, data: dict[str, Any]) -> None:
        if data.get("vm") != self.name:
            return
        for wanted, callback in self._callbacks:
            if wanted == name:
                try:
                    callback(Event(name, data))
                except Exception as error:
                    hooked = _Unraisable(type(error), error, error.__traceback__, f"callback of {name}", callback)
                    sys.unraisablehook(hooked)  # type: ignore[arg-type]


class _Unraisable(NamedTuple):
    """As sys.UnraisableHookArgs."""

    exc_type: type[BaseException]
    exc_value: BaseException
    exc_traceback: TracebackType | None
    err_msg: str
    object: object


def _free_name() -> str:
    while (name := f"vm{next(_numbers)}") in _names:
        pass
    return name


def _windows(memory_encryption: str | None) -> OpenWindow:
    if memory_encryption is None:
        return WindowMemory
    if memory_encryption not in ("mce", "refuse"):
        raise Refused(errno.EINVAL, f"memory_encryption {memory_encryption!r} does not exist: choose mce or refuse")
    from kvmsim.memory.encrypted import MemoryKey  # whose library takes longer to load than all else

    return MemoryKey(refuse=memory_encryption == "refuse").open_window


def _path(file: File) -> str:
    return f"/proc/self/fd/{file}" if isinstance(file, int) else os.fspath(file)


class _os_errors:  # noqa: N801 - used as a function
    """An OSError of the body is Refused with its errno."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace_: object) -> None:
        if isinstance(error, OSError):
            where = f"{quoted(error.filename)}: " if error.filename else ""
            raise Refused(error.errno or errno.EIO, f"{where}{error.strerror or error}") from None
