"""Policies as they are written, and sets of nodes as the kernel prints them."""

import pytest

from memfsd.uapi.policy import format_nodes, parse_nodes, parse_policy, parse_ranges
from memfsd.uapi.units import ORDER_2M, PGOFF_END
from tests.support.core_store import refused


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("default", "default"),
        ("local", "local"),
        ("bind:1,0", "bind:0-1"),
        ("preferred:2", "preferred:2"),
        ("preferred:3,1", "preferred:1"),
        ("preferred", "local"),
        ("preferred:", "local"),
        ("preferred-many:0,2", "preferred-many:0,2"),
        ("interleave:0-3", "interleave:0-3"),
        ("weighted-interleave:1=2,0=255", "weighted-interleave:0=255,1=2"),
        ("weighted-interleave:0-1,3=2", "weighted-interleave:0=1,1=1,3=2"),
    ],
)
def test_a_policy_is_read_and_shown(text: str, shown: str) -> None:
    assert str(parse_policy(text)) == shown
    assert parse_policy(shown) == parse_policy(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is not a policy: choose default, local, bind"),
        ("MPOL_BIND", "is not a policy"),
        ("bind", "empty set of nodes"),
        ("bind:", "empty set of nodes"),
        ("preferred-many", "empty set of nodes"),
        ("interleave:", "empty set of nodes"),
        ("default:0", "takes no nodes"),
        ("default:", "empty set"),
        ("local:1", "takes no nodes"),
        ("bind:x", "is not a set of nodes"),
        ("interleave:0=2", "is not a set of nodes"),
        ("weighted-interleave:0=0", "a weight is 1 to 255"),
        ("weighted-interleave:0=256", "a weight is 1 to 255"),
        ("weighted-interleave:0=", "a weight is 1 to 255"),
        ("weighted-interleave:=1", "is not a set of nodes"),
    ],
)
def test_what_mbind_refuses_is_refused(text: str, why: str) -> None:
    with refused("EINVAL", why):
        parse_policy(text)


@pytest.mark.parametrize(
    ("text", "order", "why"),
    [
        ("", 0, "no policy was given"),
        ("bind:1@1+4096", 0, "multiples of 4096"),
        ("bind:1@0+4096", ORDER_2M, "multiples of 2097152"),
        ("bind:1@4096+2097152", ORDER_2M, "multiples of 2097152"),
        ("bind:1@0", 0, "not a number of bytes"),
        ("bind:1@-4096+4096", 0, "not a number of bytes"),
        ("bind:1@x+4096", 0, "not a number of bytes"),
        ("bind:1@0+", 0, "not a number of bytes"),
        ("bind:1@4096+9223372036854775807", 0, "ends past 2"),
        ("bind:1@0+4096 oops@0+4096", 0, "'oops' is not a policy"),
    ],
)
def test_ranges_that_are_none(text: str, order: int, why: str) -> None:
    with refused("EINVAL", why):
        parse_ranges(text, order)


def test_a_length_of_zero_changes_nothing_and_the_whole_file_may_be_named() -> None:
    assert parse_ranges("bind:1@4096+0", 0) == []
    ((start, end, _),) = parse_ranges("bind:1@0+9223372036854775808", 0)
    assert (start, end) == (0, PGOFF_END)


@pytest.mark.parametrize(
    ("text", "nodes", "shown"),
    [("0", (0,), "0"), ("2,0,1", (0, 1, 2), "0-2"), ("0-1,5,7-8", (0, 1, 5, 7, 8), "0-1,5,7-8")],
)
def test_sets_of_nodes(text: str, nodes: tuple[int, ...], shown: str) -> None:
    assert parse_nodes(text) == nodes
    assert format_nodes(nodes) == shown


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "2-1", "0,,1", "0-9999", "٣", "0-1-2"])
def test_what_is_no_set_of_nodes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a set of nodes"):
        parse_nodes(text)
