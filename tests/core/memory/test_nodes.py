"""Distances, as firmware would give them."""

from memfsd.core.memory.nodes import Distances
from memfsd.uapi.distances import parse_distances
from tests.support.core_store import refused


def test_without_a_table_all_others_are_as_far() -> None:
    table = Distances(3)
    assert table.rows == ((10, 20, 20), (20, 10, 20), (20, 20, 10))
    assert [table.zonelist(node) for node in range(3)] == [(0, 1, 2), (1, 0, 2), (2, 0, 1)]


def test_the_nearest_goes_first_and_the_table_need_not_be_symmetric() -> None:
    table = Distances(3, parse_distances("10:40:15/11:10:12/20:20:10"))
    assert [table.zonelist(node) for node in range(3)] == [(0, 2, 1), (1, 0, 2), (2, 0, 1)]
    assert table.nearest(1, (0, 2)) == (0, 2)
    assert table.nearest(0, (1, 2)) == (2, 1)


def test_a_table_of_another_number_of_nodes_is_refused() -> None:
    with refused("EINVAL", "a table of 2 nodes and nodes= is 3"):
        Distances(3, parse_distances("10:20/20:10"))
