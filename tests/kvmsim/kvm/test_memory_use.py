"""What memory costs the host: what the kernel has memory for, in either alias, and in both."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore
from tests.support.script_lines import Lines

P = PAGE_SIZE


@pytest.fixture
def use(store: LocalStore) -> Iterator[Lines]:
    """A VM with a private slot of 64 KiB at 0."""
    store.create("file", 16)
    lines = Lines(store=store)
    lines.ok(f"slot set 0 private gpa=0 size=64K file={store.path('file')}")
    yield lines
    lines.executor.close()


def memory(lines: Lines) -> dict[str, int]:
    info = lines.ok("info memory").info
    assert isinstance(info, dict)
    return info


def test_a_slot_made_by_hand_over_private_memory_is_held_twice(use: Lines) -> None:
    """QEMU's users: a shared backend of RAM and a guest_memfd, and both are populated."""
    use.ok("slot set 1 shared gpa=0 size=64K", "touch 0 16K", "touch 8K 16K shared")
    info = memory(use)
    assert (info["private_populated"], info["shared_populated"], info["doubled"]) == (4 * P, 4 * P, 2 * P)
    text = use.ok("info memory").text
    assert text is not None and "warning: 0x2000: 8K are held twice, private and shared" in text


def test_a_punch_of_the_slot_ends_it(use: Lines) -> None:
    use.ok("slot set 1 shared gpa=0 size=64K", "touch 0 16K", "touch 8K 16K shared", "slot punch 0 gpa=8K size=8K")
    info = memory(use)
    assert (info["doubled"], info["punched"], info["private_populated"]) == (0, 2 * P, 2 * P)


def test_what_readahead_has_mapped_and_nobody_touched_is_not_held(use: Lines) -> None:
    use.ok("slot set 1 shared gpa=0 size=64K", *(f"touch {page * P} 4K" for page in range(5)), "touch 0 64K shared")
    info = memory(use)
    assert info["private_mapped"] > 5 * P, "readahead has run ahead of the guest"
    assert info["doubled"] == info["private_populated"] == 5 * P


def test_files_count_where_they_hold_memory_and_one_whose_daemon_is_gone_holds_none(
    use: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.touch()
    os.truncate(shared, 16 * P)
    use.ok(f"slot set 1 shared gpa=0 size=64K file={shared}", "touch 0 16K", 'write 4K "x" shared')
    info = memory(use)
    assert (info["shared_populated"], info["doubled"]) == (P, P)

    def gone(*_: object) -> list[tuple[int, int]]:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr("kvmsim.memory.memory.FileMemory.populated", gone)
    info = memory(use)
    assert (info["shared_populated"], info["doubled"]) == (0, 0)


def test_an_overlay_that_keeps_what_is_under_it_holds_it_twice(use: Lines) -> None:
    use.ok("policy overlay", "touch 0 16K", 'write 4K "x" shared')
    assert memory(use)["doubled"] == P
    use.ok("policy overlay under=freed", 'write 8K "x" shared')
    assert memory(use)["doubled"] == P, "the second page was given back"
