"""The seals of memfd_create(2), and how seals are added at all."""

import os

import pytest

from memfsd.core.effects import ForgetCache
from memfsd.uapi.seals import ALL_SEALS, Seal
from memfsd.uapi.units import PAGE_SIZE
from tests.support.core_store import KEEP_SIZE, ME, PUNCH, RDONLY, RDWR, WRONLY, CoreStore, errno_of, refused

P = PAGE_SIZE
SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE, GUEST = Seal

ATTEMPTS = ["shrink", "grow", "write inside", "write past the end", "punch", "allocate inside", "allocate past the end"]
EPERM = {
    SEAL: set(),
    SHRINK: {"shrink"},
    GROW: {"grow", "write past the end", "allocate past the end"},
    WRITE: {"write inside", "write past the end", "punch"},
    FUTURE_WRITE: {"write inside", "write past the end", "punch"},
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("seal", EPERM, ids=lambda seal: seal.name)
def test_each_seal_refuses_what_memfd_create_says_and_nothing_else(store: CoreStore, seal: Seal, attempt: str) -> None:
    file = store.make("file")
    handle = store.open(file, WRONLY)
    store.write(handle, 0, b"x" * 2 * P)
    store.seal(file, seal)
    result = errno_of(
        {
            "shrink": lambda: store.resize(file, P),
            "grow": lambda: store.resize(file, 3 * P),
            "write inside": lambda: store.write(handle, 0, b"y"),
            "write past the end": lambda: store.write(handle, 2 * P, b"y"),
            "punch": lambda: store.fallocate(file, PUNCH, 0, P),
            "allocate inside": lambda: store.fallocate(file, 0, 0, P),
            "allocate past the end": lambda: store.fallocate(file, KEEP_SIZE, 0, 3 * P),
        }[attempt]
    )
    assert result == ("EPERM" if attempt in EPERM[seal] else None)


def test_a_refused_change_changes_nothing(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file, WRONLY)
    store.write(handle, 0, b"x" * 2 * P)
    store.seal(file, SHRINK | GROW | WRITE)
    before = file.size, file.block_count, file.mtime_ns
    for call in (
        lambda: store.resize(file, 0),
        lambda: store.resize(file, 9 * P),
        lambda: store.write(handle, 0, b"y"),
        lambda: store.fallocate(file, PUNCH, 0, P),
        lambda: store.fallocate(file, 0, 0, 9 * P),
        lambda: store.open(file, RDWR | os.O_TRUNC),
    ):
        with refused("EPERM"):
            call()
    assert (file.size, file.block_count, file.mtime_ns) == before
    assert store.read(store.open(file, RDONLY), 0, 3 * P) == b"x" * 2 * P


def test_seals_add_up_and_none_is_ever_removed(store: CoreStore) -> None:
    file = store.make("file")
    store.setfattr(file, "seals", "shrink")
    store.setfattr(file, "seals", "grow")
    store.setfattr(file, "seals", "shrink")
    assert store.getfattr(file, "seals") == "shrink,grow"
    with refused("EPERM"):
        store.service.removexattr(file.ino, b"user.memfsd.seals", 1)
    assert file.seals == SHRINK | GROW


def test_after_seal_no_seal_is_added_not_even_one_that_is_there(store: CoreStore) -> None:
    file = store.make("file")
    store.seal(file, SEAL | SHRINK)
    for seals in Seal:
        with refused("EPERM", match="sealed against more seals"):
            store.seal(file, seals)
    assert file.seals == SEAL | SHRINK


@pytest.mark.parametrize("bit", [0x20, 0x40, 0x800, 0x2000, 1 << 31])
def test_a_bit_that_is_no_seal_is_einval(store: CoreStore, bit: int) -> None:
    file = store.make("file")
    with refused("EINVAL"):
        store.seal(file, Seal(bit | SHRINK))
    assert not file.seals


@pytest.mark.parametrize("text", ["", "exec", "shrink,", "shrink truncate", "truncate", "\u0161hrink"])
def test_a_list_of_seals_that_makes_no_sense_is_einval_and_adds_none(store: CoreStore, text: str) -> None:
    file = store.make("file")
    with refused("EINVAL"):
        store.setfattr(file, "seals", text)
    assert not file.seals


def test_write_is_busy_while_any_handle_may_have_a_shared_mapping(store: CoreStore) -> None:
    """Also the one that asks: nobody knows whether it is mapped, or will be."""
    file = store.make("file")
    handle, writer = store.open(file, RDWR), store.open(file, WRONLY)
    for way in ({"own_handle": handle}, {"own_handle": writer}, {}):
        with refused("EBUSY"):
            store.seal(file, WRITE, **way)
        assert not file.seals
    store.close(handle)
    store.seal(file, WRITE, own_handle=writer)
    assert file.seals == WRITE


def test_a_write_seal_drops_what_the_kernel_cached(store: CoreStore) -> None:
    """A page pinned through a mapping that is gone could change there, for every reader."""
    file = store.make("file")
    assert store.service.add_seals(file.ino, WRITE, 1) == [ForgetCache(file.ino)]
    assert store.service.add_seals(file.ino, WRITE | SHRINK, 1) == []


def test_handles_that_can_not_map_shared_writable_do_not_hinder_a_write_seal(store: CoreStore) -> None:
    file = store.make("file")
    store.open(file, RDONLY)
    store.open(file, WRONLY)
    store.seal(file, WRITE)


def test_future_write_goes_beside_mappings(store: CoreStore) -> None:
    file = store.make("file")
    store.open(file, RDWR)
    store.seal(file, FUTURE_WRITE)


def test_a_read_write_handle_opened_after_future_write_does_not_hinder_a_write_seal(store: CoreStore) -> None:
    file = store.make("file")
    before = store.open(file, RDWR)
    store.seal(file, FUTURE_WRITE)
    after = store.open(file, RDWR)
    with refused("EBUSY"):
        store.seal(file, WRITE)
    store.close(before)
    store.seal(file, WRITE)
    store.close(after)
    assert (file.readers, file.mappable_writers) == (0, 0)


def test_seals_through_a_handle_need_one_that_writes(store: CoreStore) -> None:
    """As fcntl(2): F_ADD_SEALS on a read-only descriptor is EPERM."""
    file = store.make("file")
    with refused("EPERM"):
        store.seal(file, SHRINK, own_handle=store.open(file, RDONLY))
    store.seal(file, SHRINK, own_handle=store.open(file, WRONLY))


def test_only_regular_files_have_seals(store: CoreStore) -> None:
    with refused("EISDIR"):
        store.service.add_seals(store.mkdir("dir"), SHRINK, 1)
    link = store.service.symlink(1, b"link", b"x", ME, 1)
    with refused("EINVAL"):
        store.service.add_seals(link.ino, SHRINK, 1)


def test_all_at_once(store: CoreStore) -> None:
    file = store.make("file")
    store.seal(file, ALL_SEALS)
    assert store.getfattr(file, "seals") == "seal,shrink,grow,write,future-write,guest"
    assert file.guest is not None
