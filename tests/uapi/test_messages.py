"""Kinds and the tables of their bodies: what a peer that was built from other sources relies on."""

import pytest

from memfsd.uapi.messages import (
    KVM_OPERATIONS,
    REPLIES,
    REPLY,
    REQUESTS,
    REQUIRED_KVM_OPERATIONS,
    RESERVED_KINDS,
    STORE_OPERATIONS,
    WITHOUT_MESSAGE,
    Kind,
    MemoryType,
    Reason,
    Role,
)


def test_numbers_that_were_given_once_stay() -> None:
    """A change of one is another PROTOCOL_VERSION."""
    assert {kind.name: kind.value for kind in Kind} == {
        "HELLO": 1,
        "PAIR": 2,
        "BIND": 3,
        "UNBIND": 4,
        "GET_PFN": 5,
        "STAT": 6,
        "PING": 7,
        "BYE": 8,
        "ATTRIBUTES": 9,
        "CHECK": 16,
        "MAP": 17,
        "LIST": 18,
        "KCORE": 19,
        "MEMORY_FAILURE": 20,
        "DEVICE_ADD": 21,
        "DEVICE_REMOVE": 22,
        "PAGE_OUT": 24,
        "SWAP_OFF": 25,
        "SET_NODE": 26,
        "COMPACT": 27,
        "INVALIDATE_BEGIN": 32,
        "INVALIDATE_END": 33,
        "MOVE": 34,
        "SWAP_OUT": 35,
        "SWAP_IN": 36,
        "POISON": 37,
        "REVOKE": 38,
        "REPORT": 39,
        "PAGE_MAP": 48,
    }
    assert [(role.name, role.value) for role in Role] == [("GUEST", 0), ("OBSERVER", 1)]
    reasons = ["PUNCH", "TRUNCATE", "RECLAIM", "MOVE", "SWAP_OUT", "POISON", "REVOKE", "EVICT", "CONVERT"]
    assert [reason.name for reason in sorted(Reason)] == reasons
    assert {kind.name: kind.value for kind in MemoryType} == {"UC": 0, "WB": 6}, "as in an EPT entry"


@pytest.mark.parametrize("kind", Kind)
def test_a_kind_has_both_bodies_or_is_reserved(kind: Kind) -> None:
    assert (kind in REQUESTS, kind in REPLIES) == (kind not in RESERVED_KINDS | WITHOUT_MESSAGE,) * 2


@pytest.mark.parametrize("kind", Kind)
def test_a_reply_is_never_taken_for_a_request(kind: Kind) -> None:
    assert not kind & REPLY
    assert kind | REPLY < 1 << 16, "the header has 16 bits for it"


def test_what_a_side_needs_is_part_of_what_the_other_may_offer() -> None:
    assert REQUIRED_KVM_OPERATIONS < KVM_OPERATIONS
    assert not (KVM_OPERATIONS | STORE_OPERATIONS) & RESERVED_KINDS
