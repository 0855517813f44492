"""The table of states and legal messages, every state and every kind."""

import pytest

from memfsd.uapi.messages import KVM_OPERATIONS, REQUESTS, RESERVED_KINDS, STORE_OPERATIONS, WITHOUT_MESSAGE, Kind
from memfsd.uapi.pairing import LEGAL, State, next_state

DOWN = (State.CONNECTED, State.GREETED, State.PAIRED, State.OBSERVING)
UP = (State.UP_OPEN, State.UP_CLOSING)

C, G, P, O, UO, UC, E = State  # noqa: E741  the columns below
EXPECTED: dict[Kind, dict[State, State]] = {
    Kind.HELLO: {C: G},
    Kind.PAIR: {G: P},
    Kind.BIND: {P: P},
    Kind.UNBIND: {P: P},
    Kind.GET_PFN: {P: P},
    Kind.STAT: {P: P},
    Kind.ATTRIBUTES: {P: P},
    Kind.PING: {G: G, P: P, O: O},
    Kind.BYE: {G: E, P: E, O: E},
    Kind.CHECK: {O: O},
    Kind.MAP: {O: O},
    Kind.LIST: {O: O},
    Kind.KCORE: {O: O},
    Kind.MEMORY_FAILURE: {O: O},
    Kind.DEVICE_ADD: {O: O},
    Kind.DEVICE_REMOVE: {O: O},
    Kind.PAGE_OUT: {O: O},
    Kind.SWAP_OFF: {O: O},
    Kind.INVALIDATE_BEGIN: {UO: UC},
    Kind.INVALIDATE_END: {UC: UO},
    Kind.REPORT: {UO: UO, UC: UC},
    Kind.REVOKE: {UO: E, UC: E},
    Kind.SET_NODE: {O: O},
    Kind.COMPACT: {O: O},
    Kind.MOVE: {UO: UC},
    Kind.SWAP_OUT: {UC: UC},
    Kind.SWAP_IN: {UO: UO, UC: UC},
    Kind.POISON: {},
    Kind.PAGE_MAP: {},
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("kind", Kind)
def test_each_kind_is_legal_in_its_states_and_in_no_other(kind: Kind, state: State) -> None:
    assert next_state(state, kind) == EXPECTED[kind].get(state)


def test_every_state_has_its_row_and_each_can_be_reached() -> None:
    assert set(LEGAL) == set(State)
    reached = {new for row in LEGAL.values() for new in row.values()}
    # OBSERVING comes from HELLO with the role OBSERVER; the channels start in the other two.
    assert reached | {State.CONNECTED, State.OBSERVING, State.UP_OPEN} == set(State)


def test_no_kind_belongs_to_both_channels() -> None:
    down = {kind for state in DOWN for kind in LEGAL[state]}
    up = {kind for state in UP for kind in LEGAL[state]}
    assert not down & up
    assert down >= STORE_OPERATIONS - WITHOUT_MESSAGE
    assert up == KVM_OPERATIONS - WITHOUT_MESSAGE


def test_what_is_legal_somewhere_has_a_body_and_what_is_reserved_is_legal_nowhere() -> None:
    legal = {kind for row in LEGAL.values() for kind in row}
    assert legal == set(REQUESTS)
    assert legal | RESERVED_KINDS | WITHOUT_MESSAGE == set(Kind)
    assert not legal & (RESERVED_KINDS | WITHOUT_MESSAGE)


def test_nothing_follows_the_end() -> None:
    assert not LEGAL[State.ENDED]


def test_invalidations_are_brackets() -> None:
    """R7: each BEGIN has one END, and there is no second BEGIN before it."""
    closing = next_state(State.UP_OPEN, Kind.INVALIDATE_BEGIN)
    assert closing is State.UP_CLOSING
    assert next_state(closing, Kind.INVALIDATE_BEGIN) is None
    assert next_state(closing, Kind.INVALIDATE_END) is State.UP_OPEN
    assert next_state(State.UP_OPEN, Kind.INVALIDATE_END) is None
