"""`kvmsim vmms`: the reference passes every scenario, each VMM fails where its source says, and the document is what a
run prints."""

import contextlib
import errno
import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from kvmsim.cli import run_command
from kvmsim.instruments.vmms import judge, table
from kvmsim.instruments.vmms.border import Snapshot
from kvmsim.instruments.vmms.iommu import Iommu
from kvmsim.instruments.vmms.judge import Belief, Finding, disagreements
from kvmsim.instruments.vmms.rig import Result, Rig, run, why_not
from kvmsim.instruments.vmms.scenarios import SCENARIOS, Scenario
from kvmsim.vmm.models import MODELS, Model
from kvmsim.vmm.models.calls import Calls, Region, VmEnded
from kvmsim.vmm.models.firecracker import Firecracker
from kvmsim.vmm.models.reference import Reference
from memfsd.uapi.abi import GMEM_6_18, THREAD, Abi
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE, Gfn
from tests.support.threads import DEADLINE_S

DOCUMENT = Path(__file__).parents[4] / "docs" / "vmms.md"
Results = dict[tuple[str, str], Result]
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@functools.cache
def rows(abi: Abi) -> list[Result]:
    """Every model through every scenario."""
    return [run(model, scenario, abi) for scenario in SCENARIOS for model in MODELS if not why_not(model, scenario)]


@pytest.fixture(params=(THREAD, GMEM_6_18), ids=lambda abi: abi.name)
def results(request: pytest.FixtureRequest) -> Results:
    return {(row.model, row.scenario): row for row in rows(request.param)}


def kinds(result: Result) -> set[str]:
    return {finding.kind for finding in result.findings}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_reference_passes(results: Results, scenario: Scenario) -> None:
    row = results["reference", scenario.name]
    assert (row.verdict, row.findings) == ("ok", [])
    assert row.reply.outcome in scenario.may
    assert not row.lost_pages
    assert not row.doubled_bytes


def test_the_document_is_what_a_run_prints() -> None:
    assert DOCUMENT.read_text() == table.markdown([*rows(THREAD), *rows(GMEM_6_18)], MODELS, SCENARIOS), (
        "write it again: kvmsim vmms --markdown > docs/vmms.md"
    )


def test_the_verdicts_of_both_abis_are_the_same() -> None:
    """What stands for attributes on the thread's ABI behaves as KVM's attributes do."""
    pairs = zip(rows(THREAD), rows(GMEM_6_18), strict=True)
    differing = [(a, b) for a, b in pairs if (a.verdict, a.findings) != (b.verdict, b.findings)]
    assert differing == []


def test_rows_that_differ_in_their_abi_alone_are_one() -> None:
    row = run(Reference, BY_NAME["to-shared"])
    other, different = replace(row, abi="other"), replace(row, abi="other", guest_view="something else")
    assert [joined.abi for joined in table.joined([row, other])] == ["thread, other"]
    assert [joined.abi for joined in table.joined([row, different])] == ["thread", "other"]


def test_every_fault_is_met_by_some_model(results: Results) -> None:
    """A scenario whose call nobody makes would prove nothing."""
    for scenario in SCENARIOS:
        met = [row for (_, name), row in results.items() if name == scenario.name]
        assert any(not any("no such call" in note for note in row.notes) for row in met), scenario.name


# -- what the sources say


def test_qemu_sets_the_attributes_of_the_whole_range_and_then_refuses_the_second_region(results: Results) -> None:
    row = results["qemu", "two-regions-to-shared"]
    assert row.reply.outcome == "ended"
    assert Finding(judge.ATTRIBUTE, 4, "set_attributes 0x10e000+0x4000 shared") in row.findings
    assert row.private_copy == "4 held"


def test_qemu_keeps_its_bitmap_although_the_listener_failed(results: Results) -> None:
    row = results["qemu", "dma-map-fails"]
    assert judge.RECORD_TOLD in kinds(row)
    assert judge.PRIVATE_LEFT in kinds(row)
    assert "dma_unmap 0x104000+0x4000" in row.calls, "VFIO's own part is rolled back"


def test_qemu_discards_from_where_the_region_begins_when_the_range_begins_in_a_hole(results: Results) -> None:
    row = results["qemu", "hole-first-to-shared"]
    assert row.reply.outcome == "done"
    assert Finding(judge.LOST, 2, "punch 0x128000+0x4000") in row.findings
    assert row.lost_pages == 2


