"""Tables of distances as the mount option says them."""

import pytest

from memfsd.uapi.distances import check_distances, format_distances, parse_distances
from tests.support.core_store import refused


def test_a_table_is_written_as_it_is_read() -> None:
    assert format_distances(parse_distances("10:21/22:10")) == "10:21/22:10"
    assert parse_distances("10") == ((10,),)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no row of numbers"),
        ("ten:20/20:10", "no row of numbers"),
        ("10:-1/20:10", "no row of numbers"),
        ("10:9999/20:10", "no row of numbers"),
        ("10:٢٠/20:10", "no row of numbers"),
        ("10:20/20", "row 1 has 1 of 2 distances"),
        ("10:20:30/20:10:30", "row 0 has 3 of 2 distances"),
        ("11:20/20:10", "node 0 is 11 from itself"),
        ("10:20/20:0", "node 1 is 0 from itself"),
        ("10:10/20:10", "node 0 is 10 from node 1: choose 11 to 254"),
        ("10:20/9:10", "node 1 is 9 from node 0"),
        ("10:255/20:10", "node 0 is 255 from node 1"),
    ],
)
def test_what_is_no_table_of_distances_is_refused(text: str, why: str) -> None:
    with refused("EINVAL", why):
        parse_distances(text)


def test_a_table_is_of_all_nodes_or_the_default() -> None:
    check_distances((), 7)
    check_distances(((10,),), 1)
    with refused("EINVAL", "a table of 1 nodes and nodes= is 2"):
        check_distances(((10,),), 2)
