"""Values of message bodies, made from their declared types and bounds."""

from enum import IntEnum
from typing import Any

from hypothesis import strategies as st
from msgspec import inspect

from memfsd.uapi.messages import Body

WIDEST = "\U0001f600"
"""A character of four bytes: bounds of texts count characters, those of packets count bytes."""

LONG = 256
"""Bytes that are not drawn one by one."""


def bodies(cls: type[Body]) -> st.SearchStrategy[Any]:
    """Any legal body of this kind."""
    return _any(inspect.type_info(cls))


def largest(cls: type[Body]) -> Any:
    """The legal body that takes most bytes."""
    return _largest(inspect.type_info(cls))


def bounds_of(info: inspect.IntType) -> tuple[int, int]:
    low = info.ge if info.ge is not None else info.gt if info.gt is None else info.gt + 1
    high = info.le if info.le is not None else info.lt if info.lt is None else info.lt - 1
    assert low is not None and high is not None, f"{info} is not bounded on both sides"
    return low, high


def _bound(length: int | None) -> int:
    assert length is not None, "a text or a list of a message has no greatest length"
    return length


def _any(info: inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, *(_any(field.type) for field in fields))
        case inspect.EnumType(cls=cls):
            return st.sampled_from(list(cls))
        case inspect.IntType():
            return st.integers(*bounds_of(info))
        case inspect.StrType(min_length=low, max_length=high):
            return st.text(st.characters(exclude_categories=["Cs"]), min_size=low or 0, max_size=min(_bound(high), 80))
        case inspect.BytesType(min_length=low, max_length=high) if low == high and _bound(low) > LONG:
            return st.integers(0, 255).map(lambda byte: bytes([byte] * _bound(low)))
        case inspect.BytesType(min_length=low, max_length=high):
            return st.binary(min_size=low or 0, max_size=_bound(high))
        case inspect.TupleType(item_types=items):
            return st.tuples(*map(_any, items))
        case inspect.ListType(item_type=item, min_length=low, max_length=high):
            return st.lists(_any(item), min_size=low or 0, max_size=min(_bound(high), 4))
        case inspect.DictType(key_type=key, value_type=value, max_length=high):
            return st.dictionaries(_any(key), _any(value), max_size=min(_bound(high), 4))
    raise AssertionError(f"no strategy for {info}")


def _largest(info: inspect.Type) -> Any:
    match info:
        case inspect.StructType(cls=cls, fields=fields):
            return cls(*(_largest(field.type) for field in fields))
        case inspect.EnumType(cls=cls):
            assert issubclass(cls, IntEnum)
            return max(cls)
        case inspect.IntType():
            return bounds_of(info)[1]
        case inspect.StrType(max_length=high):
            return WIDEST * _bound(high)
        case inspect.BytesType(max_length=high):
            return bytes(_bound(high))
        case inspect.TupleType(item_types=items):
            return tuple(map(_largest, items))
        case inspect.ListType(item_type=item, max_length=high):
            return [_largest(item)] * _bound(high)
        case inspect.DictType(key_type=inspect.StrType(max_length=length), value_type=value, max_length=high):
            return {chr(0x1F600 + n) * _bound(length): _largest(value) for n in range(_bound(high))}
    raise AssertionError(f"no largest value of {info}")
