"""Does an `expect` match what the previous command did?"""

from memfsd.uapi.units import parse_size

from .commands import Expect, ExpectData, ExpectErrno, ExpectExit, ExpectOk, ExpectRet, ExpectStatus
from .grammar import EXIT_PREFIX
from .outcome import Outcome, format_exit, format_field
from .values import errno_number

_BOOLEANS = {"true": 1, "false": 0}
_SHOWN_BYTES = 32


def mismatch(expect: Expect, outcome: Outcome) -> str | None:
    """None when it matches, else one line: "expected exit MMIO, got ok"."""
    match expect:
        case ExpectOk():
            return None if outcome.ok else _line("ok", outcome)
        case ExpectErrno():
            if outcome.errno and _same_errno(expect.errno, outcome.errno):
                return None
            return _line(f"errno {expect.errno}", outcome)
        case ExpectExit():
            return _exit_mismatch(expect, outcome)
        case ExpectData():
            return _data_mismatch(expect.data, outcome)
        case ExpectRet():
            if outcome.ret == expect.ret:
                return None
            hint = " (only hypercall and tdvmcall return something)" if outcome.ret is None else ""
            return _line(f"ret {expect.ret:#x}", outcome) + hint
        case ExpectStatus():
            if outcome.status == expect.status:
                return None
            hint = " (only sh has a status)" if outcome.status is None else ""
            return _line(f"status {expect.status}", outcome) + hint
    raise AssertionError(f"no rule for {expect}")


def same_value(actual: int | str | bool, expected: str) -> bool:
    """Is the word what the field holds? Numbers compare in any base, strings without case and KVM_."""
    if isinstance(actual, str):
        return _plain(actual) == _plain(expected)
    return _number(expected) == actual


def _exit_mismatch(expect: ExpectExit, outcome: Outcome) -> str | None:
    if outcome.exit is None or outcome.exit.removeprefix(EXIT_PREFIX) != expect.reason:
        return _line(f"exit {expect.reason}", outcome)
    for name, expected in expect.fields:
        if name not in outcome.exit_fields:
            names = ", ".join(outcome.exit_fields) or "no fields"
            return f"expected exit {expect.reason} {name}={expected}, but the fields are: {names}"
        actual = outcome.exit_fields[name]
        if not same_value(actual, expected):
            return f"expected exit {expect.reason} {name}={expected}, got {name}={format_field(name, actual)}"
    return None


def _data_mismatch(expected: bytes, outcome: Outcome) -> str | None:
    """An exit or a refusal is a mismatch even if it carries data: that data was not read."""
    if not outcome.ok or outcome.data is None:
        return _line(f"data {_hex(expected)}", outcome)
    if outcome.data == expected:
        return None
    line = f"expected data {_hex(expected)}, got data {_hex(outcome.data)}"
    if len(outcome.data) != len(expected):
        return f"{line} ({len(expected)} bytes expected, got {len(outcome.data)})"
    first = next(at for at, byte in enumerate(expected) if outcome.data[at] != byte)
    return f"{line} (they differ from byte {first})"


def _line(expected: str, outcome: Outcome) -> str:
    return f"expected {expected}, got {_got(outcome)}"


def _got(outcome: Outcome) -> str:
    """In the words of an `expect`, so that the line can be corrected from the message."""
    if outcome.errno is not None:
        return f"errno {outcome.errno}: {outcome.reason}" if outcome.reason else f"errno {outcome.errno}"
    if outcome.exit is not None and not outcome.ok:
        return f"exit {format_exit(outcome.exit, outcome.exit_fields).removeprefix(EXIT_PREFIX)}"
    if outcome.ret is not None:
        return f"ret {outcome.ret:#x}"
    if outcome.status is not None:
        return f"status {outcome.status}"
    return "ok" if outcome.ok else f"a failure: {outcome.reason}"


def _same_errno(one: str, other: str) -> bool:
    return one == other or (errno_number(one) is not None and errno_number(one) == errno_number(other))


def _plain(text: str) -> str:
    return text.casefold().removeprefix("kvm_").removeprefix("exit_")


def _number(text: str) -> int | None:
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    for parse in (lambda digits: int(digits, 0), parse_size):
        try:
            return parse(text)
        except ValueError:
            continue
    return None


def _hex(data: bytes) -> str:
    return data.hex() if len(data) <= _SHOWN_BYTES else f"{data[:_SHOWN_BYTES].hex()}..."
