"""Memory that fails: of a sealed file, of an ordinary one, and memory that the kernel does not take back."""

import errno
import os
from typing import Any

import pytest

from memfsd.core.effects import Runs
from memfsd.core.files.inodes import Regular
from memfsd.core.private.absent import Lost
from memfsd.store.peer import PeerRefused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import Body, InvalidateBegin, Kind
from memfsd.uapi.units import PAGE_SIZE, Gfn, Ino, Pgoff
from tests.support.core_store import KEEP_SIZE, PUNCH, CoreStore, refused

P = PAGE_SIZE
POISONED, LEAKED = FrameState.POISONED, FrameState.LEAKED


def poison(store: CoreStore, ino: Ino, pgoff: int) -> tuple[int, int]:
    reply = store.store.failures.poison(ino, pgoff)
    return reply.pfn, reply.page_count


# -- sealed files


def test_a_private_page_fails_alone_until_it_is_punched(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 8)
    frames = [store.fault(file, pgoff).pfn for pgoff in range(4)]
    assert poison(store, file.ino, 2) == (frames[2], 1)
    with refused("EHWPOISON"):
        store.fault(file, 2)
    assert [store.fault(file, pgoff).pfn for pgoff in (0, 1, 3)] == [frames[0], frames[1], frames[3]]
    store.fallocate(file, PUNCH, 2 * P, P)
    assert store.fault(file, 2).pfn not in frames
    assert store.pool.count(POISONED) == 1
    assert "poisoned=1 " in store.getfattr(store.service.inodes.get(Ino(1)), "pool")  # type: ignore[arg-type]
    assert store.audit() == []


def test_the_vm_acknowledges_before_the_contents_go(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 8)
    pfn = store.fault(file, 2).pfn
    seq = guest.seq
    poison(store, file.ino, 2)
    assert guest.seq == seq + 1
    assert (file.ino, pfn) not in store.memory


def test_a_large_frame_fails_whole() -> None:
    store = CoreStore(3 * 512)
    file = store.guest_file("file")
    store.setfattr(file, "page_size", "2M")
    store.resize(file, 1024 * P)
    store.fallocate(file, KEEP_SIZE, 0, 1024 * P)
    first = file.pages.lookup(512)
    assert poison(store, file.ino, 700) == (first, 512)
    assert file.guest is not None
    assert list(file.guest.absent.runs(0, 1024)) == [(512, 1024, Lost.POISONED)]
    assert store.pool.count(POISONED) == 512
    store.fallocate(file, PUNCH, 512 * P, 512 * P)
    store.fallocate(file, KEEP_SIZE, 0, 1024 * P)
    assert store.audit() == []


def split_store() -> tuple[CoreStore, Regular]:
    """Two large pages, which a VM has."""
    store = CoreStore(3 * 512, split=True)
    file = store.guest_file("file")
    store.setfattr(file, "page_size", "2M")
    store.resize(file, 1024 * P)
    store.fallocate(file, KEEP_SIZE, 0, 1024 * P)
    store.pair(file)
    store.gmem.bind(file, 1, Gfn(0), Pgoff(0), 1024)
    return store, file


def test_with_split_on_one_small_frame_fails_also_of_a_large_page() -> None:
    store, file = split_store()
    failed = file.pages.lookup(600)
    assert poison(store, file.ino, 600) == (failed, 1)
    assert store.pool.count(POISONED) == 1
    assert [store.fault(file, pgoff).order for pgoff in (3, 601)] == [9, 0]
    store.fallocate(file, PUNCH, 600 * P, P)
    assert store.fault(file, 600).pfn != failed
    assert store.audit() == []


