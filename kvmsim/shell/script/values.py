"""A word to a value. A converter takes a Word; its ValueError is one line: what is wrong, the way out."""

import errno
import re
from collections.abc import Callable, Sequence

from memfsd.uapi import limits
from memfsd.uapi.errors import EHWPOISON
from memfsd.uapi.gmem_ioctls import parse_flags
from memfsd.uapi.units import parse_size

from .words import Word

MEM_LOG_DIRTY_PAGES = 1 << 0
MEM_READONLY = 1 << 1
"""KVM_MEM_* flags of struct kvm_userspace_memory_region (include/uapi/linux/kvm.h)."""
_FLAGS = {"readonly": MEM_READONLY, "log_dirty": MEM_LOG_DIRTY_PAGES}

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_HEX = re.compile(r"[0-9a-fA-F]*")
_MOST_SHOWN = 40
_MOST_CHOICES = 16


def shown(text: str) -> str:
    """The word as a message quotes it, cut when it is long."""
    return f"'{text}'" if len(text) <= _MOST_SHOWN else f"'{text[:_MOST_SHOWN]}...'"


def unknown(thing: str, text: str, choices: Sequence[str]) -> str:
    """ "unknown command 'raed': did you mean 'read'?", or all the choices when none is near."""
    import difflib  # when somebody has made a mistake

    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(text[:_MOST_SHOWN].lower(), by_lower, n=1)
    if near:
        hint = f"did you mean '{by_lower[near[0]]}'?"
    else:
        more = ", ..." if len(choices) > _MOST_CHOICES else ""
        hint = f"choose from {', '.join(choices[:_MOST_CHOICES])}{more}"
    return f"unknown {thing} {shown(text)}: {hint}"


def number(word: Word) -> int:
    """An id of 32 bits, decimal or hex: what the ABI's struct holds."""
    return _number(word.text, 32)


def long_number(word: Word) -> int:
    """An argument of an ioctl, an unsigned long."""
    return _number(word.text, 64)


def register(word: Word) -> int:
    """64 bits, decimal, hex or sized; a negative number as a register holds it."""
    if word.text.startswith("-"):
        return -_number(word.text[1:], 63) & (1 << 64) - 1
    return _u64(word, "a number")


def steps(word: Word) -> int:
    return _count(word, limits.MAX_STEPS, "instructions are stepped")


def vector(word: Word) -> int:
    value = number(word)
    if value > limits.MAX_VECTOR:
        raise ValueError(f"{shown(word.text)}: an interrupt's vector is 0 to {limits.MAX_VECTOR}")
    return value


def port(word: Word) -> int:
    value = number(word)
    if value >= limits.PORTS:
        raise ValueError(f"{shown(word.text)}: ports are 0 to {limits.PORTS - 1:#x}")
    return value


def port_count(word: Word) -> int:
    return _count(word, limits.PORTS, "ports")


def disasm_count(word: Word) -> int:
    return _count(word, limits.MAX_DISASM, "instructions are shown")


def _count(word: Word, most: int, what: str) -> int:
    count = number(word)
    if not 1 <= count <= most:
        raise ValueError(f"{shown(word.text)}: at a time 1 to {most} {what}")
    return count


def address(word: Word) -> int:
    """A guest physical address: up to 64 bits, so that KVM is the one to refuse those that do not exist."""
    return _u64(word, "an address")


def size(word: Word) -> int:
    """Bytes, or an offset: any 64 bits, zero too. An ABI answers what it refuses with an errno, which a script may
    want to see."""
    return _u64(word, "a size")


def length(word: Word) -> int:
    """Bytes, at least one."""
    size_bytes = size(word)
    if size_bytes == 0:
        raise ValueError("a length of 0 does nothing: write at least 1")
    return size_bytes


def access_length(word: Word) -> int:
    """Bytes, as many as one access moves."""
    size_bytes = length(word)
    if size_bytes > limits.MAX_ACCESS_BYTES:
        raise ValueError(
            f"{word.text} is more than one command reads ({limits.MAX_ACCESS_BYTES} bytes):"
            " read it in parts, or use sha256"
        )
    return size_bytes


