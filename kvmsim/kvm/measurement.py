"""What a VM was made of: MRTD, as the TDX module extends it (Intel TDX Module Base Architecture, "TD measurement").

TDH.MEM.PAGE.ADD extends by a record of 128 bytes, "MEM.PAGE.ADD" with the page's GPA; TDH.MR.EXTEND by such a record,
"MR.EXTEND" with the GPA of 256 bytes, and by the 256 bytes. A record is zero but for the name and, at byte 16, the GPA.
"""

import hashlib
import struct

from memfsd.uapi.units import PAGE_SIZE

_CHUNK = 256
_RECORD = struct.Struct("<16sQ104x")


class Measurement:
    """SHA-384 over pages in the order in which they were added."""

    def __init__(self) -> None:
        self._hash = hashlib.sha384()

    def add(self, gpa: int, page: bytes) -> None:
        """TDH.MEM.PAGE.ADD of one page, and TDH.MR.EXTEND of all of it."""
        assert len(page) == PAGE_SIZE
        parts = [_RECORD.pack(b"MEM.PAGE.ADD", gpa)]
        for at in range(0, PAGE_SIZE, _CHUNK):
            parts += _RECORD.pack(b"MR.EXTEND", gpa + at), page[at : at + _CHUNK]
        self._hash.update(b"".join(parts))

    def copy(self) -> "Measurement":
        """Goes on from here by itself."""
        copied = Measurement()
        copied._hash = self._hash.copy()
        return copied

    def digest(self) -> bytes:
        return self._hash.digest()
