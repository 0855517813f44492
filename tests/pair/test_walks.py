"""docs/architecture.md follows a fault and a punch through the files that they really go through, and these are few."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.support.both_sides import LocalStore, opened_store, page

ROOT = Path(__file__).parents[2]
DATA_STRUCTURES = {
    "kvmsim/kvm/export.py",
    "kvmsim/kvm/mmu/blocked.py",
    "kvmsim/kvm/mmu/eptentry.py",
    "kvmsim/kvm/mmu/epttables.py",
    "kvmsim/kvm/mmu/runs.py",
    "kvmsim/kvm/mmu/tlb.py",
    "kvmsim/kvm/slots/memslots.py",
    "kvmsim/memory/memory.py",
    "kvmsim/store/page_map.py",
    "memfsd/common/intervals.py",
    "memfsd/common/linux.py",
    "memfsd/core/effects.py",
    "memfsd/core/files/inodes.py",
    "memfsd/core/memory/buddy.py",
    "memfsd/core/memory/frames.py",
    "memfsd/core/memory/numastat.py",
    "memfsd/core/memory/published_map.py",
    "memfsd/core/memory/page_table.py",
    "memfsd/core/memory/readahead.py",
    "memfsd/core/memory/swap_slots.py",
    "memfsd/core/private/absent.py",
    "memfsd/core/private/bindings.py",
    "memfsd/core/private/pending.py",
    "memfsd/core/private/gmem_file.py",
}
"""And what they hold: named for what they are, so that nobody opens them to see where the path goes on."""
CONTRACT = "memfsd/uapi/"


class Entered:
    """Files of the product that any thread goes through."""

    def __init__(self) -> None:
        self._files: set[str] | None = None

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        files = self._files
        if files is not None and event == "call":
            files.add(frame.f_code.co_filename)

    def during(self, call: Callable[[], object]) -> set[str]:
        self._files = files = set[str]()
        sys.setprofile(self)
        try:
            call()
        finally:
            sys.setprofile(None)
            self._files = None
        names = {str(Path(file).relative_to(ROOT)) for file in files if file.startswith(f"{ROOT}/")}
        return {name for name in names if name.startswith(("memfsd/", "kvmsim/"))}


@pytest.fixture
def entered() -> Iterator[Entered]:
    entered = Entered()
    threading.setprofile(entered)
    yield entered
    threading.setprofile(None)


@pytest.fixture
def store(entered: Entered, tmp_path: Path) -> Iterator[LocalStore]:
    with opened_store(tmp_path, 1024) as store:
        yield store


def walked(what: str) -> list[str]:
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text[text.index(f"<!-- {what}: files -->") :]
    rows = section[: section.index("<!-- end -->")].splitlines()
    return [row.split("`")[1] for row in rows if row.startswith("| `")]


def test_a_fault_goes_through_the_files_of_its_walk(store: LocalStore, entered: Entered) -> None:
    store.create("file", 4)
    vm = store.vm()
    vm.private_slot(0, 0, page(4), "file")
    check(walked("fault"), entered.during(lambda: vm.write(page(1), b"x")), most=12)


def test_a_punch_goes_through_the_files_of_its_walk(store: LocalStore, entered: Entered) -> None:
    store.create("file", 4)
    vm = store.vm()
    vm.private_slot(0, 0, page(4), "file")
    vm.write(page(1), b"x")
    walk = walked("punch")
    assert walk[0] == "memfsd/fuse/operations.py", "for which a mount is needed"
    check(walk, entered.during(lambda: store.punch("file", 1, 1)) | {walk[0]}, most=15)


def check(walk: list[str], files: set[str], *, most: int) -> None:
    assert len(walk) == len(set(walk)) <= most
    assert set(walk) <= files, "the document names what is not on the way"
    missing = {name for name in files - set(walk) - DATA_STRUCTURES if not name.startswith(CONTRACT)}
    assert missing == set(), "on the way, and not in the document"
