"""The states of the pool's frames, for memfs kcore: of one moment, in parts that fit into a packet."""

from memfsd.store.dumps import Dump
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.framing import decode_reply, encode_reply
from memfsd.uapi.limits import MAX_RUNS_PER_REPORT
from memfsd.uapi.messages import Kind
from tests.support.core_store import CoreStore, refused

FREE, SHARED = FrameState.FREE, FrameState.SHARED


def test_a_dump_is_of_one_moment(store: CoreStore) -> None:
    pool = store.service.pool
    pool.alloc(3, SHARED)
    dump = Dump(store.service)
    pool.alloc(5, SHARED)
    reply = dump.part(0)
    assert (reply.pool_frames, reply.runs, reply.next_pfn) == (64, [(0, 3, SHARED), (3, 61, FREE)], -1)


def test_a_scattered_pool_comes_in_parts_each_of_one_packet() -> None:
    frames = 4 * MAX_RUNS_PER_REPORT
    store = CoreStore(frames)
    pool = store.service.pool
    pool.alloc(frames, SHARED)
    for pfn in range(0, frames, 2):
        pool.set_state(pfn, 1, FrameState.CLOSING)
    dump, runs, at, parts = Dump(store.service), [], 0, 0
    while at >= 0:
        reply = dump.part(at)
        assert decode_reply(Kind.KCORE, encode_reply(1, Kind.KCORE, reply)) == reply
        runs += reply.runs
        at, parts = reply.next_pfn, parts + 1
    assert parts == 4
    assert runs == [(pfn, 1, SHARED if pfn % 2 else FrameState.CLOSING) for pfn in range(frames)]


def test_parts_come_in_their_order_only(store: CoreStore) -> None:
    dump = Dump(store.service)
    with refused("EINVAL", "goes on at frame 0x0"):
        dump.part(7)
    assert dump.part(0).next_pfn == -1
    with refused("EINVAL", "is complete"):
        dump.part(64)