def test_qemu_faults_in_what_a_hypercall_has_converted(results: Results) -> None:
    assert results["qemu", "to-private"].calls[-1] == "pre_fault 0x104000+0x4000"
    assert results["qemu", "to-private"].private_copy == "4 held"
    assert not any(call.startswith("pre_fault") for call in results["qemu", "fault-to-private"].calls)
    row = results["qemu", "two-vcpus"]
    assert row.lost_pages == 1, f"also where it has a frame again: {row.private_copy}"


def test_cloud_hypervisor_discards_only_one_side_and_only_by_hypercall(results: Results) -> None:
    assert results["cloud-hypervisor", "to-shared"].verdict == "ok"
    assert kinds(results["cloud-hypervisor", "to-private"]) == {judge.SHARED_LEFT}
    assert kinds(results["cloud-hypervisor", "fault-to-shared"]) == {judge.PRIVATE_LEFT}


def test_cloud_hypervisor_only_logs_a_punch_that_failed(results: Results) -> None:
    row = results["cloud-hypervisor", "punch-fails"]
    assert row.reply.outcome == "done"
    assert judge.PRIVATE_LEFT in kinds(row)


def test_who_holds_no_lock_loses_a_page_that_another_vcpu_makes_private_before_the_punch(results: Results) -> None:
    for unlocked in ("cloud-hypervisor", "qemu"):
        assert Finding(judge.LOST, 1, "punch 0x104000+0x1000") in results[unlocked, "two-vcpus"].findings
    for locked in ("libkrun", "reference"):
        assert results[locked, "two-vcpus"].notes == ["the other vCPU had to wait for a lock"]


def test_libkrun_takes_a_size_hint_for_private(results: Results) -> None:
    row = results["libkrun", "hint-2m"]
    assert row.reply.outcome == "done"
    assert row.attribute == "4 private"
    assert kinds(row) == {judge.ATTRIBUTE}


def test_libkrun_replies_twice(results: Results) -> None:
    for scenario in ("punch-fails", "discard-fails"):
        assert "more than one reply: no, then yes" in kinds(results["libkrun", scenario])
        assert "the worker may panic" in results["libkrun", scenario].reply.why, "which a guest can bring about"
    assert "panic" not in results["libkrun", "attribute-fails"].reply.why


def test_alioth_discards_nothing(results: Results) -> None:
    assert kinds(results["alioth", "to-shared"]) == {judge.PRIVATE_LEFT}
    assert kinds(results["alioth", "to-private"]) == {judge.SHARED_LEFT}
    assert results["alioth", "fault-to-shared"].doubled_bytes == PAGE_SIZE


def test_alioth_leaves_the_first_region_converted_when_the_second_fails(results: Results) -> None:
    row = results["alioth", "second-attribute-fails"]
    assert row.attribute == "2 shared; 2 private"
    assert Finding(judge.ATTRIBUTE, 2, "set_attributes 0x10e000+0x2000 shared") in row.findings


def test_all_memory_is_held_twice_where_vfio_does_not_follow_conversions(results: Results) -> None:
    for vmm in ("cloud-hypervisor", "alioth"):
        assert judge.MAPPED in kinds(results[vmm, "dma-to-private"])
        assert results[vmm, "dma-to-private"].doubled_bytes >= 44 * PAGE_SIZE
    assert results["qemu", "dma-to-private"].verdict == "ok"


def test_the_reference_unmaps_for_the_device_before_a_page_is_private_and_qemu_after(results: Results) -> None:
    note = "the device could reach the shared copy of 4 pages that were private, until dma_unmap 0x104000+0x4000"
    assert results["qemu", "dma-to-private"].notes == [note]
    assert results["reference", "dma-to-private"].notes == []


def test_firecracker_converts_nothing(results: Results) -> None:
    """Exits that only memory with two sides gives never come: nothing is blamed on it."""
    assert {row.verdict for (model, _), row in results.items() if model == "firecracker"} == {"-"}
    assert ("firecracker", "fault-to-shared") not in results
    model = Firecracker(cast(Calls, None))
    with pytest.raises(VmEnded):
        model.hypercall(0, 1, 0)
    with pytest.raises(VmEnded):
        model.memory_fault(0, PAGE_SIZE, private=False)


def test_qemu_only_logs_an_unmap_that_failed(results: Results) -> None:
    row = results["qemu", "dma-unmap-fails"]
    assert row.reply.outcome == "done"
    assert {judge.MAPPED, judge.SHARED_LEFT} <= kinds(row)
    assert row.shared_copy == "4 stale", "the pages that the device keeps are not those of the guest"


