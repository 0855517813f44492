"""A true exchange keeps all rules; broken in one place it is named by rule and line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kvmsim.instruments.journal.check import Verdict, check
from memfsd.uapi.units import Gfn
from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.journaled import Journal, Line, read_lines, record_run, write_lines


def exchange(store: LocalStore, one: LocalVm, two: LocalVm) -> None:
    """Faults, a punch, faults again, a hole in a slot and its filling, reclaim, the other VM, and the end of both."""
    one.touch(page(16), page(8))
    two.touch(page(16), page(4))
    store.punch("one", 2, 3)
    one.touch(page(16), page(8))
    one.vmm.memory.punch_slot(0, page(20), page(2))
    one.vmm.memory.fill_slot(0, Gfn(20), Gfn(22))
    one.touch(page(20), page(2))
    store.reclaim()
    store.punch("one", 0, 2)
    assert store.findings() == []
    one.close()
    two.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return record_run(tmp_path_factory.mktemp("recorded"), exchange)


def test_a_true_exchange_keeps_all_rules(recorded: tuple[Path, Path]) -> None:
    store, vm = map(str, recorded)
    for files in ([store], [vm], [store, vm], [vm, store]):
        verdict = check(files)
        assert (verdict.rule, verdict.why, verdict.incomplete) == ("", "", [])
        assert verdict.message_count > 40
        assert verdict.note_count >= 8


def test_frames_of_a_device_are_no_frames_of_the_pool(tmp_path: Path) -> None:
    """Both begin at number 0. It is granted, removed, and replaced by another one."""

    def with_devices(store: LocalStore, one: LocalVm, two: LocalVm) -> None:
        one.touch(page(16), page(4))
        two.touch(page(16), page(4))
        for name, gfn in (("device", 64), ("another", 96)):
            store.store.devices.add(store.create(name, 8).ino)
            one.private_slot(gfn, page(gfn), page(8), name)
            one.touch(page(gfn), page(8))
        store.store.devices.remove(store.file("device").ino)
        one.touch(page(64), page(1))
        one.close()
        two.close()

    verdict = check(list(map(str, record_run(tmp_path, with_devices))))
    assert (verdict.rule, verdict.why) == ("", "")


# -- one place is changed


def an_answer_is_missing(journal: Journal) -> None:
    journal.drop(journal.at("BIND", reply=True))


def an_answer_comes_twice(journal: Journal) -> None:
    at = journal.at("BIND", reply=True)
    journal.copy(at, at + 1)


def an_answer_to_another_request(journal: Journal) -> None:
    journal.line("GET_PFN", reply=True)["id"] += 100


def an_answer_of_another_kind(journal: Journal) -> None:
    journal.line("BIND", reply=True)["kind"] = "UNBIND"


def bound_before_it_was_paired(journal: Journal) -> None:
    first = journal.at("PAIR", reply=False)
    for index in (journal.at("BIND", reply=False), journal.at("BIND", reply=True)):
        journal.move(index, first)
        first += 1


def reported_after_the_end(journal: Journal) -> None:
    for reply in (False, True):
        index = journal.at("HELLO", reply=reply)
        journal.lines.append(dict(journal.lines[index], t=journal.lines[-1]["t"]))


def an_end_is_missing(journal: Journal) -> None:
    journal.drop_all("installed")
    journal.drop(journal.at("INVALIDATE_END", reply=False), journal.at("INVALIDATE_END", reply=True))


def the_last_end_is_missing(journal: Journal) -> None:
    journal.drop_all("closed", "gone", "BYE", "freed")
    journal.drop(journal.at("INVALIDATE_END", reply=False, nth=-1), journal.at("INVALIDATE_END", reply=True, nth=-1))


def a_begin_is_missing(journal: Journal) -> None:
    journal.drop_all("zapped", "out", "installed", "freed")
    journal.drop(journal.at("INVALIDATE_BEGIN", reply=False), journal.at("INVALIDATE_BEGIN", reply=True))


def an_end_of_another_range(journal: Journal) -> None:
    journal.line("INVALIDATE_END", reply=False)["body"]["end"] += 1


def an_end_before_the_acknowledgement(journal: Journal) -> None:
    journal.drop_all("zapped", "out", "installed", "freed")
    journal.move(journal.at("INVALIDATE_END", reply=False), journal.at("INVALIDATE_BEGIN", reply=True))


def an_end_that_does_not_count(journal: Journal) -> None:
    journal.line("INVALIDATE_END", reply=False)["body"]["seq"] -= 1


def an_end_that_counts_twice(journal: Journal) -> None:
    journal.line("INVALIDATE_END", reply=False)["body"]["seq"] += 1


def a_begin_with_another_number(journal: Journal) -> None:
    journal.line("INVALIDATE_BEGIN", reply=False)["body"]["seq"] += 1


def bound_again_without_unbind(journal: Journal) -> None:
    journal.drop(journal.at("UNBIND", reply=False), journal.at("UNBIND", reply=True))


def unbound_twice(journal: Journal) -> None:
    at = journal.at("BIND", reply=False, nth=2)
    for reply in (True, False):
        journal.copy(journal.at("UNBIND", reply=reply), at)


def a_gfn_for_two_pages(journal: Journal) -> None:
    journal.line("BIND", reply=False, nth=2)["body"]["gfn"] += 4


EITHER = [
    ("reply", an_answer_is_missing),
    ("reply", an_answer_comes_twice),
    ("reply", an_answer_to_another_request),
    ("reply", an_answer_of_another_kind),
    ("legal", bound_before_it_was_paired),
    ("legal", reported_after_the_end),
    ("bracket", an_end_is_missing),
    ("bracket", the_last_end_is_missing),
    ("bracket", a_begin_is_missing),
    ("bracket", an_end_of_another_range),
    ("bracket", an_end_before_the_acknowledgement),
    ("sequence", an_end_that_does_not_count),
    ("sequence", an_end_that_counts_twice),
    ("sequence", a_begin_with_another_number),
    ("rebind", bound_again_without_unbind),
    ("rebind", unbound_twice),
    ("rebind", a_gfn_for_two_pages),
]


def granted_while_closing(journal: Journal) -> None:
    """Asked after BEGIN, answered well with the number that BEGIN had."""
    end = journal.at("INVALIDATE_END", reply=False)
    for reply in (True, False):
        journal.copy(journal.at("GET_PFN", reply=reply), end, id=999)
    for reply in (False, True):
        index = journal.at("GET_PFN", reply=reply, nth=0)
        assert journal.lines[index]["ino"] >= 0
    begin = journal.line("INVALIDATE_BEGIN", reply=False)["body"]
    for line in journal.lines:
        if line.get("id") == 999 and not line["reply"]:
            line["body"]["pgoff"] = begin["start"]


def freed_before_the_acknowledgement(journal: Journal) -> None:
    journal.move(journal.at("freed"), journal.at("INVALIDATE_BEGIN", reply=True))


def freed_without_asking(journal: Journal) -> None:
    """As if the store thought that no VM has the range bound."""
    for kind in ("INVALIDATE_BEGIN", "INVALIDATE_END"):
        for reply in (True, False):
            journal.drop(journal.at(kind, reply=reply))


def freed_at_the_end_without_proof(journal: Journal) -> None:
    journal.drop_all("gone", "BYE")


def granted_to_two_files(journal: Journal) -> None:
    first = journal.line("GET_PFN", reply=True)
    other = next(
        line
        for line in journal.lines
        if line.get("kind") == "GET_PFN" and line["reply"] and line["ino"] != first["ino"]
    )
    other["body"]["pfn"] = first["body"]["pfn"]


def a_page_that_changes_its_frame(journal: Journal) -> None:
    at = journal.at("GET_PFN", reply=False, nth=1)
    for reply in (True, False):
        journal.copy(journal.at("GET_PFN", reply=reply), at, id=999)
    changed = next(line for line in journal.lines if line.get("id") == 999 and line["reply"])
    changed["body"]["pfn"] += 50


STORE = [
    ("grant", granted_while_closing),
    ("freed", freed_before_the_acknowledgement),
    ("freed", freed_without_asking),
    ("freed", freed_at_the_end_without_proof),
    ("frame", granted_to_two_files),
    ("frame", a_page_that_changes_its_frame),
]


def acknowledged_before_the_zap(journal: Journal) -> None:
    begin = journal.at("INVALIDATE_BEGIN", reply=False)
    journal.move(journal.at("INVALIDATE_BEGIN", reply=True), begin + 1)


def acknowledged_without_a_zap(journal: Journal) -> None:
    journal.drop(journal.at("zapped"))


def acknowledged_with_a_vcpu_inside(journal: Journal) -> None:
    journal.drop(journal.at("out"))


def kicked_before_the_zap(journal: Journal) -> None:
    journal.line("out")["data"]["since"] = journal.line("zapped")["t"] - 1


def zapped_one_page_short(journal: Journal) -> None:
    journal.line("zapped")["data"]["end"] -= 1


def mapped_inside_the_bracket(journal: Journal) -> None:
    """A page that is granted again after END, mapped before."""
    end = journal.at("INVALIDATE_END", reply=False)
    later = next(i for i in range(end, len(journal.lines)) if journal.lines[i].get("what") == "installed")
    journal.move(later, end)


def mapped_without_a_grant(journal: Journal) -> None:
    journal.drop(journal.at("GET_PFN", reply=False), journal.at("GET_PFN", reply=True))


def mapped_to_another_frame(journal: Journal) -> None:
    journal.line("installed")["data"]["pfn"] += 1


def mapped_from_a_grant_that_was_overtaken(journal: Journal) -> None:
    """The answer to the fault after END is the one from before BEGIN."""
    end = journal.at("INVALIDATE_END", reply=False)
    at = next(i for i in range(end, len(journal.lines)) if journal.lines[i].get("kind") == "GET_PFN")
    journal.drop(at, at + 1)


VM = [
    ("acknowledged", acknowledged_before_the_zap),
    ("acknowledged", acknowledged_without_a_zap),
    ("acknowledged", acknowledged_with_a_vcpu_inside),
    ("acknowledged", kicked_before_the_zap),
    ("acknowledged", zapped_one_page_short),
    ("install", mapped_inside_the_bracket),
    ("install", mapped_without_a_grant),
    ("install", mapped_to_another_frame),
    ("stale", mapped_from_a_grant_that_was_overtaken),
]


def broken(recorded: tuple[Path, Path], side: int, edit: Callable[[Journal], None], place: Path) -> Verdict:
    journal = Journal(recorded[side])
    edit(journal)
    edited = place / "edited"
    write_lines(edited, journal.lines)
    alone = check([str(edited)])
    assert alone.rule
    assert alone.where.startswith(f"{edited}:")
    assert 1 <= int(alone.where.rsplit(":", 1)[1]) <= len(journal.lines)
    assert alone.why
    assert "\n" not in alone.why
    assert check([str(edited), str(recorded[1 - side])]).rule, "found among others, too"
    return alone


@pytest.mark.parametrize(("rule", "edit"), EITHER, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("side", [0, 1], ids=["memfsd", "kvmsim"])
def test_what_either_side_shows(
    recorded: tuple[Path, Path], tmp_path: Path, rule: str, edit: Callable[[Journal], None], side: int
) -> None:
    assert broken(recorded, side, edit, tmp_path).rule == rule


@pytest.mark.parametrize(("rule", "edit"), STORE, ids=lambda value: getattr(value, "__name__", value))
def test_what_the_stores_journal_shows(
    recorded: tuple[Path, Path], tmp_path: Path, rule: str, edit: Callable[[Journal], None]
) -> None:
    assert broken(recorded, 0, edit, tmp_path).rule == rule


@pytest.mark.parametrize(("rule", "edit"), VM, ids=lambda value: getattr(value, "__name__", value))
def test_what_the_vms_journal_shows(
    recorded: tuple[Path, Path], tmp_path: Path, rule: str, edit: Callable[[Journal], None]
) -> None:
    assert broken(recorded, 1, edit, tmp_path).rule == rule


def test_with_both_journals_a_frame_that_is_freed_while_a_vm_maps_it_is_found(
    recorded: tuple[Path, Path], tmp_path: Path
) -> None:
    """Each for itself is in order: the VM was never told, and the store's acknowledgement came from elsewhere."""
    journal = Journal(recorded[1])
    journal.drop_all("INVALIDATE_BEGIN", "INVALIDATE_END", "REPORT")
    journal.drop(journal.at("zapped"))
    first = journal.at("GET_PFN", reply=False, nth=0)
    stop = next(
        i
        for i in range(first, len(journal.lines))
        if journal.lines[i]["type"] == "note" and journal.lines[i]["what"] == "out"
    )
    journal.lines = journal.lines[:stop]
    edited = tmp_path / "edited"
    write_lines(edited, journal.lines)
    assert check([str(edited)]).rule == ""
    verdict = check([str(recorded[0]), str(edited)])
    assert verdict.rule == "freed"
    assert verdict.where.startswith(str(recorded[0]))
    assert "while VM one" in verdict.why


def test_a_store_with_the_pid_of_one_that_died_is_another_one(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    """Both sides were killed while the VM mapped frames, and begin again, with the same pids, in the same journals."""
    punched, hour = Journal(recorded[1]).line("INVALIDATE_BEGIN")["t"], 3600 * 10**9

    def an_hour_later(line: Line) -> Line:
        line["t"] += hour
        if line.get("what") == "out":
            line["data"]["since"] += hour
        return line

    files = []
    for path in recorded:
        killed = [line for line in read_lines(path) if line["t"] < punched]
        files.append(str(tmp_path / path.name))
        write_lines(Path(files[-1]), killed + [an_hour_later(line) for line in read_lines(path)])
    verdict = check(files)
    assert (verdict.rule, verdict.where, verdict.why) == ("", "", "")
    assert len(verdict.incomplete) == 2


def test_a_vm_that_died_owes_nothing(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    """A journal that a kill ended in the middle of a bracket is in order."""
    for side in (0, 1):
        journal = Journal(recorded[side])
        for cut in range(2, len(journal.lines)):
            edited = tmp_path / "cut"
            write_lines(edited, journal.lines[:cut])
            assert check([str(edited)]).rule == "", cut
