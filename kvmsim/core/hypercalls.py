"""MapGPA, as TDX defines it (GHCI, TDG.VP.VMCALL<MapGPA>, R11 = 0x10001)."""

from collections.abc import Iterator

from memfsd.uapi.units import PAGE_SIZE

SHARED_BIT = 1 << 51
"""Of a guest physical address: set, it names the shared alias (GPAW 52)."""

MAP_GPA = 0x10001
SUCCESS = 0
RETRY = 1
INVALID_OPERAND = 1 << 63
ALIGN_ERROR = (1 << 63) + 2
CHUNK_BYTES = 2 << 20


def map_gpa_status(gpa: int, size: int, gpa_end: int) -> int:
    """The status a request earns before any work: the range is checked first, then the alignment."""
    if size <= 0 or gpa < 0 or gpa + size > gpa_end:
        return INVALID_OPERAND
    if gpa % PAGE_SIZE or size % PAGE_SIZE:
        return ALIGN_ERROR
    return SUCCESS


def chunks(gpa: int, size: int) -> Iterator[tuple[int, int]]:
    """(gpa, size) pieces that end at 2 MiB boundaries."""
    end = gpa + size
    while gpa < end:
        stop = min(end, (gpa // CHUNK_BYTES + 1) * CHUNK_BYTES)
        yield gpa, stop - gpa
        gpa = stop