def test_a_busy_zap_is_tried_again_with_every_vcpu_out(results: Results) -> None:
    row = results["reference", "zap-busy"]
    assert row.notes == ["KVM got every vCPU out and zapped again, 1 time(s)"]


def test_a_mmio_range_to_shared_ends_libkrun_alone(results: Results) -> None:
    ended = {
        model for (model, name), row in results.items() if name == "mmio-to-shared" and row.reply.outcome == "ended"
    }
    assert ended == {"libkrun"}


# -- the reference, beyond one request


@pytest.fixture
def rig() -> Iterator[Rig]:
    with contextlib.closing(Rig(Reference, BY_NAME["to-shared"])) as opened:
        opened.prepare()
        yield opened


def test_what_is_owed_is_done_before_the_next_conversion(rig: Rig) -> None:
    """Else a late punch would hit a page that is private again."""

    def fail() -> None:
        raise Refused(errno.EIO, "made to fail")

    for nth in (2, 3, 4):
        rig.border.hooks["punch", nth] = fail
    first, size = 0x10E000, 4 * PAGE_SIZE
    assert rig.ask(rig.vcpus[0], first, size, private=False).outcome == "done"
    assert rig.border.history[-1].held_private >= {Gfn(0x110), Gfn(0x111)}, "they are owed"
    assert rig.ask(rig.vcpus[0], first, size, private=True) == ("refused", "EIO")
    assert rig.ask(rig.vcpus[0], first, size, private=True).outcome == "done"
    rig.write(rig.vcpus[0], Gfn(0x110), shared=False)
    assert rig.ask(rig.vcpus[0], 0x104000, PAGE_SIZE, private=False).outcome == "done"
    assert Gfn(0x110) in rig.border.history[-1].held_private


def test_what_is_converted_already_stays(rig: Rig) -> None:
    assert rig.ask(rig.vcpus[0], 0x104000, 2 * PAGE_SIZE, private=False).outcome == "done"
    rig.write(rig.vcpus[0], Gfn(0x105), shared=True)
    calls = len(rig.border.history)
    assert rig.ask(rig.vcpus[0], 0x105000, PAGE_SIZE, private=False).outcome == "done"
    assert len(rig.border.history) == calls, "no call"
    rig.border.look("now")
    assert Gfn(0x105) in rig.border.history[-1].held_shared


# -- the parts of the harness


def test_a_pin_outlives_a_discard() -> None:
    memory = {Gfn(1): b"old"}
    iommu = Iommu(lambda gfn: memory[gfn])
    iommu.map(Gfn(1))
    iommu.map(Gfn(1))
    assert (sorted(iommu.mapped), sorted(iommu.stale)) == ([1], [])
    iommu.discarding(Gfn(1))
    iommu.discarding(Gfn(2))
    assert (sorted(iommu.mapped), sorted(iommu.stale)) == ([1], [1])
    iommu.unmap(Gfn(1))
    assert not iommu.mapped | iommu.stale


def snapshot(call: str, *shared: int, held: tuple[int, ...] = ()) -> Snapshot:
    pages = frozenset(map(Gfn, shared))
    return Snapshot(call, pages, frozenset(map(Gfn, held)), frozenset(), frozenset(), frozenset(), None)


def test_a_finding_names_the_call_from_which_it_stays() -> None:
    history = [
        snapshot(""),
        snapshot("a", 1),
        snapshot("b"),
        snapshot("c", 1),
        snapshot("d", 1),
        snapshot("the end", 1),
    ]
    ram = frozenset({Gfn(1), Gfn(2)})
    assert disagreements(history, Belief(ram, frozenset(), False)) == [Finding(judge.ATTRIBUTE, 1, "c")]
    assert disagreements(history, Belief(ram, frozenset({Gfn(1)}), False)) == []
    told = disagreements(history, Belief(ram, frozenset({Gfn(1), Gfn(2)}), False))
    assert told == [Finding(judge.ATTRIBUTE, 1, "d")], "no call changed page 2: it parts at the reply"


def test_what_was_so_before_is_not_the_requests_doing() -> None:
    history = [snapshot("", 1, held=(1,)), snapshot("the end", 1, held=(1,))]
    assert disagreements(history, Belief(frozenset({Gfn(1)}), frozenset({Gfn(1)}), False)) == []


