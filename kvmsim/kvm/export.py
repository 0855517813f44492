"""Private pages that are out: what KVM gave the store as blobs, and takes back only unaltered.

As SGX's EWB and TDX's TDH.EXPORT.MEM: AES-256-GCM under a key of the VM that never leaves it. The nonce is the page's
version, a counter that never repeats; file, page and version are authenticated with the contents. KVM keeps the version
of each page that is out, so that a blob that was altered, is another page's, or is of an older time does not verify.
"""

import errno
import itertools
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_EXPORTED_PAGES
from memfsd.uapi.units import Gfn, GfnRange, Pgoff

from .slots.backing import Gmem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_BYTES = 32
_NONCE = struct.Struct("<Q4x")
_BOUND = struct.Struct("<QQQ")
"""What a blob is bound to: file, page, version."""
_DESTROYED = 0


@dataclass(slots=True)
class _Out:
    """gfn: where it was mapped. version: _DESTROYED when its contents are not wanted any more. may_be_gone: it was not
    bound for a time, in which the store may have punched it without a word."""

    gfn: Gfn
    version: int
    may_be_gone: bool = False


class ExportedPages:
    """Of one VM. Guarded by Mmu.lock, but for `seal` and `unseal`, which take their time."""

    def __init__(self) -> None:
        self._aead: AESGCM | None = None
        self._versions = itertools.count(1)
        self._out: dict[Gmem, dict[Pgoff, _Out]] = {}
        self.by_gfn: dict[Gfn, tuple[Gmem, Pgoff]] = {}
        """All of them. Empty, as a rule: then a fault has nothing to ask."""

    def __len__(self) -> int:
        return len(self.by_gfn)

    # -- without the lock

    def seal(self, gmem: Gmem, pgoff: Pgoff, version: int, page: bytes) -> bytes:
        """The blob of a page that is out in this version."""
        return self._cipher().encrypt(_NONCE.pack(version), page, _BOUND.pack(gmem.ino, pgoff, version))

    def unseal(self, gmem: Gmem, pgoff: Pgoff, version: int, blob: bytes) -> bytes:
        """The page. EBADMSG: the blob is not this version of it."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher().decrypt(_NONCE.pack(version), blob, _BOUND.pack(gmem.ino, pgoff, version))
        except InvalidTag:
            raise Refused(
                errno.EBADMSG,
                f"page {pgoff:#x} comes back altered, as another page, or older than it left: it is refused",
            ) from None

    def _cipher(self) -> "AESGCM":
        """Loaded when a page first leaves: most VMs never need it."""
        if self._aead is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._aead = AESGCM(os.urandom(_KEY_BYTES))
        return self._aead

    # -- with the lock

    def check_room(self, page_count: int) -> None:
        """ENOSPC: too many pages of this VM are out."""
        if len(self) + page_count > MAX_EXPORTED_PAGES:
            raise Refused(errno.ENOSPC, f"{len(self)} pages of this VM are out, and KVM keeps {MAX_EXPORTED_PAGES}")

    def leave(self, gmem: Gmem, pgoff: Pgoff, gfn: Gfn) -> int:
        """The page is out from now on; in this version, which never was nor will be another page's."""
        version = next(self._versions)
        self._out.setdefault(gmem, {})[pgoff] = _Out(gfn, version)
        self.by_gfn[gfn] = gmem, pgoff
        return version

    def find(self, gmem: Gmem, pgoff: Pgoff) -> tuple[Gfn, int | None]:
        """Where a page was mapped that is out, and in which version; None when it was destroyed, and is zero. EBADMSG:
        it is not out."""
        found = self._out.get(gmem, {}).get(pgoff)
        if found is None:
            raise Refused(errno.EBADMSG, f"page {pgoff:#x} comes back, and is not out: it is refused")
        return found.gfn, found.version or None

    def first_out(self, gmem: Gmem, start: Pgoff, end: Pgoff) -> Pgoff | None:
        """The first page of [start, end) whose contents are out, so that the store cannot have another frame for it."""
        out = self._out.get(gmem)
        if not out:
            return None
        pages = (page for page in _within(out, start, end) if out[page].version != _DESTROYED)
        return min((page for page in pages if not out[page].may_be_gone), default=None)

    def forget(self, gmem: Gmem, start: Pgoff, end: Pgoff) -> None:
        """Pages [start, end) came back, or are holes now."""
        out = self._out.get(gmem)
        if out:
            for pgoff in _within(out, start, end):
                self.by_gfn.pop(out.pop(pgoff).gfn, None)

    def drop(self, gmem: Gmem) -> None:
        """The pairing has ended."""
        for out in self._out.pop(gmem, {}).values():
            self.by_gfn.pop(out.gfn, None)

    def destroy(self, segments: Iterable[GfnRange]) -> None:
        """What an unmap does to contents, it does to those that are out: they are zero when they come back."""
        for out in self._at(segments):
            out.version = _DESTROYED

    def unbound(self, segments: Iterable[GfnRange]) -> None:
        """The store does not know for a time where these pages show."""
        for out in self._at(segments):
            out.may_be_gone = True

    def taken_back(self, start: Gfn, end: Gfn) -> None:
        """By the store, while they were not bound: they are holes now."""
        for gfn in _within(self.by_gfn, start, end):
            gmem, pgoff = self.by_gfn.pop(gfn)
            del self._out[gmem][pgoff]

    def _at(self, segments: Iterable[GfnRange]) -> list[_Out]:
        if not self.by_gfn:
            return []
        found = [self.by_gfn[gfn] for start, end in segments for gfn in _within(self.by_gfn, start, end)]
        return [self._out[gmem][pgoff] for gmem, pgoff in found]


_K = TypeVar("_K", Gfn, Pgoff)


def _within(table: Mapping[_K, object], start: _K, end: _K) -> list[_K]:
    """Keys of [start, end)."""
    if end - start <= len(table):
        return [key for number in range(start, end) if (key := cast(_K, number)) in table]
    return [key for key in table if start <= key < end]
