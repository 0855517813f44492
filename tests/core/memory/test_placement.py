"""Where mbind(2)'s policies put pages, without a file."""

import pytest

from memfsd.core.memory.nodes import Distances
from memfsd.core.memory.placement import Placement, Policies
from memfsd.uapi.distances import parse_distances
from memfsd.uapi.limits import MAX_POLICIES_PER_FILE
from memfsd.uapi.policy import Policy, parse_policy, parse_ranges
from memfsd.uapi.units import ORDER_2M
from tests.support.core_store import refused

FOUR = Distances(4, parse_distances("10:40:20:30/40:10:20:30/20:20:10:30/30:30:30:10"))


def zonelists(text: str, pages: int = 1, order: int = 0) -> list[tuple[int, ...]]:
    """Where the first pages go."""
    placement = Placement(parse_policy(text), FOUR)
    return [placement.at(page << order, order, 1)[0].nodes for page in range(pages)]


def test_a_node_that_does_not_exist_is_refused() -> None:
    with refused("EINVAL", "node 4 does not exist: there are 0 to 3"):
        Placement(parse_policy("bind:0,4"), FOUR)


def test_where_each_policy_puts_a_page() -> None:
    assert zonelists("local") == [(0, 2, 3, 1)]
    assert zonelists("preferred:3") == [(3, 0, 1, 2)]
    assert zonelists("bind:1,2") == [(2, 1)]
    assert zonelists("preferred-many:1,2") == [(2, 1, 0, 3)]
    assert [nodes[0] for nodes in zonelists("interleave:0,1,3", 7)] == [0, 1, 3, 0, 1, 3, 0]
    assert [nodes[0] for nodes in zonelists("weighted-interleave:0=3,2=1", 9)] == [0, 0, 0, 2, 0, 0, 0, 2, 0]
    assert zonelists("interleave:1")[0] == (1, 2, 3, 0)


def test_large_pages_are_interleaved_by_their_own_number() -> None:
    assert [nodes[0] for nodes in zonelists("interleave:0-1", 4, ORDER_2M)] == [0, 1, 0, 1]


@pytest.mark.parametrize("order", [0, ORDER_2M])
def test_how_many_pages_go_to_the_same_nodes(order: int) -> None:
    placement = Placement(parse_policy("weighted-interleave:0=3,1=1"), FOUR)
    spans = [placement.at(page << order, order, 100 << order)[1] >> order for page in range(5)]
    assert spans == [3, 2, 1, 1, 3]
    assert placement.at(0, order, 2 << order)[1] == 2 << order
    assert Placement(parse_policy("bind:1"), FOUR).at(5, order, 77)[1] == 77
    assert Placement(parse_policy("interleave:1"), FOUR).at(5, order, 77)[1] == 77


def test_ranges_of_a_file_are_set_over_each_other_and_shown() -> None:
    policies = Policies().set(parse_ranges("bind:0", 0), FOUR)
    assert str(policies) == "bind:0"
    policies = policies.set(parse_ranges("interleave:0-1@8192+4096 local@0x4000+1", 0), FOUR)
    assert str(policies).split()[1:4] == [
        "interleave:0-1@0x2000+0x1000",
        "bind:0@0x3000+0x1000",
        "local@0x4000+0x1000",
    ]
    assert str(policies.set(parse_ranges("default", 0), FOUR)) == "default"


def test_where_no_policy_is_set_the_default_holds() -> None:
    policies = Policies().set([(4, 6, Policy(parse_policy("bind:1").mode, (1,)))], FOUR)
    assert policies.at(0, 0, 100) == (None, 4)
    zones, count = policies.at(5, 0, 100)
    assert zones is not None
    assert (zones.nodes, count) == ((1,), 1)
    assert policies.at(6, 0, 100) == (None, 100)


def test_equal_neighbours_are_one_range() -> None:
    policies = Policies().set(parse_ranges("bind:1@0+4096 bind:1@4096+4096", 0), FOUR)
    assert str(policies) == "bind:1@0x0+0x2000"


def test_one_file_has_a_limited_number_of_ranges() -> None:
    text = " ".join(f"bind:{page % 2}@{page << 12}+4096" for page in range(MAX_POLICIES_PER_FILE))
    policies = Policies().set(parse_ranges(text, 0), FOUR)
    assert len(policies) == MAX_POLICIES_PER_FILE
    with refused("ENOMEM", "join some of them"):
        policies.set(parse_ranges("local@0x7ffffff000+4096", 0), FOUR)
    assert len(policies) == MAX_POLICIES_PER_FILE


def test_a_weight_takes_no_room() -> None:
    """255 of 64 nodes each were sixteen thousand entries, for every range."""
    many = Distances(64)
    text = "weighted-interleave:" + ",".join(f"{node}=255" for node in range(64))
    ((_, _, policy),) = parse_ranges(text, 0)
    placement = Placement(policy, many)
    assert len(placement._pattern) == len(placement._ends) == 64
    for page, node, count in ((0, 0, 255), (254, 0, 1), (255, 1, 255), (64 * 255 - 1, 63, 1), (64 * 255, 0, 255)):
        zones, until = placement.at(page, 0, 1000)
        assert (zones.nodes[0], until) == (node, count)


def test_too_many_ranges_are_refused_before_any_is_made() -> None:
    with refused("ENOMEM", "join some of them"):
        Policies().set(parse_ranges("default", 0) * (MAX_POLICIES_PER_FILE + 1), FOUR)
