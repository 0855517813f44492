"""What the mount says: the store's own options of `memfsd -o`."""

import enum
import errno
from dataclasses import dataclass, replace
from typing import Any

from memfsd.uapi.abi import THREAD, Abi, abi_of
from memfsd.uapi.distances import Rows, check_distances, parse_distances
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_INODES, MAX_NODES, MAX_POOL_BYTES, MAX_SWAP_BYTES
from memfsd.uapi.units import PAGE_SIZE, format_size, parse_size


class Atime(enum.Enum):
    """When reading sets the access time. The kernel leaves this to a FUSE server."""

    NEVER = "noatime"
    RELATIVE = "relatime"
    ALWAYS = "strictatime"


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Defaults are the strict ones. pool_bytes is a whole number of 4 KiB frames."""

    pool_bytes: int = 1 << 30
    inode_count: int = 1 << 18
    nodes: int = 1
    distances: Rows = ()
    """Of the nodes; () are the kernel's defaults."""
    born_guest: bool = False
    resize_any: bool = False
    truncate_nonempty: bool = False
    open_rw: bool = False
    fixed_gfn: bool | None = None
    """None: as the ABI has it."""
    split: bool = False
    """Parts of large pages can be punched."""
    page_map: bool = True
    """VMs that can read a page map get one."""
    atime: Atime = Atime.RELATIVE
    diratime: bool = True
    abi: Abi = THREAD

    @property
    def keeps_gfn(self) -> bool:
        """A page that was bound at a GFN is bound at no other one."""
        return self.abi.fixed_gfn if self.fixed_gfn is None else self.fixed_gfn


@dataclass(frozen=True, slots=True)
class SwapOptions:
    """The swap file. size_bytes: of guest memory that it holds; 0: as the file is. reset: reinitialize it."""

    path: str
    size_bytes: int = 0
    reset: bool = False


def swap_bytes(text: str) -> int:
    """swap_size, in whole pages. Refused(EINVAL)."""
    return _whole_pages("swap_size", text, MAX_SWAP_BYTES)


_CHOICES: dict[str, tuple[str, dict[str, bool]]] = {
    "resize": ("resize_any", {"once": False, "any": True}),
    "seal_nonempty": ("truncate_nonempty", {"refuse": False, "truncate": True}),
    "open": ("open_rw", {"strict": False, "rw": True}),
    "split": ("split", {"off": False, "on": True, "0": False, "1": True}),
    "fixed_gfn": ("fixed_gfn", {"on": True, "off": False, "1": True, "0": False}),
}
_ATIMES: dict[str, Atime] = {
    **{word.value: word for word in Atime},
    **dict.fromkeys(("atime", "norelatime", "nostrictatime"), Atime.RELATIVE),
}
_FLAGS = ("guest", "diratime", "nodiratime", *_ATIMES)
NAMES = ("abi", "size", "nr_inodes", "nodes", "distances", *_CHOICES, *_FLAGS)


def with_option(options: StoreOptions, name: str, value: str | None) -> StoreOptions:
    """The options with one more; Refused(EINVAL) names a value that makes no sense and those that do."""
    if name in _FLAGS:
        if value is not None:
            raise Refused(errno.EINVAL, f"option {name} takes no value")
        return _with_flag(options, name)
    if value is None or value == "":
        raise Refused(errno.EINVAL, f"option {name} needs a value: {name}=...")
    if name == "abi":
        return replace(options, abi=abi_of(value))
    if name == "size":
        return replace(options, pool_bytes=_whole_pages(name, value, MAX_POOL_BYTES))
    if name == "nr_inodes":
        return replace(options, inode_count=_inode_count(value))
    if name == "nodes":
        if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= MAX_NODES:
            raise Refused(errno.EINVAL, f"nodes={value}: choose 1 to {MAX_NODES}")
        return replace(options, nodes=int(value))
    if name == "distances":
        return replace(options, distances=parse_distances(value))
    field, choices = _CHOICES[name]
    if value not in choices:
        raise Refused(errno.EINVAL, f"{name}={value}: choose {' or '.join(choices)}")
    chosen: dict[str, Any] = {field: choices[value]}
    return replace(options, **chosen)


def check_options(options: StoreOptions) -> None:
    """EINVAL for options that do not fit each other, whatever their order."""
    if options.abi.is_sized_at_creation:
        _check_no_seals(options)
    check_distances(options.distances, options.nodes)


def _check_no_seals(options: StoreOptions) -> None:
    """What says how sealed files are has nothing to say where there are none."""
    asked = {
        "guest": options.born_guest,
        "resize=any": options.resize_any,
        "seal_nonempty=truncate": options.truncate_nonempty,
        "open=rw": options.open_rw,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise Refused(
                errno.EINVAL,
                f"{name} is about sealed files, which a mount with abi={options.abi.name} has not: leave it out",
            )


def _with_flag(options: StoreOptions, name: str) -> StoreOptions:
    if name == "guest":
        return replace(options, born_guest=True)
    if name in _ATIMES:
        return replace(options, atime=_ATIMES[name])
    return replace(options, diratime=name == "diratime")


def _inode_count(text: str) -> int:
    try:
        count = parse_size(text)
    except ValueError:
        count = 0
    if not 1 <= count <= MAX_INODES:
        raise Refused(errno.EINVAL, f"nr_inodes={text}: choose 1 to {MAX_INODES} (K and M are accepted)")
    return count


def _whole_pages(name: str, text: str, most: int) -> int:
    """Bytes of a size option, rounded down to pages. Refused(EINVAL)."""
    try:
        size = parse_size(text)
    except ValueError as error:
        raise Refused(errno.EINVAL, f"{name}={text}: {error}") from None
    if not PAGE_SIZE <= size <= most:
        raise Refused(errno.EINVAL, f"{name}={text}: choose 4K to {format_size(most)}")
    return size - size % PAGE_SIZE
