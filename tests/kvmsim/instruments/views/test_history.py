"""What journals say, put together."""

import json
from pathlib import Path

import pytest

from kvmsim.instruments.journal.reader import NotAJournal
from kvmsim.instruments.views.history import History, history, rows
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.journaled import read_lines, record_run, write_lines


def both(store: LocalStore, one: LocalVm, two: LocalVm) -> None:
    one.shared_slot(1, page(64), page(4))
    one.touch(page(16), page(8))
    two.touch(page(16), page(2))
    store.punch("one", 2, 4)
    one.vmm.memory.punch_slot(0, page(24), page(2))


@pytest.fixture
def journals(tmp_path: Path) -> tuple[Path, Path]:
    return record_run(tmp_path, both)


def told(*paths: Path) -> History:
    return history([str(path) for path in paths])


def test_an_invalidation_has_all_its_parts_when_both_sides_are_there(journals: tuple[Path, Path]) -> None:
    found = told(*journals)
    punches = [one for one in found.invalidations if one.reason == "punch"]
    (punch,) = punches
    assert (punch.vm, punch.start, punch.pages) == ("one", 2, 4)
    parts = punch.zap_us, punch.flush_us, punch.kick_us, punch.ack_us, punch.free_us
    assert all(part is not None and part >= 0 for part in parts), parts
    (row,) = [row for row in rows(found) if row["reason"] == "punch"]
    assert row["range"] == "0x2 +4"


def test_one_side_alone_knows_its_own_parts(journals: tuple[Path, Path]) -> None:
    store, vm = journals
    (of_vm,) = [one for one in told(vm).invalidations if one.reason == "punch"]
    assert of_vm.zap_us is not None and of_vm.flush_us is not None and of_vm.free_us is None
    (of_store,) = [one for one in told(store).invalidations if one.reason == "punch"]
    assert of_store.zap_us is None and of_store.flush_us is None and of_store.free_us is not None


def test_slots_are_bands_that_end_where_they_change(journals: tuple[Path, Path]) -> None:
    found = told(*journals)
    private = sorted((band.low, band.high) for band in found.bands if band.vm == "one" and band.private)
    assert private == [(page(16), page(24)), (page(16), page(32)), (page(26), page(32))]
    whole = next(band for band in found.bands if (band.low, band.high) == (page(16), page(32)) and band.vm == "one")
    rest = next(band for band in found.bands if band.low == page(26))
    assert whole.end == rest.start and rest.end == found.seconds
    assert max(value for _, value in found.curves["mapped"]) >= 10 * PAGE_SIZE
    assert found.destroyed_bytes == 2 * PAGE_SIZE


def test_a_torn_journal_is_told_as_far_as_it_goes_with_a_warning(journals: tuple[Path, Path], tmp_path: Path) -> None:
    _, vm = journals
    torn = tmp_path / "torn"
    torn.write_bytes(vm.read_bytes()[:-40])
    found = told(torn)
    assert found.bands and any("torn:" in warning for warning in found.warnings)
    (tmp_path / "no").write_text("nothing\n")
    with pytest.raises(NotAJournal):
        told(tmp_path / "no")


def test_what_went_wrong_is_a_warning(journals: tuple[Path, Path], tmp_path: Path) -> None:
    _, vm = journals
    lines = [line for line in read_lines(vm) if line.get("kind") != "INVALIDATE_END"]
    end = lines.pop()
    t = end["t"]
    lines += [
        {"type": "note", "t": t, "what": "converted", "vm": "one",
         "data": {"start": 1, "end": 3, "private": False, "shared": 4, "doubled": 2}},
        {"type": "note", "t": t, "what": "exit", "vm": "one", "data": {"vcpu": 0, "reason": "MMIO"}},
        {"type": "note", "t": t, "what": "memory_error", "vm": "one", "data": {"gpa": 4096, "private": True}},
        end,
    ]  # fmt: skip
    write_lines(tmp_path / "edited", json.loads(json.dumps(lines)))
    found = told(tmp_path / "edited")
    assert any("never ended" in warning for warning in found.warnings)
    assert any(f"{2 * PAGE_SIZE} bytes were held twice" in warning for warning in found.warnings)
    assert found.exits["one"]["MMIO"] == 1 and found.converted["to shared"] == 2
    assert found.errors[0][2] == "private at 0x1000: nobody repairs it"
