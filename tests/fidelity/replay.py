"""kvmsim answers a case that was made for KVM_SET_USER_MEMORY_REGION(2).

What stands for what:

    a VM                              a Kvm
    a guest_memfd                     a sealed file of a store in this process; KVM's belongs to a VM when it is
                                      made, ours when that VM makes its first slot of it
    closing it                        unlinking the file: no later op finds it, slots keep it
    a slot with KVM_MEM_GUEST_MEMFD   a private slot
    uaddr [memory, offset]            a shared slot's memory and offset
    an op on a slot that exists       goes to that slot's address space: in kvmsim an id may name one of each
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fidelity.cases import A_BYTES, GUEST_MEMFD, Op

import kvmsim.store.link
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.region import MemoryRegion
from kvmsim.kvm.slots.memslots import check_region
from kvmsim.kvm.vm import Vm
from kvmsim.memory.memory import AnonymousMemory
from kvmsim.store.link import Callbacks, StoreLink
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.limits import MAX_SLOTS
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore

_SPACE_SHIFT = 16
_ID_MASK = (1 << _SPACE_SHIFT) - 1


class Simulated:
    """One case's VMs, memories and files. Use `simulated`."""

    def __init__(self, place: Path, *, fixed_gfn: bool) -> None:
        self._store = LocalStore(place, fixed_gfn=fixed_gfn)
        self._place = place
        self._inodes: set[int] = set()
        self._machines: dict[str, Kvm] = {}
        self._memories: dict[str, AnonymousMemory] = {}
        self.answer({"op": "create_vm", "as": "vm"})
        self.answer({"op": "anon", "as": "a"})

    def answer(self, op: Op) -> dict[str, object]:
        """As the recording has it: {"result": 0} or {"errno": name}."""
        try:
            self._do(op)
        except Refused as refused:
            return {"errno": errno_name(refused.errno)}
        return {"result": 0}

    def close(self) -> None:
        for kvm in self._machines.values():
            kvm.close()
        for memory in self._memories.values():
            memory.close()
        findings = self._store.findings()
        self._store.close()
        assert findings == []

    def _do(self, op: Op) -> None:
        match op:
            case {"op": "create_vm", "as": str(name)}:
                self._machines[name] = Kvm(Vm(name), self._pair)
            case {"op": "create_vcpu", "id": int(id_)}:
                self._machines["vm"].vm.create_vcpu(id_)
            case {"op": "anon", "as": str(name)}:
                self._memories[name] = AnonymousMemory(A_BYTES)
            case {"op": "create_gmem", "as": str(name), "size": int(size)}:
                self._store.create(name, size // PAGE_SIZE)
                self._inodes.add((self._place / name).stat().st_ino)
            case {"op": "plain_file", "as": str(name)}:
                (self._place / name).touch()
            case {"op": "dup", "of": str(name), "as": str(other)}:
                os.link(self._place / name, self._place / other)
            case {"op": "close", "of": str(name)}:
                os.unlink(self._place / name)
            case {"op": "set_region" | "set_region2"}:
                self._set_region(op)
            case _:
                raise AssertionError(f"unknown op {op}")

    def _pair(self, fd: int, vm: str, callbacks: Callbacks) -> StoreLink:
        """A file that the store does not know is what it is on a kvm: no file of a memfsd mount."""
        pair = self._store.pair if os.fstat(fd).st_ino in self._inodes else kvmsim.store.link.pair
        return pair(fd, vm, callbacks)

    def _set_region(self, op: Op) -> None:
        slot, flags, gpa, size = (_int(op, key) for key in ("slot", "flags", "gpa", "size"))
        space, id_ = slot >> _SPACE_SHIFT, slot & _ID_MASK
        kvm = self._machines[str(op.get("vm", "vm"))]
        is_gmem = bool(flags & GUEST_MEMFD and op["op"] == "set_region2")
        if space > 1:
            # A Machine's calls name the address space and so cannot ask for a third one.
            check_region(MemoryRegion(id_, space, flags, gpa, size, 0), MAX_SLOTS, None)
            raise AssertionError("there are two address spaces")
        shared, private = kvm.vm.slots
        is_private = space == 1 or (is_gmem and bool(size))
        if private.get(id_) is not None:
            is_private = True
        elif shared.get(id_) is not None:
            is_private = False
        if is_private:
            path = self._place / str(op.get("gmem", 0))
            kvm.slots.set_private_slot(
                MemoryRegion.private(id_, gpa, size, flags=flags, offset=_int(op, "off") if "off" in op else 0),
                str(path),
            )
            return
        match op["uaddr"]:
            case [str(memory), int(offset)]:
                pass
            case int(offset):
                memory = "a"
            case other:
                raise AssertionError(f"uaddr {other}")
        kvm.slots.set_shared_slot(
            MemoryRegion.shared(id_, gpa, size, flags=flags, offset=offset), self._memories[memory], owned=False
        )


@contextlib.contextmanager
def simulated(place: Path, *, fixed_gfn: bool = True) -> Iterator[Simulated]:
    made = Simulated(place, fixed_gfn=fixed_gfn)
    try:
        yield made
    finally:
        made.close()


def _int(op: Op, key: str) -> int:
    value = op[key]
    assert isinstance(value, int)
    return value
