"""The command kvmsim, as users' scripts run it: without a mount."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmsim.cli import run_command

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60


Done = tuple[int, str, str]
"""Exit status, standard output, standard error."""


def kvmsim(*arguments: str, script: str | bytes = "") -> Done:
    """In its own process."""
    done = subprocess.run(
        [sys.executable, "-c", "from kvmsim.cli import main; main()", *arguments],
        input=script if isinstance(script, bytes) else script.encode(),
        capture_output=True,
        timeout=DEADLINE_S,
        cwd=ROOT,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """The same in this process: quicker where there are many cases."""

    def run(*arguments: str, script: str | bytes = "") -> Done:
        stdin = io.BytesIO(script if isinstance(script, bytes) else script.encode())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin))
        try:
            status = run_command(list(arguments))
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run


GOOD = """# shared memory and nothing else
slot set 0 shared gpa=0 size=8K
write 0x10 "hello" shared
read 0x10 5 shared
expect data "hello"
read 1M 4 shared
expect exit KVM_EXIT_MMIO phys_addr=1M len=4 is_write=0
slot delete 9 shared
expect errno EINVAL
sh exit 3
expect status 3
"""


def test_run_of_a_good_script_exits_0(tmp_path: Path) -> None:
    path = tmp_path / "good.kvm"
    path.write_text(GOOD)
    status, out, err = kvmsim("run", str(path))
    assert (status, err) == (0, "")
    assert "hello" in out


@pytest.mark.parametrize("arguments", [["run", "-"], ["run"]])
def test_the_script_may_come_from_standard_input(arguments: list[str], here: Callable[..., Done]) -> None:
    assert here(*arguments, script=GOOD)[0] == 0
    assert here(*arguments, script="read 0 1\n")[0] == 1


def test_run_exits_1_at_the_first_command_that_did_not_do_what_it_should() -> None:
    status, out, _err = kvmsim("run", "-", script="read 0 1\nsh echo not reached\n")
    assert status == 1
    assert "not reached" not in out.replace("sh echo", "")
    assert "MEMORY_ERROR" in out


def test_an_expect_that_does_not_match_is_a_failure(here: Callable[..., Done]) -> None:
    status, out, _err = here("run", "-", script="slot set 0 shared gpa=0 size=4K\nread 0 2 shared\nexpect data ffff\n")
    assert status == 1
    assert "expected data ffff, got data 0000" in out


def test_keep_going_runs_on_and_still_exits_1(here: Callable[..., Done]) -> None:
    status, out, _err = here("run", "-", "--keep-going", script="read 0 1\nsh echo reached\n")
    assert status == 1
    assert "    reached\n" in out


@pytest.mark.parametrize(
    ("script", "place", "word"),
    [
        ("vcpu 1\nraed 0 1\n", "line 2, column 1:", "did you mean 'read'"),
        ("read 0 many\n", "line 1, column 8:", "many"),
        ("\n\n  slot set 0 privat gpa=0 size=4K\n", "line 3, column 14:", "privat"),
        ('write 0 "open\n', "line 1, column 9:", ""),
        ("expect ok\n", "line 1, column 1:", "previous"),
        ("slot set 0 private gpa=0 size=4K\n", "line 1, column 33:", "file="),
    ],
)
def test_a_script_that_can_not_be_parsed_exits_2_with_line_and_column(
    script: str, place: str, word: str, here: Callable[..., Done]
) -> None:
    status, out, err = here("run", "-", script=script)
    assert status == 2
    assert out == "", "nothing was run"
    assert place in err and word in err
    assert err.count("\n") == 1


def test_nothing_of_a_script_with_a_mistake_is_run(tmp_path: Path, here: Callable[..., Done]) -> None:
    status, _out, _err = here("run", "-", script=f"sh touch {tmp_path}/made\nnonsense\n")
    assert status == 2
    assert not (tmp_path / "made").exists()


def test_bytes_that_are_not_text_exit_2(here: Callable[..., Done]) -> None:
    status, _out, err = here("run", "-", script=b"read 0 1\n\xff\xfe\n")
    assert status == 2
    assert "line 2, column 1" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["jump"],
        ["run", "/does/not/exist"],
        ["run", "/"],
        ["run", "-", "--policy", "sideways"],
        ["run", "-", "--policy", "overlay", "--under", "rug"],
        ["run", "-", "--max-slots", "0"],
        ["run", "-", "--max-slots", "32765"],
        ["run", "-", "--max-slots", "many"],
        ["attach"],
        ["attach", "file", "--gpa", "high"],
        ["run", "-", "--max-slots", "9" * 5000],
        ["race", "fault-x-fault", "--count", "9" * 5000],
        ["compare", "--max-slots", "9" * 5000],
        ["--nonsense", "run", "-"],
        ["--", "run", "-"],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(arguments: list[str], here: Callable[..., Done]) -> None:
    status, _out, err = here(*arguments)
    assert status == 2
    assert "kvmsim" in err.splitlines()[-1]
    assert len(err) < 1000


def test_json_is_one_object_per_command_with_the_keys_of_the_contract() -> None:
    status, out, _err = kvmsim("run", "-", "--json", script=GOOD)
    records = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [record["line"] for record in records] == list(range(2, 12))
    for record in records:
        assert {"line", "cmd", "ok", "errno", "exit", "data"} <= set(record)
    by_line = {record["line"]: record for record in records}
    assert (by_line[4]["cmd"], by_line[4]["ok"], by_line[4]["data"]) == ("read", True, b"hello".hex())
    assert (by_line[6]["ok"], by_line[6]["exit"]) == (False, "KVM_EXIT_MMIO")
    assert by_line[6]["exit_fields"] == {"phys_addr": 1 << 20, "len": 4, "is_write": False}
    assert (by_line[8]["ok"], by_line[8]["errno"]) == (False, "EINVAL")
    assert by_line[10]["status"] == 3


def test_json_of_a_failure_says_so(here: Callable[..., Done]) -> None:
    status, out, _err = here("run", "-", "--json", script="read 0 1\n")
    (record,) = [json.loads(line) for line in out.splitlines()]
    assert (status, record["failed"]) == (1, True)


def test_the_library_of_ciphers_is_loaded_for_encryption_alone() -> None:
    """It would double the time that kvmsim takes to start."""
    for options, loaded in (("", False), ("'--memory-encryption', 'on'", True)):
        program = (
            "import sys; from kvmsim.cli import run_command;"
            f"sys.argv[1:] = ['run', {options}]; run_command(sys.argv[1:]); print('cryptography' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=b"info vms\n",
            capture_output=True,
            timeout=DEADLINE_S,
            cwd=ROOT,
            check=True,
        )
        assert done.stdout.decode().splitlines()[-1] == str(loaded)


def test_tampering_goes_with_encryption(here: Callable[..., Done]) -> None:
    status, out, err = here("run", "--tamper", "refuse", script="info vms\n")
    assert (status, out, err) == (2, "", "kvmsim: --tamper goes with --memory-encryption on\n")
    assert here("run", "--memory-encryption", "on", "--tamper", "refuse", script="info vms\n")[0] == 0


def test_policy_and_max_slots_reach_the_machine(here: Callable[..., Done]) -> None:
    script = "slot set 1 shared gpa=0 size=4K\nexpect errno EINVAL\ninfo vms\n"
    status, out, _err = here("run", "-", "--json", "--max-slots", "1", "--policy", "punch", script=script)
    assert status == 0
    assert json.loads(out.splitlines()[-1])["info"][0]["policy"] == "punch"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "No such file"),
        (b"", "not a file on a memfsd mount"),
        (b"x" * 100, "not a file on a memfsd mount"),
        (b"x" * 4096, "not a file on a memfsd mount"),
    ],
    ids=["missing", "empty", "plain", "a whole page"],
)
def test_attach_to_what_is_not_a_sealed_file_is_one_line(
    tmp_path: Path, content: bytes | None, word: str, here: Callable[..., Done]
) -> None:
    path = tmp_path / "guest's mem"
    if content is not None:
        path.write_bytes(content)
    status, out, err = here("attach", str(path))
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert err.count("guest's mem") == 1, "the file is named once"
    assert word in err


def test_help_names_every_command(here: Callable[..., Done]) -> None:
    assert "attach" in here("--help")[1]
    assert "slot punch" in here("run", "--help")[1]


def test_a_reader_that_leaves_is_no_traceback() -> None:
    script = "info vms\n" * 2000
    done = subprocess.run(
        f"'{sys.executable}' -c 'from kvmsim.cli import main; main()' run - | head -n 1",
        shell=True,
        input=script.encode(),
        capture_output=True,
        timeout=DEADLINE_S,
        cwd=ROOT,
        check=False,
    )
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["run --help", "race --list", "race --points"])
def test_a_reader_that_goes_away_is_no_error_to_tell(command: str) -> None:
    script = f"set -o pipefail; {Path(sys.executable).with_name('kvmsim')} {command} | head -c 1"
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 141), "141 when it was not done writing; 1 is a failure of what was asked"


ESCAPE = "\033[2J"


@pytest.mark.parametrize(
    "words",
    [
        ["run", f"/nope/{ESCAPE}"],
        ["run", "-", "--journal", f"/nope/{ESCAPE}"],
        ["run", "-", ESCAPE],
        ["attach", f"/nope/{ESCAPE}"],
        ["journal", "show", f"/nope/{ESCAPE}"],
        ["journal", "check", "FILE"],
        ["compare", "--plot", f"/nope/{ESCAPE}.png"],
        ["compare", "--plot", f"/nope/{ESCAPE}"],
        ["compare", f"/nope/{ESCAPE}"],
    ],
)
def test_names_in_refusals_do_not_control_the_terminal(
    here: Callable[..., Done], tmp_path: Path, words: list[str]
) -> None:
    no_journal = tmp_path / f"{ESCAPE}.journal"
    no_journal.write_text("no journal\n")
    status, said, complaint = here(*(str(no_journal) if word == "FILE" else word for word in words))
    assert (status in (1, 2), said) == (True, "")
    assert complaint.endswith("\n")
    assert complaint[:-1].isprintable()
    assert "\\033" in complaint


def test_what_a_shell_says_does_not_control_the_terminal(here: Callable[..., Done]) -> None:
    script = "sh printf 'a\\tb\\033[2J\\n'"
    status, said, _ = here("run", script=script)
    assert (status, said) == (0, f"1> {script}\n    a\tb\\033[2J\n")
    assert json.loads(here("run", "--json", script=script)[1])["text"] == f"a\tb{ESCAPE}"


def test_names_of_vms_are_quoted(here: Callable[..., Done]) -> None:
    """What a script may hold and a terminal should not get: marks that turn the direction of writing."""
    name, shown = "vm\u202e1 x", "'vm'$'\\342\\200\\256''1 x'"
    script = f"vm '{name}'\ninfo vms\ninfo ept vm='{name}y'\n"
    _, said, _ = here("run", script=script)
    assert f"* {shown}: vcpus" in said
    assert f"there is no VM {shown[:-1]}y'" in said
    assert all(line.isprintable() for line in said.splitlines())
    _, said, _ = here("run", "--json", script=script)
    assert json.loads(said.splitlines()[1])["info"][-1]["vm"] == name
