"""The ABIs that a mount and a VM can speak: what of the contract differs between them, as values.

Both sides read a rule from the profile that they were given; nobody asks which profile it is.

    thread         the mailing list's: seals, a private and a shared address space, conversion by slots
    gmem-6.18      Linux 6.18: guest_memfd, memory attributes of the VM
    gmem-7.2       Linux 7.2: a file range that is bound twice is EEXIST, offsets are unsigned
    gmem-inplace   attributes are the file's (KVM_SET_MEMORY_ATTRIBUTES2): pages are converted in place
"""

import errno
from dataclasses import dataclass, replace
from enum import Enum, IntFlag

from .errors import Refused


class GmemFlag(IntFlag):
    """GUEST_MEMFD_FLAG_* of KVM_CREATE_GUEST_MEMFD, with Linux's values."""

    MMAP = 1
    INIT_SHARED = 2


class Attributes(Enum):
    """Where it is kept which pages are private."""

    NONE = "none"
    """Slots of two address spaces say it."""
    VM = "vm"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Abi:
    """One profile. Errnos are numbers of errno.h."""

    name: str
    create_flags: GmemFlag
    """What KVM_CAP_GUEST_MEMFD_FLAGS reports. Without any, files are made by sealing, not by KVM_CREATE_GUEST_MEMFD."""
    is_sized_at_creation: bool
    """The size is an argument of the creation, and fixed; else it is set once, after the seal."""
    attributes: Attributes
    has_one_space: bool
    """A slot has userspace_addr and guest_memfd; else each alias has its own slots."""
    bound_twice: int
    """A range of the file that another slot has."""
    other_owner: int
    """A file of another VM."""
    no_room: int
    """The pool has no frame for a page of a guest: to its fault, and to fallocate(2)."""
    has_signed_offsets: bool
    """An offset in the file is a loff_t: a slot whose end wraps past 2^63 ends before the end of the file."""
    fixed_gfn: bool
    """By default, a page that was bound at a GFN is bound at no other one."""
    destroys_unmapped: bool
    """Private contents end when their slot does, as a TDX or SNP unmap destroys them; else they are the file's."""


THREAD = Abi(
    name="thread",
    create_flags=GmemFlag(0),
    is_sized_at_creation=False,
    attributes=Attributes.NONE,
    has_one_space=False,
    bound_twice=errno.EEXIST,
    other_owner=errno.EPERM,
    no_room=errno.ENOSPC,
    has_signed_offsets=False,
    fixed_gfn=True,
    destroys_unmapped=True,
)
GMEM_6_18 = Abi(
    name="gmem-6.18",
    create_flags=GmemFlag.MMAP | GmemFlag.INIT_SHARED,
    is_sized_at_creation=True,
    attributes=Attributes.VM,
    has_one_space=True,
    bound_twice=errno.EINVAL,
    other_owner=errno.EINVAL,
    no_room=errno.ENOMEM,
    has_signed_offsets=True,
    fixed_gfn=False,
    destroys_unmapped=False,
)
GMEM_7_2 = replace(GMEM_6_18, name="gmem-7.2", bound_twice=errno.EEXIST, has_signed_offsets=False)
GMEM_INPLACE = replace(GMEM_7_2, name="gmem-inplace", attributes=Attributes.FILE)

ABIS = {abi.name: abi for abi in (THREAD, GMEM_6_18, GMEM_7_2, GMEM_INPLACE)}


def abi_of(name: str) -> Abi:
    """EINVAL (Refused) names those that there are."""
    abi = ABIS.get(name)
    if abi is None:
        raise Refused(errno.EINVAL, f"abi={name}: choose {', '.join(ABIS)}")
    return abi


def check_same(store: Abi, vm: str) -> None:
    """EINVAL: a VM of one ABI never gets a file of another, as no guest_memfd of another KVM can be bound."""
    if vm != store.name:
        raise Refused(
            errno.EINVAL,
            f"a VM of abi {vm or 'unknown'} cannot use a file of a mount with abi={store.name}: "
            f"use kvmsim --abi {store.name}, or another mount",
        )
