"""Bytes to requests and back: what is whole, what is wrong, and what is too much."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmsim.instruments.monitor.protocol import Framer, Request, event, failure, greeting, parse_request, success
from memfsd.common.qmp import NO_ID, QmpError
from memfsd.uapi.limits import MAX_QMP_DEPTH, MAX_QMP_MESSAGE_BYTES

STATUS = b'{"execute": "query-status"}'


@pytest.mark.parametrize(
    "data",
    [
        STATUS,
        STATUS + b"\n",
        b"\r\n \t" + STATUS + b"\r\n",
        b'{\n  "execute": "query-status"\n}\n',
        b'{"execute": "query-st' + b"\xff" + STATUS,
        b"\xff\xff" + STATUS,
    ],
    ids=["no line end", "line", "blanks", "many lines", "after a reset", "resets"],
)
def test_a_message_is_whole_with_its_last_brace(data: bytes) -> None:
    assert [parse_request(message) for message in whole(Framer(), data)] == [Request("query-status", {}, NO_ID)]


def whole(framer: Framer, data: bytes) -> list[bytes]:
    found = framer.feed(data)
    assert all(isinstance(message, bytes) for message in found), found
    return [message for message in found if isinstance(message, bytes)]


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(TEXT | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner))


@settings(max_examples=30)
@given(st.lists(JSON), st.lists(st.integers(1, 50)))
def test_messages_come_out_whole_however_they_are_cut(values: list[object], cuts: list[int]) -> None:
    sent = [{"execute": value} for value in values]
    data = b"".join(json.dumps(message, ensure_ascii=False).encode() for message in sent)
    framer, found, at = Framer(), list[bytes](), 0
    for cut in [*cuts, len(data)]:
        found += whole(framer, data[at : at + cut])
        at += cut
    assert [json.loads(message) for message in found] == sent


def test_what_is_no_message_is_one_error_a_line_and_the_next_line_counts() -> None:
    framer = Framer()
    found = framer.feed(b"GET / HTTP/1.1\nHost: x\n" + STATUS)
    assert [type(message) for message in found] == [QmpError, QmpError, bytes]
    assert framer.feed(b"]}") and not framer.is_over


def test_too_long_is_over() -> None:
    for part in (b'{"a": "' + b"x" * 65536, b"x" * 65536):
        framer, fed = Framer(), 0
        while not framer.is_over:
            framer.feed(part)
            fed += len(part)
            assert fed <= MAX_QMP_MESSAGE_BYTES + 2 * 65600
        assert len(framer._buffer) <= MAX_QMP_MESSAGE_BYTES + 65600


def test_too_deep_is_over() -> None:
    framer = Framer()
    (error,) = framer.feed(b"[" * (MAX_QMP_DEPTH + 1))
    assert isinstance(error, QmpError) and "deeper than 64" in error.description
    assert framer.is_over


@pytest.mark.parametrize(
    ("message", "description"),
    [
        (b"[]", "QMP input must be a JSON object"),
        (b'{"id": 1}', "QMP input lacks member 'execute'"),
        (b'{"execute": 5, "id": 1}', "QMP input member 'execute' must be a string"),
        (b'{"execute": "a", "arguments": [], "id": 1}', "QMP input member 'arguments' must be an object"),
        (b'{"execute": "a", "more": 1, "id": 1}', "QMP input member 'more' is unexpected"),
        (b'{"execute": }', "JSON parse error, "),
        (b'{"execute": "\xc3\x28"}', "JSON parse error, "),
    ],
)
def test_a_request_that_is_none_says_why_with_its_id(message: bytes, description: str) -> None:
    with pytest.raises(QmpError) as caught:
        parse_request(message)
    assert caught.value.description.startswith(description)
    assert caught.value.class_ == "GenericError"
    assert caught.value.id == (1 if b'"id"' in message else NO_ID)


def test_answers_and_events_have_qemus_shape() -> None:
    assert json.loads(greeting())["QMP"]["version"]["qemu"].keys() == {"major", "minor", "micro"}
    assert json.loads(success({}, "x")) == {"return": {}, "id": "x"}
    assert json.loads(success([], NO_ID)) == {"return": []}
    assert json.loads(success([], None)) == {"return": [], "id": None}
    assert json.loads(failure(QmpError("no", "CommandNotFound"), 7)) == {
        "error": {"class": "CommandNotFound", "desc": "no"},
        "id": 7,
    }
    assert json.loads(event("STOP", {}, 1_500_000_000)) == {
        "timestamp": {"seconds": 1, "microseconds": 500000},
        "event": "STOP",
    }