def data(word: Word) -> bytes:
    """The bytes of "text" in UTF-8, or of hex digits in pairs."""
    value = word.text.encode() if word.quoted else _hex_bytes(word.text)
    if not value:
        raise ValueError('no bytes: write "text" or hex digits in pairs')
    if len(value) > limits.MAX_ACCESS_BYTES:
        raise ValueError(
            f"{len(value)} bytes are more than one command moves ({limits.MAX_ACCESS_BYTES}): move them in parts"
        )
    return value


def text(word: Word) -> str:
    return word.text


def path(word: Word) -> str:
    if not word.text:
        raise ValueError("an empty path: write the name of a file")
    return word.text


def vm_name(word: Word) -> str:
    if not word.text:
        raise ValueError("an empty name: write for example vm1")
    if len(word.text.encode()) > limits.MAX_NAME_BYTES:
        raise ValueError(f"{shown(word.text)} is longer than a name may be ({limits.MAX_NAME_BYTES} bytes): shorten it")
    return word.text


def slot_flags(word: Word) -> int:
    """Names with commas, or the number itself: KVM is the one to refuse bits it does not know."""
    bits = 0
    for name in word.text.split(","):
        if _NUMBER.fullmatch(name):
            bits |= _number(name, 32)
        elif name.lower() in _FLAGS:
            bits |= _FLAGS[name.lower()]
        else:
            raise ValueError(unknown("flag", name, tuple(_FLAGS)))
    return bits


def gmem_flags(word: Word) -> int:
    """Names with commas, or the number itself: KVM is the one to refuse bits it does not know."""
    if _NUMBER.fullmatch(word.text):
        return _number(word.text, 64)
    return int(parse_flags(word.text))


def errno_name(word: Word) -> str:
    name = word.text.upper()
    if errno_number(name) is None:
        raise ValueError(unknown("errno", name, sorted(errno.errorcode.values())))
    return name


def errno_number(name: str) -> int | None:
    """22 for "EINVAL"; None for what is no errno. Some have two names (EOPNOTSUPP, ENOTSUP)."""
    if name == "EHWPOISON":
        return EHWPOISON
    value = getattr(errno, name, None) if name.startswith("E") else None
    return value if isinstance(value, int) else None


def exit_status(word: Word) -> int:
    status = number(word)
    if status > 255:
        raise ValueError(f"{word.text} is not an exit status: choose 0 to 255")
    return status


def choice(thing: str, choices: Sequence[str]) -> Callable[[Word], str]:
    """A converter that takes exactly these words."""

    def convert(word: Word) -> str:
        if word.text not in choices:
            raise ValueError(unknown(thing, word.text, choices))
        return word.text

    return convert


def _u64(word: Word, thing: str) -> int:
    """64 bits: hex, or decimal with or without a unit."""
    if word.text[:2] in ("0x", "0X") or _NUMBER.fullmatch(word.text):
        return _number(word.text, 64)
    try:
        return parse_size(word.text[: _MOST_SHOWN + 1], 64)
    except ValueError as error:
        if str(error).endswith("64 bits"):
            raise
        raise ValueError(
            f"{shown(word.text)} is not {thing}: write hex with 0x, or decimal with or without K, M, G or T"
        ) from None


def _number(text: str, bits: int) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a number: write decimal digits, or hex with 0x")
    if len(text) > _MOST_SHOWN or (value := int(text, 16 if text[:2] in ("0x", "0X") else 10)) >> bits:
        raise ValueError(f"{shown(text)} does not fit in {bits} bits")
    return value


def _hex_bytes(text: str) -> bytes:
    digits = text[2:] if text[:2] in ("0x", "0X") else text
    if not _HEX.fullmatch(digits):
        raise ValueError(f'{shown(text)} is neither hex bytes nor quoted: for text write "..."')
    if len(digits) % 2:
        raise ValueError(f"{shown(text)} has an odd number of hex digits: a byte is two")
    return bytes.fromhex(digits)


def counter(word: Word) -> str:
    """A name in braces."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,31}", word.text):
        raise ValueError(f"counter {shown(word.text)}: choose a name of up to 32 letters a-z, digits and _")
    return word.text
