"""kvmsim's memslots answer as a real KVM did, in the same order of checks; every difference is listed with a reason."""

from pathlib import Path

import pytest
from fidelity import kvm
from fidelity.cases import CASES, Case
from fidelity.cli import DOCUMENT, RECORDING
from fidelity.deviations import DEVIATIONS, NOT_ASKED, deviating, render
from fidelity.recording import Recorded, load, record

from tests.fidelity.replay import simulated

RECORDED = load(RECORDING)
DEVIATING = {(name, at): answer for name, at, answer in deviating()}
REPLAYED = [recorded for recorded in RECORDED.cases if recorded.case.name not in NOT_ASKED]
FIXED_GFN = next(deviation for deviation in DEVIATIONS if "fixed_gfn" in deviation.why)

no_kvm_reason = kvm.unavailable()
ASKED_AGAIN: list[Case] = [case for case in CASES if not case.varies][::5]
"""Enough to notice a recording that is not this KVM's, few enough to be quick."""


@pytest.mark.parametrize("recorded", REPLAYED, ids=lambda recorded: recorded.case.name)
def test_kvmsim_answers_as_kvm_did_but_where_it_says_why_not(recorded: Recorded, tmp_path: Path) -> None:
    name = recorded.case.name
    wanted = [DEVIATING.get((name, at), answer) for at, answer in enumerate(recorded.answers)]

    with simulated(tmp_path) as kvmsim:
        answers = [kvmsim.answer(op) for op in recorded.case.ops]

    assert answers == wanted


@pytest.mark.parametrize("name", FIXED_GFN.answers)
def test_with_fixed_gfn_off_a_page_may_change_its_gfn_as_in_linux(name: str, tmp_path: Path) -> None:
    recorded = RECORDED[name]

    with simulated(tmp_path, fixed_gfn=False) as kvmsim:
        answers = [kvmsim.answer(op) for op in recorded.case.ops]

    assert answers == list(recorded.answers)


def test_every_listed_deviation_does_differ_and_is_of_a_case_that_is_asked() -> None:
    for (name, at), answer in DEVIATING.items():
        assert name not in NOT_ASKED
        assert RECORDED[name].answers[at] != answer, f"{name}, op {at}"


def test_only_addresses_of_a_real_process_are_not_asked() -> None:
    for name in NOT_ASKED:
        for op in RECORDED[name].case.ops:
            assert isinstance(op["uaddr"], int), f"{name}: an address, not a place in a memory"
    for recorded in REPLAYED:
        for op in recorded.case.ops:
            assert not isinstance(op.get("uaddr", []), int) or op["uaddr"] == 0, recorded.case.name


def test_the_recording_has_exactly_the_cases_of_the_table() -> None:
    assert [recorded.case for recorded in RECORDED.cases] == list(CASES)
    assert len({case.name for case in CASES}) == len(CASES)
    assert set(RECORDED.meta) == {"kernel", "machine", "date"}


def test_every_kind_of_answer_was_recorded() -> None:
    """A recording of a KVM that refuses all, or nothing, would prove little."""
    errnos = {str(answer.get("errno", 0)) for recorded in RECORDED.cases for answer in recorded.answers}
    assert errnos == {"0", "EINVAL", "EEXIST", "EBADF"}


@pytest.mark.skipif(no_kvm_reason is not None, reason=no_kvm_reason or "")
def test_this_machines_kvm_still_answers_as_recorded() -> None:
    again = record(ASKED_AGAIN, date="now")

    assert list(again.cases) == [RECORDED[case.name] for case in ASKED_AGAIN]


def test_the_document_lists_what_the_code_lists() -> None:
    assert DOCUMENT.read_text() == render(RECORDED), "write it again with tools/record-kvm --render"
