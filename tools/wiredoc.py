"""docs/wire.md, rendered from memfsd.uapi: `tools/render-wire` writes it, a test compares it."""

import ast
import inspect as python
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from msgspec import inspect

from memfsd.common.arguments import Parser
from memfsd.common.stdio import fill_standard_fds
from memfsd.uapi import framing, limits, messages, page_map, pairing
from memfsd.uapi.messages import (
    KVM_OPERATIONS,
    PROTOCOL_VERSION,
    REPLIES,
    REPLY,
    REQUESTS,
    REQUIRED_KVM_OPERATIONS,
    RESERVED_KINDS,
    STORE_OPERATIONS,
    WITHOUT_MESSAGE,
    Body,
    Kind,
)
from memfsd.uapi.pairing import LEGAL, State

PATH = Path(__file__).parents[1] / "docs" / "wire.md"
UP_STATES = (State.UP_OPEN, State.UP_CLOSING)
UP = frozenset({kind for state in UP_STATES for kind in LEGAL[state]} | RESERVED_KINDS)
OBSERVER = frozenset(LEGAL[State.OBSERVING]) - STORE_OPERATIONS

HEAD = """\
# The wire between memfsd and kvmsim

Rendered from `memfsd/uapi` by `tools/render-wire`: change the code, not this file.

One AF_UNIX SOCK_SEQPACKET connection joins one file and its VM. On its *down* channel kvmsim asks and memfsd answers.
The answer to PAIR passes the *up* channel, on which memfsd calls back and kvmsim acknowledges; so neither waits behind
the other. On each channel one request is open at a time, and every request has exactly one reply. Ranges are half-open;
page, frame and GFN numbers count 4 KiB.
"""

ERRORS = """\
## Errors, and what ends a connection

A reply with an errno refuses its request: nothing was changed, and the connection goes on. Its body is `Failure`.
memfsd answers on the down channel, and kvmsim on the up channel with the first three; but a VM that refuses
INVALIDATE_BEGIN has not acknowledged, and is cut off.

| what arrives | answer |
| --- | --- |
| a body that is not the kind's: truncated, fields too many or of another type, a field out of its bounds | EINVAL |
| a kind that is reserved, or that only the other side implements | EOPNOTSUPP |
| a kind that is not legal in the channel's state | EPROTO |
| HELLO with another version | EPROTONOSUPPORT |
| PAIR without the required operations | EOPNOTSUPP |
| HELLO with a token that no file made; HELLO or PAIR from a uid that does not own the file | EACCES |
| PAIR with a proof that does not prove the token | EACCES |
| PAIR with a file that has or had a VM | EPERM |
| BIND or UNBIND that the memory does not allow | EINVAL, EEXIST, ENOSPC; ENOTCONN after the VM was cut off |
| GET_PFN of a page that is not bound or past the end | EFAULT |
| GET_PFN of a page that is being taken back: fault again after INVALIDATE_END | EAGAIN |
| GET_PFN when the pool is full and nothing could be reclaimed | ENOSPC |
| less than a header, more than a packet, an unknown kind | the connection ends |
| a request with an errno, a reply that nobody asked for, or with another id or kind | the connection ends |

File descriptors that come along uninvited are closed. An end for which nobody said BYE is judged by the process: if it
is dead, its frames are scrubbed and freed; if it lives, it is cut off and they are quarantined until it is dead. The
file never pairs again.
"""

FLOWS = """\
## Sequences

Pairing: the token proves possession of the fd, and to kvmsim that the store is the one that serves the file
([decision 17](decisions/0017-who-is-at-the-other-end.md)). Its key never goes over the socket.

```
kvmsim                                             memfsd
  fd's device in mountinfo: fuse.memfsd, user_id
  fgetxattr(fd, user.memfsd.socket, .token)  ---->   token: id, key
  connect; SO_PEERCRED: user_id or root?     ---->
  HELLO version, role, vm, operations,
        token's id, nonce                    ---->   uid owns the file?
                                             <----   HELLO version, operations, nonce, proof
  the store's proof holds? else: no store
  PAIR proof                                 ---->   proof holds? never paired? operations suffice?
                                             <----   PAIR ino, size, order, seq, window_frames,
                                                         memory_type + fds: window, up channel,
                                                         page map if both sides have PAGE_MAP
  BIND slot, gfn, pgoff, page_count          ---->   not bound yet? same GFN as ever?
                                             <----   BIND
```

A page fault: the sequence number shows whether the answer is stale.

```
kvmsim                                             memfsd
  snapshot mmu_invalidate_seq
  the page map has it, at the seq of the last
  INVALIDATE_END? then no message; else
  GET_PFN pgoff, max_pages                   ---->   bound? not closing? a run of frames
                                             <----   GET_PFN pfn, page_count, order, seq
  seq moved, or an open bracket covers it: again
  else map the run
```

An invalidation: frames are free only after the acknowledgement.

```
kvmsim (up channel)                                memfsd
                                                     the range is closing: GET_PFN in it is EAGAIN
                                             <----   INVALIDATE_BEGIN start, end, seq, reason
  zap, flush, every vCPU out of the guest once
  INVALIDATE_BEGIN kept                      ---->   frames out of the file, scrubbed, free; seq + 1
                                             <----   INVALIDATE_END start, end, seq
  waiting faults go on
  INVALIDATE_END                             ---->   the answer to fallocate(2)
```

Death, of either side.

```
kvmsim                                             memfsd
  killed: both channels end                  ---->   end of file, and the pidfd says dead:
                                                     counts as acknowledged; frames scrubbed and freed
  lives, and does not acknowledge            ---->   past the deadline: cut off, frames quarantined
  dies at last                               ---->   frames scrubbed and freed

  zaps what came from the store, acknowledges  <--   REVOKE (unmount)
  zaps what came from the store; its next faults     killed: both channels end
  exit with an error                         <----
```
"""


