"""Extended attributes: user.memfsd.* report and control, the rest are kept as tmpfs keeps them."""

import errno

from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.placement import Policies
from memfsd.core.memory.swap_slots import SwapSlots
from memfsd.uapi import names
from memfsd.uapi.abi import Abi
from memfsd.uapi.distances import format_distances
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import XATTR_BYTES, XATTR_NAME_MAX, XATTR_TOTAL_MAX, XATTR_VALUE_MAX
from memfsd.uapi.policy import old_spelling, parse_ranges
from memfsd.uapi.seals import format_seals
from memfsd.uapi.units import ORDER_4K, PAGE_SIZE, order_of_page_size, parse_size

from .inodes import ROOT_INO, Inode, InodeTable, Regular

XATTR_CREATE = 1
XATTR_REPLACE = 2

_FILE_NAMES = (
    names.XATTR_SEALS,
    names.XATTR_PAGE_SIZE,
    names.XATTR_NUMA,
    names.XATTR_OWNER,
    names.XATTR_FRAMES,
    names.XATTR_SOCKET,
)
_NAMESPACES = (b"user.", b"trusted.", b"security.")


class Xattrs:
    """`socket_path` is the value of user.memfsd.socket."""

    def __init__(self, pool: FramePool, slots: SwapSlots, inodes: InodeTable, socket_path: str, abi: Abi) -> None:
        self._pool = pool
        self._slots = slots
        self._inodes = inodes
        self._socket_path = socket_path
        self._abi = abi

    def get(self, inode: Inode, name: bytes, populated: int | None) -> bytes:
        """ENODATA when there is none. populated: pages of the window that really hold memory."""
        if name.startswith(names.XATTR_PREFIX):
            value = self._tell(inode, name, populated)
        else:
            _check_has_others(inode)
            _check_name(name)
            value = inode.xattrs.get(name)
        if value is None:
            raise Refused(errno.ENODATA, f"no attribute {name!r}")
        return value

    def list(self, inode: Inode) -> list[bytes]:
        """What getfattr -d shows. Only sealed files list ours: `cp -a` would copy those of a file that it can read. A
        guest_memfd lists none, as the kernel's."""
        listed = [*inode.xattrs]
        if isinstance(inode, Regular) and inode.guest is not None and inode.guest.memfd is None:
            listed += _FILE_NAMES
        return listed

    def set(self, inode: Inode, name: bytes, value: bytes, flags: int = 0) -> None:
        """Kept as it is. EEXIST and ENODATA for XATTR_CREATE and XATTR_REPLACE; E2BIG, ENOSPC at limits."""
        _check_has_others(inode)
        _check_name(name)
        if len(value) > XATTR_VALUE_MAX:
            raise Refused(errno.E2BIG, f"a value has at most {XATTR_VALUE_MAX} bytes")
        if flags & XATTR_CREATE and name in inode.xattrs:
            raise Refused(errno.EEXIST, f"attribute {name!r} exists")
        if flags & XATTR_REPLACE and name not in inode.xattrs:
            raise Refused(errno.ENODATA, f"no attribute {name!r}")
        kept = sum(_charge(n, v) for n, v in inode.xattrs.items() if n != name)
        if kept + _charge(name, value) > XATTR_TOTAL_MAX:
            raise Refused(errno.ENOSPC, f"the attributes of one file hold at most {XATTR_TOTAL_MAX} bytes")
        before = inode.xattrs.get(name)
        self._inodes.charge(inode, _charge(name, value) - (0 if before is None else _charge(name, before)))
        inode.xattrs[name] = value

    def set_own(self, inode: Inode, name: bytes, value: bytes) -> None:
        """user.memfsd.page_size of an empty file, and .numa; every other of ours is read-only (EPERM)."""
        if name == names.XATTR_PAGE_SIZE and isinstance(inode, Regular):
            self._set_page_size(inode, value)
        elif name == names.XATTR_NUMA and isinstance(inode, Regular):
            self._set_policies(inode, value)
        else:
            known = name in (
                *_FILE_NAMES,
                names.XATTR_POOL,
                names.XATTR_COUNTS,
                names.XATTR_NUMASTAT,
                names.XATTR_TOKEN,
            )
            raise Refused(
                errno.EPERM if known else errno.EOPNOTSUPP,
                f"{name.decode(errors='replace')} cannot be set" if known else f"no attribute {name!r}",
            )

    def remove(self, inode: Inode, name: bytes) -> None:
        if name.startswith(names.XATTR_PREFIX):
            raise Refused(errno.EPERM, "seals and the other user.memfsd attributes cannot be removed")
        _check_has_others(inode)
        _check_name(name)
        if name not in inode.xattrs:
            raise Refused(errno.ENODATA, f"no attribute {name!r}")
        self._inodes.charge(inode, -_charge(name, inode.xattrs.pop(name)))

    def _tell(self, inode: Inode, name: bytes, populated: int | None) -> bytes | None:
        if name == names.XATTR_SOCKET:
            return self._socket_path.encode()
        if name == names.XATTR_POOL:
            return self._pool_line().encode() if inode.ino == ROOT_INO else None
        if name == names.XATTR_NUMASTAT:
            return self._numastat().encode() if inode.ino == ROOT_INO else None
        if not isinstance(inode, Regular):
            return None
        if name == names.XATTR_SEALS:
            return format_seals(inode.seals).encode()
        if name == names.XATTR_PAGE_SIZE:
            return str(PAGE_SIZE << inode.order).encode()
        if name == names.XATTR_NUMA:
            return str(inode.policies or Policies()).encode()
        if name == names.XATTR_OWNER:
            return owner_line(inode).encode()
        if name == names.XATTR_FRAMES:
            line = _frames_line(inode, populated)
            if self._slots.total and inode.guest is not None:
                line += f" swapped={inode.guest.absent.swapped_count}"
            return line.encode()
        return None

    def _pool_line(self) -> str:
        held = {state: self._pool.count(state) for state in FrameState}
        devices = [file.guest.device for file in self._inodes.sealed_files() if file.guest and file.guest.device]
        held[FrameState.DEVICE] = sum(device.page_count for device in devices if not device.is_gone)
        counts = " ".join(f"{state.name.lower()}={count}" for state, count in held.items())
        nodes = ",".join(str(free) for free in self._pool.node_free_counts())
        line = f"frames={self._pool.frame_count} {counts} node_free={nodes} abi={self._abi.name}"
        swap = " ".join(f"{name}={count}" for name, count in self._slots.counts().items())
        return f"{line} {swap}" if self._slots.total else line

    @staticmethod
    def _set_page_size(file: Regular, value: bytes) -> None:
        try:
            order = order_of_page_size(parse_size(value.decode("ascii", "replace")))
        except ValueError as error:
            raise Refused(errno.EINVAL, str(error)) from None
        if file.size or file.pages.page_count:
            raise Refused(errno.EBUSY, "the page size can be chosen only while the file is empty: use a new file")
        if order != ORDER_4K and file.guest is None:
            raise Refused(errno.EINVAL, "large pages are for sealed files: seal the file first")
        file.order = order

    def _set_policies(self, file: Regular, value: bytes) -> None:
        """Pages that are there stay where they are, as mbind(2) without MPOL_MF_MOVE leaves them."""
        ranges = parse_ranges(old_spelling(value.decode("ascii", "replace")), file.order)
        policies = (file.policies or Policies()).set(ranges, self._pool.distances)
        file.policies = policies if len(policies) else None

    def _numastat(self) -> str:
        """A line for each node, and the table of distances."""
        lines = [
            f"node={node} " + " ".join(f"{name}={count}" for name, count in report._asdict().items())
            for node, report in enumerate(self._pool.numastat())
        ]
        return "\n".join([*lines, f"distances={format_distances(self._pool.distances.rows)}"])


