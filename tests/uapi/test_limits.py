"""Limits fit to one another, and what is legal fits in a packet."""

import pytest
from msgspec import inspect

from memfsd.uapi import limits
from memfsd.uapi.framing import encode_failure, encode_reply, encode_request
from memfsd.uapi.messages import KVM_OPERATIONS, REPLIES, REQUESTS, STORE_OPERATIONS, WITHOUT_MESSAGE, Kind
from memfsd.uapi.units import PAGE_SHIFT
from tests.support.bodies import WIDEST, bounds_of, largest


@pytest.mark.parametrize("kind", sorted(REQUESTS), ids=lambda kind: kind.name)
def test_the_largest_legal_message_fits_in_a_packet(kind: Kind) -> None:
    """Framing asserts the size: a legal message that did not fit would end its session."""
    top = (1 << 32) - 1
    assert len(encode_request(top, kind, largest(REQUESTS[kind]))) <= limits.MAX_PACKET_BYTES
    assert len(encode_reply(top, kind, largest(REPLIES[kind]))) <= limits.MAX_PACKET_BYTES
    assert len(encode_failure(top, kind, 1, WIDEST * 4096)) <= limits.MAX_PACKET_BYTES


def _integers(info: inspect.Type) -> list[inspect.IntType]:
    match info:
        case inspect.IntType():
            return [info]
        case inspect.StructType(fields=fields):
            return [found for field in fields for found in _integers(field.type)]
        case inspect.ListType(item_type=item):
            return _integers(item)
        case inspect.TupleType(item_types=items):
            return [found for item in items for found in _integers(item)]
        case inspect.DictType(value_type=value):
            return _integers(value)
    return []


def _lengths(info: inspect.Type) -> list[int | None]:
    match info:
        case inspect.StructType(fields=fields):
            return [found for field in fields for found in _lengths(field.type)]
        case inspect.StrType(max_length=high) | inspect.BytesType(max_length=high):
            return [high]
        case inspect.ListType(item_type=item, max_length=high):
            return [high, *_lengths(item)]
        case inspect.TupleType(item_types=items):
            return [found for item in items for found in _lengths(item)]
        case inspect.DictType(key_type=key, value_type=value, max_length=high):
            return [high, *_lengths(key), *_lengths(value)]
    return []


@pytest.mark.parametrize("kind", sorted(REQUESTS), ids=lambda kind: kind.name)
def test_every_field_is_bounded(kind: Kind) -> None:
    for cls in (REQUESTS[kind], REPLIES[kind]):
        info = inspect.type_info(cls)
        assert all(low <= high for low, high in map(bounds_of, _integers(info)))
        assert None not in _lengths(info), cls


def test_the_operation_tables_fit_in_a_greeting() -> None:
    assert len(STORE_OPERATIONS) <= 64
    assert len(KVM_OPERATIONS) <= 64
    assert STORE_OPERATIONS & KVM_OPERATIONS == WITHOUT_MESSAGE


def test_frame_numbers_have_32_bits_with_one_value_spare() -> None:
    last_frame = (limits.MAX_POOL_BYTES >> PAGE_SHIFT) - 1
    assert last_frame + 1 < 1 << 32


def test_the_page_numbers_of_the_largest_file_are_legal_on_the_wire() -> None:
    assert limits.MAX_FILE_BYTES >> PAGE_SHIFT < 1 << 51


def test_who_waits_for_a_waiter_is_more_patient() -> None:
    """A grant may wait for an acknowledgement, and that for a bracket: the outer deadline is the longer one."""
    assert limits.ACK_DEADLINE_S < limits.BRACKET_DEADLINE_S < limits.ANSWER_DEADLINE_S
    assert limits.PROOF_DEADLINE_S < limits.ANSWER_DEADLINE_S


def test_a_check_holds_brackets_for_less_than_an_invalidation_waits_for_one() -> None:
    held_s = limits.CHECK_BRACKETS_DEADLINE_S + limits.CHECK_REPORTS_DEADLINE_S + limits.ACK_DEADLINE_S
    assert held_s < limits.BRACKET_DEADLINE_S
    assert limits.CHECK_TURN_DEADLINE_S + held_s < limits.ANSWER_DEADLINE_S, "who asked for the check still listens"
    assert limits.CHECK_BRACKETS_DEADLINE_S > limits.ACK_DEADLINE_S, "one silent VM is no endless bracket"


def test_no_user_can_take_all_connections() -> None:
    assert limits.MAX_UNPAIRED_PER_UID < limits.MAX_CONNECTIONS_PER_UID < limits.MAX_CONNECTIONS


def test_the_largest_packet_fits_in_a_record_of_a_journal() -> None:
    """A byte of a text is six in JSON at most."""
    assert limits.MAX_RECORD_BYTES > 6 * limits.MAX_PACKET_BYTES
    assert limits.MAX_JOURNAL_BYTES > 100 * limits.MAX_RECORD_BYTES


def test_a_slot_number_and_a_vms_slots_are_kvms() -> None:
    assert limits.MAX_SLOTS == 32764
    assert limits.MAX_BINDINGS_PER_FILE >= limits.MAX_SLOTS