def render() -> str:
    """The whole page."""
    parts = [
        HEAD,
        _header(),
        _kinds(),
        _operations(),
        _states(),
        _messages(),
        _enums(),
        _page_map(),
        ERRORS,
        _limits(),
        FLOWS,
    ]
    return "\n".join(parts)


def _page_map() -> str:
    text = (page_map.__doc__ or "").partition("\n\n    ")
    layout, _, rules = text[2].partition("\n\n")
    values = [("`FIRST_WORD`", page_map.FIRST_WORD), ("state: granted", f"`{page_map.PRESENT:#x}`")]
    values += [("order, 8 bits from bit", page_map.ORDER_SHIFT), ("frame", f"`{page_map.FRAME_MASK:#x}`")]
    values += [("largest map, bytes", limits.MAX_PAGE_MAP_BYTES)]
    return "\n\n".join(
        [
            "## The page map",
            text[0].replace("\n", " "),
            f"```\n{python.cleandoc(layout)}\n```",
            rules.strip(),
            _table(("part of an entry", "value"), [(name, str(value)) for name, value in values]),
        ]
    )


def _header() -> str:
    rows = [("id", "u32", "chosen by who asks; the reply has the same")]
    rows += [("kind", "u16", f"the kind; a reply has `{REPLY:#x}` set")]
    rows += [("errno", "u16", "0 in requests and in replies that succeed")]
    size = framing.HEADER_BYTES
    return "\n".join(
        [
            f"## A packet: version {PROTOCOL_VERSION}\n",
            f"{size} bytes of header, little endian, then a msgpack array of the body's fields in order; "
            f"{limits.MAX_PACKET_BYTES} bytes at most.\n",
            _table(("field", "type", "meaning"), rows),
        ]
    )


def _kinds() -> str:
    rows = []
    for kind in Kind:
        if kind in WITHOUT_MESSAGE:
            rows.append((str(int(kind)), f"`{kind.name}`", "", "", "no message", ""))
            continue
        way = "memfsd -> kvmsim" if kind in UP else "kvmsim -> memfsd"
        who = "a tool -> memfsd" if kind in OBSERVER else way
        bodies = ("reserved", "") if kind in RESERVED_KINDS else (_link(REQUESTS[kind]), _link(REPLIES[kind]))
        rows.append((str(int(kind)), f"`{kind.name}`", "up" if kind in UP else "down", who, *bodies))
    return "## Kinds\n\n" + _table(("number", "kind", "channel", "direction", "request", "reply"), rows)


def _operations() -> str:
    text = (
        "## Operation tables\n\n"
        'HELLO exchanges them: the "function pointers". An operation that the peer lacks is never called. Without '
        f"{_names(REQUIRED_KVM_OPERATIONS)} a VM cannot pair.\n\n"
    )
    rows = [
        ("memfsd", _names(STORE_OPERATIONS)),
        ("kvmsim", _names(KVM_OPERATIONS)),
        ("both, and no message asks for it", _names(WITHOUT_MESSAGE)),
        ("reserved: on the up channel, implemented by nobody yet", _names(RESERVED_KINDS)),
    ]
    return text + _table(("who implements", "operations"), rows)


