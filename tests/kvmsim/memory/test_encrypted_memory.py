"""A window of ciphertext: what is read is what was written, what was meddled with is a machine check."""

import fcntl
import itertools
import os
import random
from collections.abc import Iterator

import pytest

import kvmsim.memory.encrypted
from kvmsim.memory.encrypted import EncryptedMemory, MemoryKey
from kvmsim.memory.memory import MachineCheck
from memfsd.common.linux import punch_hole
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import ALTERED, errno_of, page

FRAMES = 16
SECRET = b"the guest's own words"


def window_fd() -> int:
    fd = os.memfd_create("test-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, page(FRAMES))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


OPENED: list[EncryptedMemory] = []
"""By the test that runs."""


def opened(key: MemoryKey | None = None) -> EncryptedMemory:
    OPENED.append((key or MemoryKey()).open_window(window_fd(), FRAMES))
    return OPENED[-1]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


@pytest.fixture
def memory() -> EncryptedMemory:
    return opened()


def raw(memory: EncryptedMemory, frame: int, frame_count: int = 1) -> bytes:
    """What the window's other owners see."""
    return os.pread(memory.fd, page(frame_count), page(frame))


def altered(memory: EncryptedMemory, frame: int) -> bool:
    try:
        memory.read(page(frame), 1)
    except MachineCheck as check:
        return check.at == page(frame)
    return False


def test_a_frame_that_nobody_used_is_zero_and_takes_memory_when_it_is_read(memory: EncryptedMemory) -> None:
    assert memory.read(page(3) + 7, 100) == bytes(100)
    assert memory.populated_count() == 1
    assert raw(memory, 3) != bytes(PAGE_SIZE), "zeros are ciphertext, too"


def test_the_window_holds_no_plaintext_and_every_write_is_another_ciphertext(memory: EncryptedMemory) -> None:
    seen = set()
    for _ in range(3):
        memory.write(page(1) + 100, SECRET)
        seen.add(raw(memory, 1))
    assert memory.read(page(1) + 100, len(SECRET)) == SECRET
    assert len(seen) == 3
    assert not any(SECRET in ciphertext for ciphertext in seen)


def test_random_accesses_are_those_of_a_bytearray(memory: EncryptedMemory) -> None:
    chance, model = random.Random(7), bytearray(page(FRAMES))
    for _ in range(300):
        offset = chance.randrange(len(model))
        length = min(chance.choice((1, 8, 100, PAGE_SIZE, page(3) + 1)), len(model) - offset)
        if chance.random() < 0.5:
            data = chance.randbytes(length)
            memory.write(offset, data)
            model[offset : offset + length] = data
        else:
            assert memory.read(offset, length) == model[offset : offset + length]
    memory.touch(0, FRAMES)
    assert memory.read(0, len(model)) == model


def test_every_altered_bit_is_seen(memory: EncryptedMemory) -> None:
    memory.write(page(2), SECRET)
    for bit in (0, 8 * 2048 + 3, 8 * PAGE_SIZE - 1):
        ciphertext = bytearray(raw(memory, 2))
        ciphertext[bit // 8] ^= 1 << bit % 8
        os.pwrite(memory.fd, ciphertext, page(2))
        assert altered(memory, 2)
        ciphertext[bit // 8] ^= 1 << bit % 8
        os.pwrite(memory.fd, ciphertext, page(2))
        assert not altered(memory, 2)


def test_a_write_of_a_part_and_a_touch_check_the_page_and_a_whole_write_repairs_it(memory: EncryptedMemory) -> None:
    memory.write(page(2), SECRET)
    os.pwrite(memory.fd, ALTERED, page(2) + 999)
    with pytest.raises(MachineCheck):
        memory.write(page(2) + 5, b"part")
    with pytest.raises(MachineCheck):
        memory.touch(page(1), 3)
    memory.write(page(2), b"w" * PAGE_SIZE)
    assert memory.read(page(2), PAGE_SIZE) == b"w" * PAGE_SIZE


def test_ciphertext_of_another_frame_does_not_verify(memory: EncryptedMemory) -> None:
    memory.write(page(2), SECRET)
    memory.write(page(3), SECRET)
    os.pwrite(memory.fd, raw(memory, 2), page(3))
    assert altered(memory, 3)
    assert not altered(memory, 2)


def test_older_ciphertext_does_not_verify(memory: EncryptedMemory) -> None:
    memory.write(page(2), b"balance 100")
    old = raw(memory, 2)
    memory.write(page(2), b"balance 000")
    os.pwrite(memory.fd, old, page(2))
    assert altered(memory, 2)


def test_a_frame_and_its_tag_moved_together_do_not_verify(memory: EncryptedMemory) -> None:
    """What AAD is for: whoever could write the table, too, could still not move a page."""
    memory.write(page(2), SECRET)
    size = kvmsim.memory.encrypted._ENTRY.size
    memory._table[3 * size : 4 * size] = memory._table[2 * size : 3 * size]
    os.pwrite(memory.fd, raw(memory, 2), page(3))
    assert altered(memory, 3)


def test_windows_of_one_vm_are_not_exchanged() -> None:
    key = MemoryKey()
    one, other = opened(key), opened(key)
    one.write(0, SECRET)
    other.write(0, SECRET)
    size = kvmsim.memory.encrypted._ENTRY.size
    other._table[:size] = one._table[:size]
    os.pwrite(other.fd, raw(one, 0), 0)
    assert altered(other, 0)


def test_keys_of_vms_differ() -> None:
    one, other = opened(), opened()
    for memory in (one, other):
        memory.write(0, SECRET)
    assert raw(one, 0) != raw(other, 0)
    os.pwrite(other.fd, raw(one, 0), 0)
    assert altered(other, 0)


def test_a_nonce_never_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not for a frame that was forgotten in between, nor in another window of the VM."""
    key = MemoryKey()
    versions = []
    real = key.seal

    def seal(data: bytes, window: int, frame: int) -> tuple[int, bytes]:
        version, sealed = real(data, window, frame)
        versions.append(version)
        return version, sealed

    monkeypatch.setattr(key, "seal", seal)
    for memory, _ in itertools.product((opened(key), opened(key)), range(2)):
        memory.write(0, SECRET)
        memory.scrub(0, 1)
        memory.read(0, 1)
    assert len(versions) == len(set(versions)) == 8


def test_holes_are_not_zeros_while_the_frame_is_mapped(memory: EncryptedMemory) -> None:
    """A host that punches the window, or writes zeros into it, does not take the guest back to a fresh page."""
    memory.write(page(2), SECRET)
    punch_hole(memory.fd, page(2), PAGE_SIZE)
    assert altered(memory, 2)


def test_a_frame_that_the_store_has_taken_back_is_fresh_and_its_old_ciphertext_is_nothing(
    memory: EncryptedMemory,
) -> None:
    memory.write(page(2), SECRET)
    old = raw(memory, 2)
    memory.forget(2, 1)
    punch_hole(memory.fd, page(2), PAGE_SIZE)
    os.pwrite(memory.fd, old, page(2))
    assert memory.read(page(2), len(SECRET)) == bytes(len(SECRET))


def test_a_scrubbed_frame_is_fresh(memory: EncryptedMemory) -> None:
    memory.write(page(2), SECRET)
    memory.scrub(2, 1)
    assert memory.populated_count() == 0
    assert memory.read(page(2), 4) == bytes(4)


def test_forgetting_forgets_these_frames_and_no_others() -> None:
    """Also where their entries fill whole pages of the table, which are given back."""
    key, frames = MemoryKey(), 2000
    fd = os.memfd_create("test-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, page(frames))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    memory = key.open_window(fd, frames)
    used = (0, 99, 100, 101, 500, 1799, 1800, 1999)
    for frame in used:
        memory.write(page(frame), b"x")
    memory.forget(100, 1700)
    assert [memory.read(page(frame), 1) for frame in used] == [*(b"x", b"x", b"\0", b"\0", b"\0", b"\0", b"x", b"x")]
    memory.close()


def test_an_unmapped_frame_may_be_fresh_if_it_is_a_hole_and_must_verify_if_not(memory: EncryptedMemory) -> None:
    for frame in (2, 3, 4):
        memory.write(page(frame), SECRET)
    memory.unmapped(2, 3)
    punch_hole(memory.fd, page(2), PAGE_SIZE)
    os.pwrite(memory.fd, ALTERED, page(3))
    assert memory.read(page(2), 4) == bytes(4)
    assert altered(memory, 3)
    assert memory.read(page(4), len(SECRET)) == SECRET
    memory.write(page(4), SECRET)
    punch_hole(memory.fd, page(4), PAGE_SIZE)
    assert altered(memory, 4), "the write was of a mapped page"


def test_a_frame_that_was_never_used_is_not_made_doubtful(memory: EncryptedMemory) -> None:
    memory.unmapped(0, FRAMES)
    assert memory.read(0, 4) == bytes(4)
    assert memory.populated_count() == 1


def test_tampering_is_refused_or_seen() -> None:
    seen, refused = opened(MemoryKey()), opened(MemoryKey(refuse=True))
    for memory in (seen, refused):
        memory.write(0, SECRET)
    seen.tamper(10, ALTERED)
    assert altered(seen, 0)
    assert errno_of(refused.tamper, 10, ALTERED) == "EFAULT"
    assert refused.read(0, len(SECRET)) == SECRET
    os.pwrite(refused.fd, ALTERED, 10)
    assert altered(refused, 0), "who goes past the simulated RMP is still seen"


def test_no_room_for_the_table_is_refused_and_the_fd_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoRoom:
        MAP_PRIVATE = MAP_ANONYMOUS = PAGESIZE = MADV_DONTNEED = 0

        @staticmethod
        def mmap(*_: object, **__: object) -> object:
            raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(kvmsim.memory.encrypted, "mmap", NoRoom)
    fd = window_fd()
    assert errno_of(MemoryKey().open_window, fd, FRAMES) == "ENOMEM"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
