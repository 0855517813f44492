"""What holds for each connection, whoever's journal has it: replies, states, brackets, the sequence, bindings."""

import errno
from dataclasses import dataclass, field
from typing import Any

from memfsd.common.intervals import IntervalMap, subtract
from memfsd.common.journal import Message
from memfsd.uapi.messages import Kind, Reason, Role
from memfsd.uapi.pairing import State, next_state

_SWAPS = frozenset({Reason.SWAP_OUT, Reason.EVICT})
_TAKES_AWAY = frozenset({Reason.PUNCH, Reason.TRUNCATE, Reason.POISON, Reason.REVOKE})


class Broken(Exception):
    """A rule of the protocol that does not hold. Rules are named as docs/reliability.md lists them."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(why)
        self.rule = rule
        self.why = why


BEGINNINGS = frozenset({"INVALIDATE_BEGIN", "MOVE"})
"""Requests that open a bracket, if they are not refused."""

Move = tuple[int, int, int]
"""(first page, end, frame) of pages that a MOVE leaves in this frame and those after it."""


@dataclass
class Bracket:
    """An invalidation of file pages [start, end) under way; acknowledged: the reply to its BEGIN, or MOVE, came, and
    kept what it says."""

    start: int
    end: int
    seq: int
    begun: int
    """Number of the record with its BEGIN."""
    where: str
    reason: int = Reason.PUNCH
    moves: list[tuple[int, int]] | None = None
    """Of a MOVE: the pages that it names, which are the ones that are taken from the VM."""
    acknowledged: bool = False
    kept: list[tuple[int, int]] = field(default_factory=list)

    @property
    def what(self) -> str:
        return "the BEGIN" if self.moves is None else "the MOVE"


@dataclass
class Asked:
    """A request that has no answer yet, and where in the journals it is."""

    kind: str
    body: dict[str, Any] | None
    number: int
    where: str


@dataclass
class Conversation:
    """One connection in one process's journal: both of its channels. peer: the pid at the other end."""

    peer: int = 0
    ino: int = -1
    down: State = State.CONNECTED
    up: State = State.UP_OPEN
    seq: int = -1
    bracket: Bracket | None = None
    bindings: IntervalMap[int] = field(default_factory=IntervalMap)
    """File pages to GFN - page."""
    gfns: IntervalMap[int] = field(default_factory=IntervalMap)
    revoked: IntervalMap[int] = field(default_factory=IntervalMap)
    """File pages to the sequence number since which what was granted before is void."""
    out: set[int] = field(default_factory=set)
    """File pages that are swapped out, as far as this connection knows: an unbound one may be punched unseen."""
    excused: bool = False
    """The connection ended, or the VM was cut off or died: nothing more is owed."""
    _asked: dict[tuple[str, int], Asked] = field(default_factory=dict)

    def message(self, message: Message, number: int, where: str) -> Asked | None:
        """One packet; for a reply, what it answers."""
        if not message.kind:
            return None
        if not message.reply:
            self._request(message, number, where)
            return None
        asked = self._asked.pop((message.channel, message.id), None)
        if asked is None or asked.kind != message.kind:
            raise Broken("reply", f"a reply to {message.kind} {message.id}, which nobody asked or which was answered")
        if not message.errno:
            self._answered(message, asked)
        elif message.kind == "MOVE":
            self.bracket = None
        elif message.kind == Kind.INVALIDATE_BEGIN.name and message.errno == errno.ENOMEM:
            self.bracket = None  # a leaf that could not be split: nothing was done
        return asked

    def finish(self) -> None:
        """The process ended in order."""
        if self.bracket is not None and not self.excused:
            raise Broken("bracket", f"the bracket that {self.bracket.where} opened has no END")

    def _request(self, message: Message, number: int, where: str) -> None:
        if message.channel == "down" and not self.excused:
            for (channel, _), asked in self._asked.items():
                if channel == "down":
                    raise Broken(
                        "reply", f"{asked.kind} of {asked.where} was never answered, and the connection went on"
                    )
        key = message.channel, message.id
        if key in self._asked:
            raise Broken("reply", f"{message.kind} {message.id} while another request with this id is open")
        self._asked[key] = Asked(message.kind, message.body, number, where)
        body = message.body
        if body is None:
            return
        if message.kind in BEGINNINGS:
            self._begin(body, number, where)
        elif message.kind == "INVALIDATE_END":
            self._end(body)
        elif message.kind == "SWAP_OUT":
            self._swap_out([pgoff for pgoff, _ in body["pages"]])

    def _begin(self, body: dict[str, Any], number: int, where: str) -> None:
        if self.bracket is not None:
            raise Broken("bracket", f"a second BEGIN while the bracket that {self.bracket.where} opened has no END")
        if self.seq >= 0 and body["seq"] != self.seq:
            raise Broken("sequence", f"BEGIN says {body['seq']}, and the last END or PAIR said {self.seq}")
        moves = [(pgoff, pgoff + count) for pgoff, _, _, count in body["moves"]] if "moves" in body else None
        reason = Reason.MOVE if moves is not None else body["reason"]
        self.bracket = Bracket(body["start"], body["end"], body["seq"], number, where, reason, moves)
        if reason in _TAKES_AWAY:
            self._not_out(body["start"], body["end"])

    def _end(self, body: dict[str, Any]) -> None:
        bracket = self.bracket
        if bracket is None:
            raise Broken("bracket", "END without a BEGIN")
        if (bracket.start, bracket.end) != (body["start"], body["end"]):
            theirs = f"{body['start']:#x}-{body['end']:#x}"
            raise Broken("bracket", f"END of pages {theirs}, BEGIN was of {bracket.start:#x}-{bracket.end:#x}")
        if not bracket.acknowledged and not self.excused:
            raise Broken("bracket", f"END before the acknowledgement of the BEGIN of {bracket.where}")
        if body["seq"] != bracket.seq + 1:
            raise Broken("sequence", f"END says {body['seq']} where BEGIN said {bracket.seq}: it grows by one")
        self.seq = body["seq"]
        self.revoked.put(bracket.start, bracket.end, self.seq)
        self.bracket = None

    def _swap_out(self, pages: list[int]) -> None:
        bracket = self.bracket
        if bracket is None or not bracket.acknowledged or bracket.reason not in _SWAPS:
            raise Broken("swap", "SWAP_OUT outside a bracket that swaps out, or before its acknowledgement")
        for page in pages:
            if not bracket.start <= page < bracket.end or any(low <= page < high for low, high in bracket.kept):
                raise Broken(
                    "swap", f"SWAP_OUT of page {page:#x}, which the VM keeps, or {bracket.where} did not close"
                )

    def _not_out(self, start: int, end: int) -> None:
        self.out -= {page for page in self.out if start <= page < end}

    def _answered(self, reply: Message, asked: Asked) -> None:
        kind = Kind[reply.kind]
        if reply.channel == "down":
            following = next_state(self.down, kind)
            if following is None:
                raise Broken("legal", f"{kind.name} was answered well in state '{self.down.value}'")
            observes = kind is Kind.HELLO and (asked.body or {}).get("role") == Role.OBSERVER
            self.down = State.OBSERVING if observes else following
        else:
            following = next_state(self.up, kind)
            if following is None:
                raise Broken("legal", f"{kind.name} was answered well in state '{self.up.value}'")
            self.up = following
        if asked.body is None or reply.body is None:
            raise Broken("legal", f"{kind.name} was answered well, and one of the two could not be decoded")
        body, was = reply.body, asked.body
        if kind is Kind.PAIR:
            self.seq = body["seq"]
        elif kind is Kind.BYE:
            self.excused = True
        elif kind.name in BEGINNINGS and self.bracket is not None:
            self.bracket.acknowledged = True
            self.bracket.kept = [(low, high) for low, high in body["kept"]]
        elif kind is Kind.SWAP_OUT:
            self.out |= {page for (page, _), blob in zip(was["pages"], body["blobs"], strict=True) if blob}
        elif kind is Kind.SWAP_IN:
            self._not_out(was["pgoff"], was["pgoff"] + len(was["blobs"]))
        elif kind is Kind.BIND:
            self._bind(was["pgoff"], was["pgoff"] + was["page_count"], was["gfn"] - was["pgoff"])
        elif kind is Kind.UNBIND:
            self._unbind(was["pgoff"], was["pgoff"] + was["page_count"])

    def _bind(self, start: int, end: int, distance: int) -> None:
        taken = self.bindings.within(start, end)
        if taken:
            raise Broken("rebind", f"page {taken[0][0]:#x} is bound again without an UNBIND before")
        shown = self.gfns.within(start + distance, end + distance)
        if shown:
            raise Broken("rebind", f"GFN {shown[0][0]:#x} stands for a second page")
        self.bindings.put(start, end, distance)
        self.gfns.put(start + distance, end + distance, 0)

    def _unbind(self, start: int, end: int) -> None:
        self._not_out(start, end)
        gone = self.bindings.cut(start, end)
        if sum(high - low for low, high, _ in gone) != end - start:
            raise Broken("rebind", f"UNBIND of pages {start:#x}-{end:#x}, which are not all bound")
        for low, high, distance in gone:
            self.gfns.cut(low + distance, high + distance)

    # -- what both sides' rules about grants share

    @staticmethod
    def moves(message: Message, asked: Asked) -> list[Move]:
        """Where a MOVE that was acknowledged has left the pages that it names: in their new frames, or in the old."""
        if message.kind != "MOVE" or message.errno or message.body is None or asked.body is None:
            return []
        kept = [(low, high) for low, high in message.body["kept"]]
        found: list[Move] = []
        for pgoff, source, target, count in asked.body["moves"]:
            moved = subtract(pgoff, pgoff + count, kept)
            found += [(low, high, target + low - pgoff) for low, high in moved]
            found += [(low, high, source + low - pgoff) for low, high in subtract(pgoff, pgoff + count, moved)]
        return found

    def check_grant(self, message: Message, asked: Asked) -> tuple[int, int, int, int] | None:
        """A GET_PFN that was granted: (first page, end, frame, seq); Broken when its pages were closing then.

        BEGIN is sent with the range closed already, and it opens again, with a new number, before END is sent.
        """
        if message.kind != "GET_PFN" or message.errno or message.body is None or asked.body is None:
            return None
        start, body = asked.body["pgoff"], message.body
        end, seq, bracket = start + body["page_count"], body["seq"], self.bracket
        if (
            bracket is not None
            and asked.number > bracket.begun
            and seq == bracket.seq
            and start < bracket.end
            and bracket.start < end
        ):
            raise Broken(
                "grant", f"pages {start:#x}-{end:#x} were granted inside the bracket that {bracket.where} opened"
            )
        if self.out:
            for low, high in subtract(start, end, self.is_void(start, end, seq)):
                for page in self.out:
                    if low <= page < high:
                        raise Broken("swap", f"page {page:#x} is granted while it is swapped out")
        return start, end, body["pfn"], seq

    def is_void(self, start: int, end: int, seq: int) -> list[tuple[int, int]]:
        """Parts of a grant that an invalidation overtook: the VM throws them away."""
        parts = [(low, high) for low, high, since in self.revoked.within(start, end) if since > seq]
        bracket = self.bracket
        if bracket is not None and bracket.seq >= seq and start < bracket.end and bracket.start < end:
            parts.append((max(start, bracket.start), min(end, bracket.end)))
        return parts
