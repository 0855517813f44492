"""Pages that the store swaps out and in: SWAP_OUT and SWAP_IN, on up threads.

Out: BEGIN blocks the pages, every vCPU leaves the guest -> sealed, destroyed in their frames -> blobs to the store. A
page that nobody wrote needs no blob.
In: verified, all before any is written -> decrypted into new frames, which stay blocked until a vCPU faults.
So KVM knows of each page whose contents count where they are: mapped, blocked, or out.
"""

import errno
from collections.abc import Iterator
from typing import TypeVar

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

    def out(self, gmem: Gmem, pages: list[_Page]) -> tuple[list[bytes], list[Pgoff]]:
        """Blobs of these pages, in order, whose frames are empty then; b"" for a page that stays: it is in use, no slot
        shows it any more, or no open invalidation covers it. And those of them that nobody has written: they need
        none, and are holes from now on.

        None leaves, and it is refused: EINVAL a page is in another frame, or named twice; EBADMSG, EIO it cannot be
        read; ENOSPC too many pages are out.
        """
        memory, holes, versions = gmem.memory, list[Pgoff](), dict[Pgoff, int]()
        try:
            holes = [pgoff for pgoff, pfn in pages if memory.is_untouched(pfn)]
            holes, versions = self._leave(gmem, pages, holes)
            blobs = [
                self._exports.seal(gmem, pgoff, versions[pgoff], memory.read(pfn << PAGE_SHIFT, PAGE_SIZE))
                if pgoff in versions
                else b""
                for pgoff, pfn in pages
            ]
        except OSError as error:
            with self._vm.mmu.lock:
                self._settle(gmem, [(pgoff, pfn) for pgoff, pfn in pages if pgoff in versions])
            raise Refused(error.errno or errno.EIO, f"a page cannot be read: {error.strerror}") from None
        for _, pfn, count in _runs([page for page in pages if page[0] in versions]):
            memory.scrub(pfn, count)
        for _, pfn, count in _runs([page for page in pages if page[0] in holes]):
            memory.forget(pfn, count)
        return blobs, holes

    def _leave(self, gmem: Gmem, pages: list[_Page], untouched: list[Pgoff]) -> tuple[list[Pgoff], dict[Pgoff, int]]:
        """Those that are holes, and the versions in which the others leave."""
        mmu = self._vm.mmu
        with mmu.lock:
            self._exports.check_room(len(pages))
            if len(set(pages)) != len(pages):
                raise Refused(errno.EINVAL, "a page is named twice")
            leaving = [part for run in _runs(pages) for part in self._blocked(gmem, *run)]
            versions = {}
            for gfn, pgoff, count in leaving:
                mmu.blocked.take(gfn, Gfn(gfn + count))
                for at in range(count):
                    versions[Pgoff(pgoff + at)] = Gfn(gfn + at)
            holes = [pgoff for pgoff in untouched if versions.pop(pgoff, None) is not None]
            return holes, {pgoff: self._exports.leave(gmem, pgoff, gfn) for pgoff, gfn in versions.items()}

    def _blocked(self, gmem: Gmem, pgoff: Pgoff, pfn: Pfn, count: int) -> Iterator[tuple[Gfn, Pgoff, int]]:
        """What of these pages an open invalidation has blocked. EINVAL: it is in another frame. With Mmu.lock held."""
        mmu = self._vm.mmu
        if not mmu.in_progress:
            return
        for slot, start, end in self._vm.slots[PRIVATE].of_file(gmem, pgoff, Pgoff(pgoff + count)):
            low, high = max(start, mmu.range_start), min(end, mmu.range_end)
            for gfn, frame, pages in mmu.exportable(low, high) if low < high else ():
                page = slot.pgoff_of(gfn)
                if frame != gmem.base + pfn + page - pgoff:
                    raise Refused(errno.EINVAL, f"page {page:#x} is not in frame {pfn + page - pgoff:#x}")
                yield gfn, page, pages

    def bring_in(self, gmem: Gmem, pgoff: Pgoff, pfn: Pfn, blobs: list[bytes]) -> None:
        """Pages from pgoff on are in the frames from pfn on, all of them or none. EBADMSG: a blob is not what left, or
        nothing left. EINVAL: no such frames."""
        exports, memory, count = self._exports, gmem.memory, len(blobs)
        if pfn + count > gmem.frame_count:
            raise Refused(errno.EINVAL, f"{count} frames at {pfn:#x} are not in the window")
        pages = [(Pgoff(pgoff + index), Pfn(pfn + index)) for index in range(count)]
        with self._vm.mmu.lock:
            found = [exports.find(gmem, page) for page, _ in pages]
            for (gfn, _), (_, frame) in zip(found, pages, strict=True):
                self._vm.mmu.blocked.claim(gfn, HostPfn(gmem.base + frame), 1)  # before anything is written
        contents = [
            None if version is None else exports.unseal(gmem, page, version, blob)
            for (page, _), (_, version), blob in zip(pages, found, blobs, strict=True)
        ]
        for (_, frame), page_bytes in zip(pages, contents, strict=True):
            if page_bytes is not None:
                memory.write(frame << PAGE_SHIFT, page_bytes)
        with self._vm.mmu.lock:
            destroyed = self._settle(gmem, pages)
        for frame in destroyed:
            memory.scrub(frame, 1)

    def _settle(self, gmem: Gmem, pages: list[_Page]) -> list[Pfn]:
        """The pages are in these frames, and blocked; the frames of those that were destroyed meanwhile. With Mmu.lock
        held."""
        exports, kept, destroyed = self._exports, list[tuple[Gfn, Pfn]](), list[Pfn]()
        for pgoff, pfn in pages:
            gfn, version = exports.find(gmem, pgoff)
            exports.forget(gmem, pgoff, Pgoff(pgoff + 1))
            if version is not None:
                kept.append((gfn, pfn))
            else:
                destroyed.append(pfn)
        for gfn, pfn, count in _runs(kept):
            self._vm.mmu.blocked.add((gfn, HostPfn(gmem.base + pfn), count), [(gfn, Gfn(gfn + count))])
        return destroyed


_K = TypeVar("_K", Gfn, Pgoff)


def _runs(pages: list[tuple[_K, Pfn]]) -> list[tuple[_K, Pfn, int]]:
    """Joined where both numbers go on."""
    runs: list[tuple[_K, Pfn, int]] = []
    for page, pfn in pages:
        if runs and (page, pfn) == (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]):
            first, frame, count = runs[-1]
            runs[-1] = first, frame, count + 1
        else:
            runs.append((page, pfn, 1))
    return runs