def _check_has_others(inode: Inode) -> None:
    if isinstance(inode, Regular) and inode.guest is not None and inode.guest.memfd is not None:
        raise Refused(errno.EOPNOTSUPP, f"inode {inode.ino} is a guest_memfd: it has user.memfsd attributes only")


def _charge(name: bytes, value: bytes) -> int:
    return XATTR_BYTES + len(name) + len(value)


def _check_name(name: bytes) -> None:
    if not name.startswith(_NAMESPACES):
        raise Refused(errno.EOPNOTSUPP, f"attribute {name!r}: its namespace must be user., trusted. or security.")
    if name in _NAMESPACES:
        raise Refused(errno.EINVAL, f"attribute {name!r} has no name after its namespace")
    if len(name) > XATTR_NAME_MAX:
        raise Refused(errno.ERANGE, f"an attribute's name has at most {XATTR_NAME_MAX} bytes")


def owner_line(file: Regular) -> str:
    """user.memfsd.owner: "none", or the VM and what became of it."""
    if file.guest is None or file.guest.pairing is None:
        return "none"
    owner = file.guest.pairing
    return f"vm={owner.vm} pid={owner.pid} uid={owner.uid} state={owner.state.value}"


def _frames_line(file: Regular, populated: int | None) -> str:
    if file.guest is None:
        return f"shared={file.pages.page_count}"
    if file.guest.device is not None:
        return "device=0 removed=1" if file.guest.device.is_gone else f"device={file.guest.device.page_count}"
    pending = file.guest.untouched(file.pages.page_count, populated)
    guest = file.guest
    counts = (
        f"private={file.pages.page_count - pending} pending={pending} quarantined={guest.quarantine.page_count}"
        f" punched={guest.punched_count} leaked={guest.leaked_count}"
        + ("" if populated is None else f" populated={populated}")
    )
    return counts + (f" splits={file.guest.split_count} merges={file.guest.merge_count}" if file.order else "")
