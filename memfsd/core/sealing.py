"""The seals' rules: DESIGN's table for the guest seal, memfd_create(2) for the others."""

import errno

from memfsd.uapi.abi import Abi
from memfsd.uapi.errors import Refused
from memfsd.uapi.seals import ALL_SEALS, Seal

from .files.inodes import Regular


def check_abi(file: Regular, new: Seal, abi: Abi) -> None:
    """EINVAL a guest_memfd, which has no seals, as F_ADD_SEALS answers; EOPNOTSUPP the guest seal, where files for
    guests are guest_memfds."""
    if not abi.is_sized_at_creation:
        return
    if file.guest is not None:
        raise Refused(errno.EINVAL, f"inode {file.ino} is a guest_memfd, which has no seals")
    if Seal.GUEST in new:
        raise Refused(
            errno.EOPNOTSUPP,
            f"a mount with abi={abi.name} has no guest seal: make a guest_memfd (memfs create --abi), "
            "or mount with abi=thread",
        )


def check_add(file: Regular, new: Seal, *, truncate: bool) -> bool:
    """Refuse, or say whether the file's contents must be dropped first.

    EINVAL unknown bits; EPERM sealed against more seals, or against the truncation asked for; EBUSY
    contents or handles in the way.
    """
    unknown = int(new) & ~int(ALL_SEALS)  # as integers: an IntFlag's ~ knows no bits above its members'
    if unknown:
        raise Refused(errno.EINVAL, f"seal bits {unknown:#x} do not exist")
    if Seal.SEAL in file.seals:
        raise Refused(errno.EPERM, f"inode {file.ino} is sealed against more seals: use a new file")
    adding = new & ~file.seals
    if Seal.WRITE in adding and file.mappable_writers:
        raise Refused(
            errno.EBUSY,
            "the file is open read-write and may be mapped: close every such handle, and seal through O_WRONLY",
        )
    if Seal.GUEST not in adding:
        return False
    if file.readers > 0:
        raise Refused(errno.EBUSY, "the file is open for reading, or mapped: close every such handle before sealing")
    if file.size > 0 and Seal.SHRINK in file.seals:
        raise Refused(errno.EPERM, "the file is not empty and sealed against shrinking: seal a new file")
    if file.size > 0 and not truncate:
        raise Refused(errno.EBUSY, "the file is not empty: truncate it first, or ask for guest,truncate")
    return file.size > 0 or file.pages.page_count > 0
