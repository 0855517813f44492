"""KVM's ops of recorded cases, asked of memfsd and kvmsim: a guest_memfd is a file of a mount."""

import errno
import os

from kvmsim.kvm.region import SlotFlag
from memfsd.common.observer import Observer
from memfsd.common.stores import store_of
from memfsd.guest_memfd import create_guest_memfd
from memfsd.uapi.abi import GmemFlag
from memfsd.uapi.errors import Refused
from memfsd.uapi.messages import Kind, Map, MapReply
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Ino, Pgoff

from .descriptors import LIBC, Args, Descriptors, cachestat, checked, inode_number
from .mappings import Mapped, Mappings
from .outcomes import Hangs
from .player import Do
from .simulated_vm import SimulatedVms

_U64 = (1 << 64) - 1
_MCL_CURRENT = 1


class Simulated:
    """mount: a directory of a mount with guest_memfds."""

    def __init__(self, mount: str, abi: str, descriptors: Descriptors, mappings: Mappings) -> None:
        self._mount = mount
        self._abi = abi
        self._descriptors = descriptors
        self._pid = os.getpid()
        self._mappings = mappings
        self._gmems: dict[int, int] = {}
        """Flags by inode number."""
        self._vms = SimulatedVms(abi, descriptors, mappings)
        self._not_owned: list[tuple[str, int]] = []
        """Files that belong to a VM, which has not said so to the store: a pairing takes descriptors and memory, which
        a case that never binds a file does not expect."""
        self._store = store_of(mount)
        descriptors.allocated = self._allocated  # type: ignore[method-assign]

    def find(self, op: str) -> Do | None:
        found: Do | None = getattr(self, f"_op_{op}", None)
        return found or self._vms.find(op)

    def _op_create_vm(self, args: Args) -> str:
        self._vms.create(args.get("as") or "")
        return self._descriptors.keep(args, os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))

    def _check_process(self) -> None:
        """As KVM's, a VM is no other process's."""
        if os.getpid() != self._pid:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _op_check_ext(self, args: Args) -> int:
        self._check_process()
        return 1

    def _op_set_region(self, args: Args) -> int:
        self._check_process()
        return self._vms.set_region(args, is_v2=False)

    def _op_set_region2(self, args: Args) -> int:
        self._check_process()
        if args["flags"] & SlotFlag.GUEST_MEMFD:
            for vm, fd in self._not_owned:
                if fd in self._descriptors.fds.values():
                    self._vms.own(vm, fd)
            self._not_owned.clear()
        return self._vms.set_region(args, is_v2=True)

    def _op_create_gmem(self, args: Args) -> str:
        self._check_process()
        self._descriptors.fd(args, "vm")
        try:
            fd = create_guest_memfd(args["size"] & _U64, args["flags"] & _U64, mount=self._mount)
        except Refused as refused:
            raise OSError(refused.errno, refused.reason) from None
        self._gmems[os.fstat(fd).st_ino] = args["flags"]
        self._not_owned.append((args["vm"], fd))
        return self._descriptors.keep(args, fd)

    def _op_mlock(self, args: Args) -> int:
        """The kernel populates a locked mapping, and tries a page that cannot be read again and again."""
        self._check_readable(self._mappings.maps[args["m"]])
        return int(self._mappings.call("mlock", args))

    def _op_mlockall(self, args: Args) -> int:
        """Where the case has no mapping yet, what is mapped is this program's: to lock that takes long, and says
        nothing."""
        for mapped in self._mappings.maps.values():
            self._check_readable(mapped)
        flags = args["flags"] if self._mappings.maps else args["flags"] & ~_MCL_CURRENT
        return checked(LIBC.mlockall(flags)) if flags else 0

    def _check_readable(self, mapped: Mapped) -> None:
        flags = self._gmems.get(inode_number(mapped.fd)) if mapped.fd >= 0 else None
        if flags is not None and not flags & GmemFlag.INIT_SHARED:
            raise Hangs

    def _op_cachestat(self, args: Args) -> dict[str, int]:
        """Of a guest_memfd it says which pages are allocated; here the store says so, since pages that only the guest
        has are not in the kernel's page cache."""
        fd, offset, length = self._descriptors.fd(args), args.get("off", 0), args.get("len", 0)
        if inode_number(fd) not in self._gmems:
            return cachestat(fd, offset, length)
        end = offset + length if length else 1 << 63
        return {"nr_cache": self._count(fd, offset, end), "nr_dirty": 0, "nr_writeback": 0}

    def _allocated(self, fd: int) -> int:
        return self._count(fd, 0, 1 << 63)

    def _count(self, fd: int, start: int, end: int) -> int:
        ino, pgoff, count = Ino(inode_number(fd)), 0, 0
        first, last = start >> PAGE_SHIFT, (end + PAGE_SIZE - 1) >> PAGE_SHIFT
        with Observer(self._store) as observer:
            while pgoff >= 0:
                reply = observer.ask(Kind.MAP, Map(ino, Pgoff(pgoff)), MapReply)
                for at, pfn, pages, *_ in reply.runs:
                    count += max(min(at + pages, last) - max(at, first), 0) if pfn >= 0 else 0
                pgoff = reply.next_pgoff
        return count
