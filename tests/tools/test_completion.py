"""tools/completion.bash offers what the commands take, and nothing else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.threads import DEADLINE_S

FILE = Path(__file__).parents[2] / "tools/completion.bash"
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}


def completed(*words: str) -> list[str]:
    """What tab offers after these words, the last of which is being typed."""
    script = (
        f'source {FILE}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        'function=$(complete -p "$1"); function=${function#*-F }; function=${function%% *};'
        '"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, timeout=DEADLINE_S, env=ENVIRONMENT
    )
    assert done.stderr == ""
    return done.stdout.split()


def said(*words: str) -> str:
    done = subprocess.run([BIN / words[0], *words[1:]], capture_output=True, text=True, timeout=DEADLINE_S)
    return done.stdout + done.stderr


def options(*command: str) -> set[str]:
    """Those that --help lists."""
    help_ = said(*command, "--help")
    listed = help_[help_.index("\noptions:") :].partition("\n\n")[0]
    lines = re.findall(r"^  (-.*?)(?:  |$)", listed, re.MULTILINE)
    return {option for line in lines for option in re.findall(r"(?<![\w-])--?\w[\w-]*", line)}


def commands(program: str) -> set[str]:
    return set(re.findall(r"^    ([a-z]+)(?: |$)", said(program, "--help"), re.MULTILINE))


@pytest.mark.parametrize("program", ["memfs", "kvmsim"])
def test_the_commands_are_offered(program: str) -> None:
    assert set(completed(program, "")) - {"-h", "--help", "--version"} == commands(program)
    assert len(commands(program)) >= 2


@pytest.mark.parametrize(
    "command",
    [
        *(("memfs", name) for name in ("create", "seal", "stat", "map", "fallocate", "bind", "move", "check", "top")),
        *(("memfs", name) for name in ("compact", "kcore", "poison", "swapout", "vms")),
        *(("kvmsim", name) for name in ("run", "attach", "shell", "monitor", "race", "compare", "vmms", "abi", "stat")),
        *(("kvmsim", "journal", name) for name in ("check", "show")),
        *(("kvmsim", "trace", name) for name in ("list", "convert")),
        ("kvmsim", "perf", "report"),
        ("memfsd",),
    ],
    ids=" ".join,
)
def test_the_options_are_those_of_the_help(command: tuple[str, ...]) -> None:
    assert set(completed(*command, "-")) == options(*command)
    assert "--help" in options(*command)


def test_what_is_typed_narrows_it() -> None:
    assert completed("memfs", "s") == ["seal", "stat", "swapout", "swapoff"]
    assert completed("memfs", "create", "--page-size", "") == ["4K", "2M", "1G"]
    assert completed("memfs", "seal", "file", "guest,s") == ["guest,shrink", "guest,seal"]
    assert completed("memfsd", "-o", "guest,open=r") == ["guest,open=rw"]
    assert completed("kvmsim", "run", "--policy", "o") == ["overlay"]
    assert completed("kvmsim", "run", "--memory-encryption", "o") == ["on"]
    assert completed("kvmsim", "attach", "--tamper", "r") == ["refuse"]
    assert completed("kvmsim", "compare", "--designs", "punch,r") == ["punch,recreate"]
    assert completed("kvmsim", "vmms", "--models", "qemu,a") == ["qemu,alioth"]
    assert completed("kvmsim", "compare", "--p") == ["--page-sizes", "--plot"]


def test_the_mount_options_are_those_that_there_are() -> None:
    refused = subprocess.run(
        [BIN / "memfsd", "-o", "x", "/nowhere"], capture_output=True, text=True, timeout=DEADLINE_S
    )
    named = set(refused.stderr.partition("choose from ")[2].rpartition(" (")[0].split(", "))
    assert {word.partition("=")[0] for word in completed("memfsd", "-o", "")} == named


@pytest.mark.parametrize("command", ["run", "attach", "shell"])
def test_the_choices_are_those_of_the_help(command: str) -> None:
    said = subprocess.run(
        [BIN / "kvmsim", command, "--help"], capture_output=True, text=True, timeout=DEADLINE_S
    ).stdout
    for option, choices in re.findall(r"^  (--[\w-]+) \{(.*?)\}", said, re.MULTILINE):
        assert completed("kvmsim", command, option, "") == choices.split(","), option


def test_the_scenarios_are_those_that_there_are() -> None:
    listed = subprocess.run([BIN / "kvmsim", "race", "--list", "--json"], capture_output=True, timeout=60, check=True)
    names = {next(iter(row.values())) for row in json.loads(listed.stdout)}
    assert set(completed("kvmsim", "race", "")) == names
    assert completed("kvmsim", "race", "fault-x-p") == [name for name in names if name.startswith("fault-x-p")]
    assert completed("kvmsim", "journal", "show", "--kind", "get_pfn,z") == ["get_pfn,zapped"]


def test_values_and_files_are_left_to_the_shell() -> None:
    assert completed("memfs", "top", "-n", "") == []
    assert completed("memfs", "stat", "/etc/pas") == []