def _states() -> str:
    docs = _docstrings(pairing, State.__name__)
    parts = [
        "## States\n\nA message moves its channel when it was answered well, and not when it was refused.\n",
        _table(("state", "meaning"), [(f"`{state.name}`", docs.get(state.name, "")) for state in State]),
    ]
    columns = [state for state in State if LEGAL[state]]
    rows = []
    for kind in Kind:
        if kind not in RESERVED_KINDS | WITHOUT_MESSAGE:
            after = [LEGAL[state].get(kind) for state in columns]
            rows.append((f"`{kind.name}`", *("-" if state is None else f"`{state.name}`" for state in after)))
    parts.append("The state after each message; `-` is not legal. HELLO with role OBSERVER leads to `OBSERVING`.\n")
    parts.append(_table(("message", *(f"in `{state.name}`" for state in columns)), rows))
    return "\n".join(parts)


def _messages() -> str:
    parts = ["## Bodies\n"]
    for cls in body_classes():
        parts.append(f"### {cls.__name__}\n\n{_doc(cls)}\n")
        info = inspect.type_info(cls)
        assert isinstance(info, inspect.StructType)
        if info.fields:
            rows = [(str(n), f"`{field.name}`", describe(field.type)) for n, field in enumerate(info.fields)]
            parts.append(_table(("", "field", "type and bounds"), rows))
    return "\n".join(parts)


def body_classes() -> list[type[Body]]:
    """In the order of messages.py; all that some message has, also inside of another."""
    return [cls for cls in vars(messages).values() if isinstance(cls, type) and issubclass(cls, Body) and cls != Body]


def _enums() -> str:
    parts = ["## Numbers with names\n"]
    for cls in (messages.Role, messages.Reason, messages.MemoryType):
        docs = _docstrings(messages, cls.__name__)
        rows = [(str(int(member)), f"`{member.name}`", docs.get(member.name, "")) for member in cls]
        title = f"### {cls.__name__}\n"
        parts += [title, *([f"{_doc(cls)}\n"] if cls.__doc__ else []), _table(("number", "name", ""), rows)]
    return "\n".join(parts)


def _limits() -> str:
    docs = _docstrings(limits)
    source = python.getsource(limits)
    start = source.index("# Pairing.")
    stop = source.index("# kvmsim.")
    rows = []
    for node in ast.parse(source[start:stop]).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            value = getattr(limits, name)
            shown = f"{value:g} s" if name.endswith("_S") else number(value)
            rows.append((f"`{name}`", shown, docs.get(name, "")))
    return "## Limits and deadlines\n\n" + _table(("name", "value", ""), rows)


def describe(info: inspect.Type) -> str:
    """A field's type and bounds, for a person."""
    match info:
        case inspect.IntType(ge=low, le=high, lt=below):
            return f"integer {number(low or 0)} to {number(high) if below is None else number(below - 1)}"
        case inspect.StrType(min_length=low, max_length=high):
            return f"text of {low or 0} to {high} characters"
        case inspect.BytesType(min_length=low, max_length=high):
            return f"{low} bytes" if low == high else f"{low} to {high} bytes"
        case inspect.EnumType(cls=cls) | inspect.StructType(cls=cls):
            return _link(cls)
        case inspect.TupleType(item_types=items):
            return f"[{'; '.join(map(describe, items))}]"
        case inspect.ListType(item_type=item, max_length=high):
            return f"up to {high} of: {describe(item)}"
        case inspect.DictType(key_type=key, value_type=value, max_length=high):
            return f"map of up to {high}: {describe(key)} to {describe(value)}"
    raise AssertionError(f"no words for {info}")


def number(value: int | None) -> str:
    """Large powers of two, and their neighbours below, as such."""
    assert value is not None, "a bound is missing"
    for near, suffix in ((value, ""), (value + 1, " - 1")):
        if near >= 1 << 16 and near & (near - 1) == 0:
            return f"2^{near.bit_length() - 1}{suffix}"
    return str(value)


def _names(kinds: frozenset[Kind]) -> str:
    return ", ".join(f"`{kind.name}`" for kind in sorted(kinds))


def _link(cls: type) -> str:
    return f"[{cls.__name__}](#{cls.__name__.lower()})"


def _doc(cls: type) -> str:
    return " ".join((python.getdoc(cls) or "").split())


def _docstrings(module: ModuleType, cls: str | None = None) -> dict[str, str]:
    """The texts that follow assignments in a module, or in one of its classes."""
    tree: ast.Module | ast.ClassDef = ast.parse(python.getsource(module))
    if cls is not None:
        tree = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls)
    found = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        match node, after:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=text)):
                found[name] = " ".join(str(text).split())
    return found


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    assert all(len(line) == len(head) for line in lines)
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def main() -> int:
    fill_standard_fds()
    Parser(prog="tools/render-wire", description="Write docs/wire.md from memfsd/uapi.").parse_args()
    PATH.write_text(render())
    print(f"{PATH} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
