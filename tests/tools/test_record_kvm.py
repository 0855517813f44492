"""tools/record-kvm: what it writes, and what it says where it cannot."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fidelity import cli, kvm
from fidelity.cases import Case, region
from fidelity.recording import Recorded, Recording, load, record, save

from tests.support.threads import DEADLINE_S

TOOLS = Path(__file__).parents[2] / "tools"
no_kvm_reason = kvm.unavailable()
needs_kvm = pytest.mark.skipif(no_kvm_reason is not None, reason=no_kvm_reason or "")


def test_what_is_saved_can_be_loaded_and_saved_again_the_same(tmp_path: Path) -> None:
    case = Case("slot/some", (region(0, 0, 4096), region(0, 1, 2**64 - 1)), "the weather")
    plain = Case("slot/other", (region(1, 0, 0),))
    recording = Recording(
        {"kernel": "1.0", "machine": "pdp11", "date": "1970-01-01"},
        (
            Recorded(case, ({"result": 0}, {"errno": "EINVAL"})),
            Recorded(plain, ({"errno": "EINVAL"},)),
        ),
    )
    save(recording, tmp_path / "first")
    assert load(tmp_path / "first") == recording
    save(load(cli.RECORDING), tmp_path / "second")
    assert (tmp_path / "second").read_text() == cli.RECORDING.read_text()


def test_a_machine_without_kvm_gets_one_line_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def absent(path: str, flags: int) -> int:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    monkeypatch.setattr(os, "open", absent)
    output = tmp_path / "recording.json"

    assert cli.main(["--date", "2000-01-01", "--output", str(output)]) == 1

    said = capsys.readouterr()
    assert said.err == ("tools/record-kvm: nothing recorded: /dev/kvm cannot be opened: No such file or directory\n")
    assert (said.out, output.exists()) == ("", False)


def test_a_case_that_can_not_be_asked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"slot/broken: KVM could not be asked: status 1"):
        record([Case("slot/broken", ())], "2000-01-01")


@needs_kvm
def test_an_op_that_does_not_exist_is_an_error_and_no_answer() -> None:
    with pytest.raises(RuntimeError, match="unknown op nonsense"):
        kvm.ask([{"op": "nonsense"}])


@needs_kvm
def test_each_case_has_a_vm_of_its_own() -> None:
    ops = [region(0, 0, 4096), region(1, 0, 4096)]
    for _ in range(2):
        assert kvm.ask(ops) == [{"result": 0}, {"errno": "EEXIST"}]


@needs_kvm
def test_a_recording_tells_kernel_machine_and_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "CASES", [Case("slot/only", (region(0, 0, 0),))])
    output = tmp_path / "recording.json"

    assert cli.main(["--date", "2000-01-01", "--output", str(output)]) == 0

    recording = load(output)
    kernel = recording.meta["kernel"]
    assert recording.meta == {"kernel": kernel, "machine": os.uname().machine, "date": "2000-01-01"}
    assert re.fullmatch(r"[0-9.]+", kernel) and os.uname().release.startswith(kernel)
    assert recording["slot/only"].answers == ({"errno": "EINVAL"},)


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), ([], 2), (["--render", "--date", "x"], 2)])
def test_the_command_runs_by_itself_from_anywhere(arguments: list[str], status: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(TOOLS / "record-kvm"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "tools/record-kvm" in done.stdout + done.stderr
