"""A guest_memfd on a mount answers as the kernel's did, op by op; every difference has a reason in writing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fidelity import linux_kvm
from fidelity.document import DOCUMENT, render
from fidelity.oracle import VECTORS, differences, linux_answers, main, ours
from fidelity.outcomes import Outcome, same
from fidelity.player import NOT_ASKED
from fidelity.reasons import reason_for
from fidelity.vectors import Vector, load

RECORDED = load(VECTORS)
FILE_GROUPS = ("create", "fd", "fallocate", "mmap", "gup", "uffd")
OF_FILES = [vector for vector in RECORDED if vector.is_of(FILE_GROUPS)]
Answers = Callable[[Vector], list[Outcome]]

no_kvm_reason = linux_kvm.unavailable()


@pytest.fixture(scope="module")
def answers() -> Iterator[Answers]:
    with ours("gmem-6.18") as found:
        yield found


def unlisted(vector: Vector, found: list[Outcome], counts: dict[str, int]) -> list[str]:
    return [
        f"op {each.at}, {each.op} {each.args}: {each.kvm}, and ours {each.ours}"
        for each in differences(vector, vector.recorded, found, counts)
        if reason_for(each) is None
    ]


@pytest.mark.parametrize("vector", OF_FILES, ids=lambda vector: vector.name[:60])
def test_every_difference_has_a_reason(vector: Vector, answers: Answers) -> None:
    counts = {"asked": 0, "same": 0, "not_asked": 0}
    assert unlisted(vector, answers(vector), counts) == []
    assert counts["asked"] > 0


def test_a_wrong_answer_is_seen(answers: Answers) -> None:
    vector = next(vector for vector in OF_FILES if vector.name == "fallocate/punch_partial_of_range")
    found = answers(vector)
    found[-1] = {"errno": "EINVAL"}
    assert len(unlisted(vector, found, {"asked": 0, "same": 0, "not_asked": 0})) == 1


@pytest.mark.skipif(no_kvm_reason is not None, reason=no_kvm_reason or "")
def test_this_machines_kvm_still_answers_as_recorded() -> None:
    for vector in OF_FILES[::7]:
        for op, recorded, answer in zip(vector.ops, vector.recorded, linux_answers(vector), strict=True):
            assert answer == NOT_ASKED or same(recorded, answer), f"{vector.name}: {op}"


@pytest.mark.skipif(no_kvm_reason is not None, reason=no_kvm_reason or "")
def test_a_new_recording_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    chosen = ["create/size", "fallocate/punch_unallocated", "gslot/overlap_file_exact"]
    assert main(["--record", str(path), *chosen]) == 0
    assert {vector.name for vector in load(path)} == {each.name for each in RECORDED if each.is_of(chosen)}
    assert main(["--vectors", str(path)]) == 0


def test_a_store_through_a_mapping_moves_the_times_when_it_is_written_back(answers: Answers) -> None:
    """Of a file that is born shared, which no recorded case asks."""
    (recorded,) = [vector for vector in RECORDED if vector.name == "fd/mmap/times"]
    ops = tuple(op | {"args": op["args"] | {"flags": 3}} if op["op"] == "create_gmem" else op for op in recorded.ops)
    vector = replace(recorded, ops=ops)
    kvm = [
        *recorded.recorded[:-3],
        {"result": None},
        {"result": "01"},
        {"result": dict.fromkeys(("mtime", "ctime"), True)},
    ]
    kvm[-1]["result"]["atime"] = False
    found = list(differences(vector, kvm, answers(vector), {"asked": 0, "same": 0, "not_asked": 0}))
    reasons = [reason_for(each) for each in found]
    assert [each.op for each in found] == ["times_changed"]
    assert [reason.title for reason in reasons if reason] == ["The times of a store through a mapping"]


def test_the_document_lists_what_the_code_lists() -> None:
    assert DOCUMENT.read_text() == render(RECORDED), "write it again with tools/oracle --render"