class Lossy(Reference):
    """It punches what it has only been asked about, and answers that nothing has changed."""

    name = "lossy"

    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        region = next(region for region in self.calls.regions if region.overlaps(gpa, gpa + 1))
        self.calls.punch(region, gpa - region.gpa, page_count * PAGE_SIZE)
        return -errno.EAGAIN


def test_lost_data_is_seen() -> None:
    row = run(Lossy, BY_NAME["punch-meanwhile"])
    assert row.verdict == "fails"
    row = run(Lossy, BY_NAME["to-shared"])
    assert Finding(judge.LOST, 4, "punch 0x104000+0x4000") in row.findings
    assert row.lost_pages == 4


def test_regions_are_half_open() -> None:
    region = Region(0x1000, 0x1000)
    assert [region.overlaps(*range_) for range_ in ((0, 0x1000), (0x1FFF, 0x2000), (0x2000, 0x3000))] == [
        False,
        True,
        False,
    ]


# -- the command


def said(*words: str) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = run_command(["vmms", *words])
    return status, out.getvalue()


def test_rows_as_json() -> None:
    status, out = said("--json", "--models", "reference,alioth", "--scenarios", "to-shared", "--abi", "gmem-7.2")
    printed = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [(row["model"], row["scenario"], row["abi"], row["verdict"]) for row in printed] == [
        ("reference", "to-shared", "gmem-7.2", "ok"),
        ("alioth", "to-shared", "gmem-7.2", "fails"),
    ]
    assert printed[1]["findings"] == [
        {"kind": judge.PRIVATE_LEFT, "page_count": 4, "after": "set_attributes 0x104000+0x4000 shared"}
    ]
    assert printed[0]["reply"] == {"outcome": "done", "why": ""}


def test_rows_for_people() -> None:
    status, out = said("--models", "libkrun", "--scenarios", "hint-2m")
    assert status == 0, "only the reference has to pass"
    assert "  libkrun           fails  done (thread)\n" in out
    assert "shared exits MEMORY_FAULT" in out
    assert "4 pages: attribute is not what the guest was told, after discard 0x104000+0x4000" in out


def test_what_a_vmm_cannot_meet_is_said() -> None:
    status, out = said("--models", "firecracker,libkrun", "--scenarios", "fault-to-shared,dma-to-shared")
    assert status == 0
    assert "  firecracker       -      no such exit\n" in out
    assert "  libkrun           -      no device\n" in out


def test_the_status_is_that_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(model: type[Model], scenario: Scenario, abi: Abi) -> Result:
        result = run(Lossy, scenario, abi)
        result.model = model.name
        return result

    monkeypatch.setattr("kvmsim.instruments.vmms.command.run", lossy)
    assert said("--models", "reference", "--scenarios", "to-shared")[0] == 1
    assert said("--models", "qemu", "--scenarios", "to-shared")[0] == 0


def test_what_there_is_is_listed() -> None:
    status, out = said("--list", "--json")
    printed = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [row["model"] for row in printed if "model" in row] == [model.name for model in MODELS]
    assert {row["scenario"] for row in printed if "scenario" in row} == set(BY_NAME)


def test_a_name_that_does_not_exist_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        said("--models", "xen")
    assert ended.value.code == 2
    assert "'xen' does not exist: choose from qemu, cloud-hypervisor" in capsys.readouterr().err


def test_an_abi_without_a_second_copy_is_refused_with_that_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        said("--abi", "thread,gmem-inplace")
    assert "gmem-inplace keeps one copy of a page, which no VMM here converts" in capsys.readouterr().err


def test_it_leaves_nothing_and_says_nothing_beside() -> None:
    """As a person runs it: a store that dies is no news."""
    program = Path(sys.executable).with_name("kvmsim")
    done = subprocess.run(
        [program, "vmms", "--scenarios", "store-dies"], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("files", [12, 30])
def test_without_room_it_says_so_in_one_line(files: int) -> None:
    program = Path(sys.executable).with_name("kvmsim")
    done = subprocess.run(
        ["sh", "-c", f"ulimit -n {files}; exec {program} vmms --scenarios to-shared"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 1
    assert done.stderr == "kvmsim: no room for a VM and a store (EMFILE): raise ulimit -n, -u or -v\n"


def test_no_descriptor_is_left_by_a_row() -> None:
    """Those of a store that died are closed, too."""
    before = len(os.listdir("/proc/self/fd"))
    for name in ("to-private", "store-dies"):
        run(Reference, BY_NAME[name])
    assert len(os.listdir("/proc/self/fd")) <= before
