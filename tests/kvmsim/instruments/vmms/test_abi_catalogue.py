"""`kvmsim abi`: the ABIs answer as their contracts say, what one has not the code says, and the document is what a run
prints."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmsim.cli import run_command
from kvmsim.instruments.vmms.abi import table
from kvmsim.instruments.vmms.abi.bench import Bench, CannotBegin, in_words
from kvmsim.instruments.vmms.abi.catalogue import SITUATIONS, Result, Situation, run, said
from kvmsim.kvm.exits import FailedExit, HltExit, MemoryErrorExit, MemoryFaultExit
from kvmsim.kvm.hypercalls import SUBFUNC_UNSUPPORTED, Registers
from kvmsim.machine import VirtualMachine
from memfsd.uapi.abi import ABIS, GMEM_6_18, GMEM_7_2, GMEM_INPLACE, THREAD, Abi
from memfsd.uapi.errors import Refused
from tests.support.chromium import check_readable
from tests.support.threads import DEADLINE_S

DOCUMENT = Path(__file__).parents[4] / "docs" / "abi.md"
LINUX = (GMEM_6_18, GMEM_7_2, GMEM_INPLACE)
NOT_THERE = "not there (ENOTTY)"


@functools.cache
def results() -> list[Result]:
    return [run(situation) for situation in SITUATIONS]


def answers(name: str, abi: Abi) -> list[str]:
    found = next(result for result in results() if result.situation.name == name)
    return [answer.answer for answer in found.answers[abi.name]]


def test_the_document_is_what_a_run_prints() -> None:
    assert DOCUMENT.read_text() == table.markdown(results()), "write it again: kvmsim abi --markdown > docs/abi.md"


def test_every_abi_answers_every_situation() -> None:
    assert len(SITUATIONS) >= 60
    assert len({situation.name for situation in SITUATIONS}) == len(SITUATIONS)
    for result in results():
        assert list(result.answers) == list(ABIS)
        assert all(result.answers.values()), result.situation.name
        assert result.situation.about, result.situation.name


def test_every_situation_begins() -> None:
    begun = [result.situation.name for result in results() if "to begin with" in str(result.answers)]
    assert begun == []


def test_a_range_that_is_bound_twice_is_each_profiles_errno() -> None:
    for abi in ABIS.values():
        assert answers("bind-twice", abi) == ["EINVAL" if abi is GMEM_6_18 else "EEXIST"]


def test_with_attributes_of_the_vm_private_memory_and_what_is_born_shared_exclude_each_other() -> None:
    for abi in (GMEM_6_18, GMEM_7_2):
        assert answers("vm-attributes-beside-shared-memory", abi) == ["done", "EINVAL", "done", "EINVAL"]
    assert answers("vm-attributes-beside-shared-memory", GMEM_INPLACE) == ["done", NOT_THERE, NOT_THERE, "done"]


def test_an_offset_is_signed_up_to_linux_7_1() -> None:
    for abi in ABIS.values():
        wraps = abi is GMEM_6_18
        assert answers("bind-over-2-63", abi) == (["done", "done", "data"] if wraps else ["EINVAL", "MMIO", "MMIO"])
        assert answers("bind-huge-offset", abi) == ["EINVAL", "EINVAL"]


def test_a_pool_without_a_frame_is_each_profiles_errno() -> None:
    for abi in ABIS.values():
        exit_, number = ("MEMORY_ERROR", "ENOSPC") if abi is THREAD else ("MEMORY_FAULT", "ENOMEM")
        assert answers("touch-and-no-room", abi) == [f"{exit_}, private {number}"]
        assert answers("fallocate-and-no-room", abi)[0] == number


def test_pre_fault_follows_the_attributes_wherever_they_are() -> None:
    for abi in LINUX:
        assert answers("prefault-shared", abi) == ["all"]
        assert answers("prefault-odd-ranges", abi)[-1] == "ENOENT"


def test_contents_after_a_conversion() -> None:
    for abi in ABIS.values():
        read = answers("convert-to-shared", abi)[1], answers("convert-to-private", abi)[1]
        assert read == (("private", "shared") if abi is GMEM_INPLACE else ("zeros", "zeros"))
        assert answers("convert-and-back", abi)[-1] == ("zeros" if abi is THREAD else "private")


def test_what_an_abi_has_not_is_what_the_code_says() -> None:
    for abi in ABIS.values():
        assert (answers("vm-attributes", abi) == [NOT_THERE] * 2) == (abi in (THREAD, GMEM_INPLACE))
        assert (answers("file-attributes", abi) == [NOT_THERE] * 2) == (abi is not GMEM_INPLACE)
        assert (answers("bind-by-the-old-ioctl", abi) == [NOT_THERE] * 2) == (abi is not THREAD)
        assert (answers("bind-by-region2", abi) == [NOT_THERE]) == (abi is THREAD)


@pytest.mark.parametrize("abi", LINUX, ids=lambda abi: abi.name)
def test_what_is_the_threads_alone_is_refused_on_linux(abi: Abi) -> None:
    """They were accepted, and then converted nothing."""
    assert answers("policies", abi)[:3] == ["EINVAL"] * 3
    assert sorted(answers("policies", abi)[3:]) == ["EINVAL", "done"]
    assert answers("punch-a-slot", abi)[0] == NOT_THERE
    assert answers("punch-a-slot", abi)[1:] == ["data", "beside"]
    machine = VirtualMachine("v", 4, abi=abi)
    machine.vmm.set_policy("none")
    with pytest.raises(Refused, match=f"policy punch converts by slots, on abi thread alone: on abi {abi.name} choose"):
        machine.vmm.set_policy("punch")
    assert machine.vmm.policy == "none"
    machine.close()


def test_a_policy_that_the_abi_has_not_is_one_line() -> None:
    command = [str(Path(sys.executable).with_name("kvmsim")), "run", "--abi", "gmem-7.2", "--policy", "overlay", "-"]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kvmsim: policy overlay converts by slots")
    assert done.stderr.count("\n") == 1


def test_a_refusal_at_the_beginning_is_the_answer() -> None:
    def begins_wrong(bench: Bench) -> None:
        with bench.beginning():
            bench.make(1)

    def begins_with_an_exit(bench: Bench) -> None:
        bench.written(b"x")

    wrong, no_slot = (run(Situation("s", "a", each), [THREAD]) for each in (begins_wrong, begins_with_an_exit))
    assert said(wrong.answers["thread"]) == "to begin with: EINVAL"
    assert wrong.answers["thread"][0].reason
    assert said(no_slot.answers["thread"]) == "to begin with: MEMORY_ERROR, private"


def test_what_cannot_begin_ends() -> None:
    bench = Bench(THREAD)
    try:
        with pytest.raises(CannotBegin), bench.beginning():
            bench.delete(1)
    finally:
        bench.close()


def test_answers_in_words() -> None:
    assert in_words(None) == "done"
    assert in_words(bytes(4)) == "zeros"
    assert in_words(b"data    ") == "data"
    assert in_words(Registers(r10=SUBFUNC_UNSUPPORTED)) == "not there (unsupported)"
    assert in_words(MemoryErrorExit(0, 4096, True, explicit=True)) == "MEMORY_ERROR, private explicit"
    assert in_words(MemoryFaultExit(0, 4096, False, 14)) == "MEMORY_FAULT, shared EFAULT"
    assert in_words(FailedExit(14)) == "UNKNOWN, EFAULT"
    assert in_words(HltExit()) == "HLT"
    assert in_words(-22) == "-22"


def test_differences_come_first_and_like_answers_are_one_line() -> None:
    shown = [result.differs for result in table.sorted_results(results())]
    assert shown == sorted(shown, reverse=True)
    assert len(set(shown)) == 2
    lines = table.text(results()).splitlines()
    assert lines[0].startswith("differs")
    assert "    thread, gmem-7.2, gmem-inplace" in lines
    assert lines[-1] == table.summary(results())


def kvmsim(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command(["abi", *arguments]) == 0
    return capsys.readouterr().out


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = "bind-size-0,bind-twice"
    rows = [json.loads(line) for line in kvmsim(capsys, "--json", "--situations", names).splitlines()]
    assert [(row["situation"], row["differs"]) for row in rows] == [("bind-twice", True), ("bind-size-0", False)]
    assert rows[0]["answers"]["gmem-6.18"][0]["answer"] == "EINVAL"
    assert rows[0]["answers"]["gmem-6.18"][0]["reason"]
    assert "2 situations: 1 differ" in kvmsim(capsys, "--situations", names)
    assert kvmsim(capsys, "--situations", names, "--markdown").startswith("# What each ABI answers")
    listed = [json.loads(line)["situation"] for line in kvmsim(capsys, "--list", "--json").splitlines()]
    assert listed == [situation.name for situation in SITUATIONS]
    assert "bind-twice" in kvmsim(capsys, "--list")
    page = tmp_path / "page.html"
    kvmsim(capsys, "--situations", names, "--html", str(page))
    assert "bind-twice" in page.read_text()
    for width in (1280, 400):
        check_readable(page, width=width, cells="td")
    assert run_command(["abi", "--html", str(tmp_path)]) == 1
    assert "is a directory" in capsys.readouterr().err


def test_a_situation_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_command(["abi", "--situations", "nothing"])
    assert end.value.code == 2
    assert "'nothing' does not exist" in capsys.readouterr().err


def test_without_descriptors_it_is_one_line() -> None:
    command = [sys.executable, "-c", "from kvmsim.cli import main; main()", "abi"]
    script = f"ulimit -n 12; exec {' '.join(map(repr, command))}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("kvmsim: ")
    assert "Traceback" not in done.stderr


def test_nothing_is_left_open() -> None:
    run(SITUATIONS[0])
    before = len(os.listdir("/proc/self/fd"))
    for situation in SITUATIONS[:20]:
        run(situation)
    assert len(os.listdir("/proc/self/fd")) <= before
