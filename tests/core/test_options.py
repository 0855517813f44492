"""The store's mount options, one by one."""

import pytest

from memfsd.core.options import NAMES, Atime, StoreOptions, check_options, with_option
from memfsd.uapi.abi import GMEM_6_18, THREAD
from memfsd.uapi.limits import MAX_INODES, MAX_NODES, MAX_POOL_BYTES
from tests.support.core_store import refused

defaults = StoreOptions()


def test_the_defaults_are_the_strict_ones() -> None:
    assert defaults == StoreOptions(
        pool_bytes=1 << 30,
        inode_count=1 << 18,
        nodes=1,
        distances=(),
        born_guest=False,
        resize_any=False,
        truncate_nonempty=False,
        open_rw=False,
        fixed_gfn=None,
        split=False,
        atime=Atime.RELATIVE,
        diratime=True,
        abi=THREAD,
    )


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("size", "64M", "pool_bytes", 64 << 20),
        ("size", "4K", "pool_bytes", 4096),
        ("size", "8191", "pool_bytes", 4096),
        ("size", str(MAX_POOL_BYTES), "pool_bytes", MAX_POOL_BYTES),
        ("nr_inodes", "1", "inode_count", 1),
        ("nr_inodes", "2K", "inode_count", 2048),
        ("nr_inodes", "4M", "inode_count", MAX_INODES),
        ("nodes", "4", "nodes", 4),
        ("nodes", str(MAX_NODES), "nodes", MAX_NODES),
        ("distances", "10:21/22:10", "distances", ((10, 21), (22, 10))),
        ("guest", None, "born_guest", True),
        ("noatime", None, "atime", Atime.NEVER),
        ("relatime", None, "atime", Atime.RELATIVE),
        ("strictatime", None, "atime", Atime.ALWAYS),
        ("atime", None, "atime", Atime.RELATIVE),
        ("nodiratime", None, "diratime", False),
        ("diratime", None, "diratime", True),
        ("resize", "any", "resize_any", True),
        ("resize", "once", "resize_any", False),
        ("seal_nonempty", "truncate", "truncate_nonempty", True),
        ("seal_nonempty", "refuse", "truncate_nonempty", False),
        ("open", "rw", "open_rw", True),
        ("open", "strict", "open_rw", False),
        ("split", "on", "split", True),
        ("split", "off", "split", False),
        ("fixed_gfn", "off", "fixed_gfn", False),
        ("fixed_gfn", "0", "fixed_gfn", False),
        ("fixed_gfn", "on", "fixed_gfn", True),
        ("fixed_gfn", "1", "fixed_gfn", True),
        ("abi", "thread", "abi", THREAD),
        ("abi", "gmem-6.18", "abi", GMEM_6_18),
    ],
)
def test_an_option_changes_its_field_alone(name: str, value: str | None, field: str, expected: object) -> None:
    changed = with_option(defaults, name, value)
    assert getattr(changed, field) == expected
    others = [other for other in StoreOptions.__slots__ if other != field]
    assert [getattr(changed, other) for other in others] == [getattr(defaults, other) for other in others]


def test_the_last_one_wins() -> None:
    assert with_option(with_option(defaults, "open", "rw"), "open", "strict") == defaults


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", ""),
        ("size", None),
        ("size", "0"),
        ("size", "4095"),
        ("size", str(MAX_POOL_BYTES + 1)),
        ("size", "lots"),
        ("size", "-1"),
        ("nr_inodes", "0"),
        ("nr_inodes", str(MAX_INODES + 1)),
        ("nr_inodes", "many"),
        ("nr_inodes", None),
        ("nodes", "0"),
        ("nodes", str(MAX_NODES + 1)),
        ("nodes", "two"),
        ("nodes", "\u0662"),
        ("nodes", None),
        ("guest", "yes"),
        ("guest", ""),
        ("resize", "often"),
        ("resize", None),
        ("seal_nonempty", "keep"),
        ("open", "ro"),
        ("open", ""),
        ("fixed_gfn", "maybe"),
        ("abi", "gmem"),
        ("abi", None),
    ],
)
def test_a_value_that_makes_no_sense_is_einval_and_names_option_and_choices(name: str, value: str | None) -> None:
    with refused("EINVAL", match=name):
        with_option(defaults, name, value)


def test_all_options_of_the_contract_exist() -> None:
    times = {"atime", "noatime", "relatime", "norelatime", "strictatime", "nostrictatime", "diratime", "nodiratime"}
    own = {"size", "nr_inodes", "nodes", "distances", "guest", "resize", "seal_nonempty", "open", "split", "fixed_gfn"}
    assert set(NAMES) == own | times | {"abi"}


@pytest.mark.parametrize(
    ("name", "value"), [("guest", None), ("resize", "any"), ("seal_nonempty", "truncate"), ("open", "rw")]
)
def test_options_of_sealed_files_do_not_go_with_guest_memfds(name: str, value: str | None) -> None:
    options = with_option(with_option(StoreOptions(), name, value), "abi", "gmem-7.2")
    with refused("EINVAL", match=f"{name}.* is about sealed files, which a mount with abi=gmem-7.2 has not"):
        check_options(options)
    check_options(with_option(options, "abi", "thread"))
