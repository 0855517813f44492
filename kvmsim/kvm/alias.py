"""The two aliases of a GFN: by bit 51 of a GPA, as TDX has them. Each has its own memslots and its own EPT."""

from enum import IntEnum


class Alias(IntEnum):
    """Indexes what a VM has of both: its memslots, its EPTs."""

    SHARED = 0
    PRIVATE = 1


SHARED, PRIVATE = Alias.SHARED, Alias.PRIVATE
