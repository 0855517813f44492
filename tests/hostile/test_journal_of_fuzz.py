"""The journal of a store that is told anything: every line a record, and no rule broken by the store.

Requests only: a reply that nobody asked for would break a rule, by the peer.
"""

from pathlib import Path

from kvmsim.instruments.journal.check import check
from memfsd.uapi import messages as m
from memfsd.uapi.messages import Kind
from tests.hostile.packets import Hostile
from tests.hostile.tally import SEED, share, tried
from tests.hostile.test_fuzz_store import GREETING, PAIRED, exchange
from tests.support.both_sides import LocalStore
from tests.support.journaled import recording
from tests.support.threads import Beside, until
from tests.support.wire import Wire, is_readable


def test_the_journal_of_a_fuzzed_store_keeps_all_rules(tmp_path: Path) -> None:
    path, count = tmp_path / "store.journal", share(0.02)
    with recording(path, "memfsd"):
        store = LocalStore(tmp_path, 64)
        store.create("file", 16)
        anything, paired = Hostile(SEED, GREETING), Hostile(SEED, PAIRED)
        with Wire(store) as wire:
            wire.hello(operations=sorted(m.REQUIRED_KVM_OPERATIONS))
            wire.pair()
            for id_ in range(count):
                assert exchange(wire.down, paired.answerable(id_)) is not None
                with store.connect() as sock:
                    exchange(sock, anything.answerable(id_))
                if id_ % 50 == 0:
                    punch = Beside(lambda: store.punch("file", 0, 16))
                    while punch.running:
                        if _called(wire):
                            kind, up_id, _ = wire.called()
                            reply = m.InvalidateBeginReply([]) if kind is Kind.INVALIDATE_BEGIN else None
                            wire.answer(kind, up_id, reply)
                    punch.result()
            wire.id = 0
            wire.ask(Kind.BYE)
        tried["sessions, with a journal"] += 2 * count
        until(lambda: store.server.session_count() == 0, "all sessions end")
        store.close()
    verdict = check([str(path)])
    assert (verdict.rule, verdict.where, verdict.why, verdict.incomplete) == ("", "", "", [])
    assert verdict.message_count > 3 * count


def _called(wire: Wire) -> bool:
    assert wire.up is not None
    return is_readable(wire.up, 0.001)