def test_a_vm_that_cannot_split_its_mapping_loses_the_large_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A punch is refused then; memory that has failed cannot stay."""
    store, file = split_store()
    call = store.vm_of(file).call

    def refuses_to_split(kind: Kind, body: Body, reply: type[Any]) -> Any:
        if isinstance(body, InvalidateBegin) and body.end - body.start < 512:
            raise PeerRefused(errno.ENOMEM, "no table is left")
        return call(kind, body, reply)

    monkeypatch.setattr(store.vm_of(file), "call", refuses_to_split)
    with refused("ENOMEM"):
        store.fallocate(file, PUNCH, 600 * P, P)
    first = file.pages.lookup(512)
    assert poison(store, file.ino, 600) == (first, 512)
    assert store.pool.count(POISONED) == 512
    assert store.audit() == []


def test_what_cannot_fail_is_refused_and_changes_nothing(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 8)
    ordinary = store.make("ordinary")
    store.write(store.open(ordinary), 0, b"x")
    store.resize(ordinary, 3 * P)
    store.fault(file, 1)
    poison(store, file.ino, 1)
    poison(store, ordinary.ino, 0)
    for ino, pgoff, name in (
        (file.ino, 0, "ENXIO"),
        (file.ino, 8, "EINVAL"),
        (file.ino, 1, "EHWPOISON"),
        (ordinary.ino, 1, "ENXIO"),
        (ordinary.ino, 3, "EINVAL"),
        (ordinary.ino, 0, "EHWPOISON"),
        (Ino(1), 0, "EISDIR"),
        (Ino(99), 0, "ESTALE"),
    ):
        with refused(name):
            poison(store, ino, pgoff)
    assert (list(guest.absent.runs(0, 8)), ordinary.failed) == ([(1, 2, Lost.POISONED)], frozenset({0}))
    assert store.pool.count(POISONED) == 2
    assert store.audit() == []


# -- ordinary files


def test_an_ordinary_page_is_eio_until_it_is_punched(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 0, b"0" * P + b"1" * P + b"2" * P)
    blocks = file.block_count
    pfn, _ = poison(store, file.ino, 1)
    assert store.forgotten == [file.ino], "the kernel forgets what it has cached"
    assert (None, pfn) not in store.memory
    assert store.read(handle, 0, P) == b"0" * P
    assert store.read(handle, 2 * P, P) == b"2" * P
    for offset, size in ((P, 1), (0, P + 1), (2 * P - 1, 2)):
        with refused("EIO"):
            store.read(handle, offset, size)
    with refused("EIO"):
        store.write(handle, P + 7, b"again")
    assert store.write(handle, P - 2, b"xyz") == 2, "up to the page"
    store.fallocate(file, 0, 0, 4 * P)
    with refused("EIO"):
        store.read(handle, P, 1)
    assert store.seek(file, P, os.SEEK_DATA) == P, "no copy may take it for a hole"
    assert store.seek(file, 0, os.SEEK_HOLE) == 4 * P
    assert file.block_count == blocks + 8
    store.fallocate(file, PUNCH, P, P)
    assert store.read(handle, P, P) == bytes(P)
    assert store.write(handle, P, b"again") == 5
    assert store.pool.count(POISONED) == 1
    assert store.audit() == []


@pytest.mark.parametrize("size", [0, P])
def test_a_truncate_forgets_a_page_that_failed(store: CoreStore, size: int) -> None:
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 0, b"x" * 3 * P)
    poison(store, file.ino, 1)
    store.resize(file, P + 1)
    with refused("EIO"):
        store.read(handle, P, 1)
    store.resize(file, size)
    store.resize(file, 3 * P)
    assert store.read(handle, P, 2 * P) == bytes(2 * P)
    assert file.failed == frozenset()


def test_a_file_that_goes_leaves_its_failed_frames_out_of_service(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 0, b"x" * 3 * P)
    poison(store, file.ino, 1)
    store.close(handle)
    store.unlink("file")
    assert store.pool.free_count == store.pool.frame_count - 1
    with refused("ENOSPC"):
        store.pool.alloc(store.pool.frame_count, FrameState.SHARED)


# -- memory that the kernel does not take back


def test_a_frame_whose_memory_cannot_be_given_back_is_leaked(
    store: CoreStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, _ = store.bound_file("file", 8)
    leaked = store.fault(file, 2).pfn
    good = store.fault(file, 5).pfn

    def fails(window: Ino | None, runs: Runs) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(store.windows, "punch", fails)
        store.fallocate(file, PUNCH, 2 * P, P)
    assert "1 frames cannot be given back" in caplog.text
    assert store.pool.state(leaked) is LEAKED
    store.fallocate(file, PUNCH, 5 * P, P)
    assert store.pool.state(good) is FrameState.FREE
    assert store.audit() == []
    assert store.fault(file, 2).pfn != leaked
    store.release_guest(file)
    assert store.pool.free_count == store.pool.frame_count - 1
    assert "leaked=1" in store.getfattr(store.service.inodes.get(Ino(1)), "pool")  # type: ignore[arg-type]
    assert store.getfattr(file, "frames").endswith(" punched=2 leaked=1 populated=0")
    caplog.clear()
