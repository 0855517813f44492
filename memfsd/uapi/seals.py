"""The seals, their bits and names.

Bits 0x01 to 0x10 are memfd_create(2)'s. The 2021 patch set used 0x0020 for F_SEAL_GUEST; Linux has since
given that bit to F_SEAL_EXEC, so the guest seal takes 0x1000 here, far from the kernel's next free bit.
"""

from enum import IntFlag


class Seal(IntFlag):
    """F_SEAL_*, with Linux's values, and the one of this file system."""

    SEAL = 0x0001
    SHRINK = 0x0002
    GROW = 0x0004
    WRITE = 0x0008
    FUTURE_WRITE = 0x0010
    GUEST = 0x1000


ALL_SEALS = Seal.SEAL | Seal.SHRINK | Seal.GROW | Seal.WRITE | Seal.FUTURE_WRITE | Seal.GUEST
TRUNCATE = "truncate"
"""A word beside `guest` in a list of seals: drop the file's contents first instead of EBUSY."""

_BY_NAME = {
    "seal": Seal.SEAL,
    "shrink": Seal.SHRINK,
    "grow": Seal.GROW,
    "write": Seal.WRITE,
    "future-write": Seal.FUTURE_WRITE,
    "guest": Seal.GUEST,
}


def parse_seals(text: str) -> tuple[Seal, bool]:
    """Seals of "guest,shrink" and whether `truncate` was among the words.

    ValueError names the word that is not a seal, an empty list, or `truncate` without `guest`.
    """
    seals, truncate = Seal(0), False
    for word in text.split(","):
        name = word.strip().lower()
        if name == TRUNCATE:
            truncate = True
        elif name in _BY_NAME:
            seals |= _BY_NAME[name]
        else:
            raise ValueError(f"'{word}' is not a seal: choose from {', '.join(_BY_NAME)}")
    if truncate and Seal.GUEST not in seals:
        raise ValueError("'truncate' goes only with the guest seal: write guest,truncate")
    return seals, truncate


def format_seals(seals: Seal) -> str:
    """ "guest,shrink" in the order of the table; "" when there is none."""
    return ",".join(name for name, seal in _BY_NAME.items() if seal in seals)
