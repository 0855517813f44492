"""Pages that the store swaps out and in: SWAP_OUT and SWAP_IN, on up threads.

Out: BEGIN blocks the pages, every vCPU leaves the guest -> sealed, destroyed in their frames -> blobs to the store.
In: verified, all before any is written -> decrypted into new frames, which stay blocked until a vCPU faults.
So KVM knows of each page whose contents count where they are: mapped, blocked, or out.
"""

import errno

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn, HostPfn, Pfn, Pgoff

from .alias import PRIVATE
from .slots.backing import Gmem
from .vm import Vm

_Page = tuple[Pgoff, Pfn]


class Swap:
    """Of one VM."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._exports = vm.exports

    def out(self, gmem: Gmem, pages: list[_Page]) -> list[bytes]:
        """Blobs of these pages, in order, whose frames are empty then; b"" for a page that stays: it is in use, no slot
        shows it any more, or no open invalidation covers it.

        None leaves, and it is refused: EINVAL a page is in another frame, or named twice; EBADMSG, EIO it cannot be
        read; ENOSPC too many pages are out.
        """
        versions = self._leave(gmem, pages)
        memory, blobs = gmem.memory, list[bytes]()
        try:
            for (pgoff, pfn), version in zip(pages, versions, strict=True):
                page = b"" if version is None else memory.read(pfn << PAGE_SHIFT, PAGE_SIZE)
                blobs.append(b"" if version is None else self._exports.seal(gmem, pgoff, version, page))
        except OSError as error:
            with self._vm.mmu.lock:
                for (pgoff, pfn), version in zip(pages, versions, strict=True):
                    if version is not None:
                        self._settle(gmem, pgoff, pfn)
            raise Refused(error.errno or errno.EIO, f"a page cannot be read: {error.strerror}") from None
        for (_, pfn), version in zip(pages, versions, strict=True):
            if version is not None:
                memory.scrub(pfn, 1)
        return blobs

    def _leave(self, gmem: Gmem, pages: list[_Page]) -> list[int | None]:
        """The versions in which they leave."""
        mmu = self._vm.mmu
        with mmu.lock:
            self._exports.check_room(len(pages))
            gfns = [self._gfn_of_blocked(gmem, pgoff, pfn) for pgoff, pfn in pages]
            if len(set(pages)) != len(pages):
                raise Refused(errno.EINVAL, "a page is named twice")
            for gfn in gfns:
                if gfn is not None:
                    mmu.blocked.take(gfn, Gfn(gfn + 1))
            return [
                None if gfn is None else self._exports.leave(gmem, pgoff, gfn)
                for gfn, (pgoff, _) in zip(gfns, pages, strict=True)
            ]

    def _gfn_of_blocked(self, gmem: Gmem, pgoff: Pgoff, pfn: Pfn) -> Gfn | None:
        """With Mmu.lock held."""
        mmu = self._vm.mmu
        shown = [low for _, low, _ in self._vm.slots[PRIVATE].of_file(gmem, pgoff, Pgoff(pgoff + 1))]
        gfn = shown[0] if shown else None
        if gfn is None or not (mmu.in_progress and mmu.range_start <= gfn < mmu.range_end):
            return None
        run = mmu.exportable(gfn, Gfn(gfn + 1))
        if not run:
            return None
        if run[0][1] != gmem.base + pfn:
            raise Refused(errno.EINVAL, f"page {pgoff:#x} is not in frame {pfn:#x}")
        return gfn

    def bring_in(self, gmem: Gmem, pgoff: Pgoff, pfn: Pfn, blobs: list[bytes]) -> None:
        """Pages from pgoff on are in the frames from pfn on, all of them or none. EBADMSG: a blob is not what left, or
        nothing left. EINVAL: no such frames."""
        exports, memory, count = self._exports, gmem.memory, len(blobs)
        if pfn + count > gmem.frame_count:
            raise Refused(errno.EINVAL, f"{count} frames at {pfn:#x} are not in the window")
        pages = [(Pgoff(pgoff + index), Pfn(pfn + index)) for index in range(count)]
        with self._vm.mmu.lock:
            versions = [exports.find(gmem, page)[1] for page, _ in pages]
        contents = [
            None if version is None else exports.unseal(gmem, page, version, blob)
            for (page, _), version, blob in zip(pages, versions, blobs, strict=True)
        ]
        for (_, frame), page_bytes in zip(pages, contents, strict=True):
            if page_bytes is not None:
                memory.write(frame << PAGE_SHIFT, page_bytes)
        with self._vm.mmu.lock:
            destroyed = [
                frame
                for (page, frame), version in zip(pages, versions, strict=True)
                if not self._settle(gmem, page, frame) and version is not None
            ]
        for frame in destroyed:
            memory.scrub(frame, 1)

    def _settle(self, gmem: Gmem, pgoff: Pgoff, pfn: Pfn) -> bool:
        """The page is in this frame, and blocked; False: it was destroyed meanwhile. With Mmu.lock held."""
        gfn, version = self._exports.find(gmem, pgoff)
        self._exports.forget(gmem, pgoff, Pgoff(pgoff + 1))
        if version is not None:
            self._vm.mmu.blocked.add((gfn, HostPfn(gmem.base + pfn), 1), [(gfn, Gfn(gfn + 1))])
        return version is not None
