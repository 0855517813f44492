"""Programs while they start: Ctrl-C, closed streams, little memory; and what they load."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
DEADLINE_S = 60
SLOW_MODULE = """
import os
os.write({fd}, b"loading")
while True:
    os.read({until}, 1)
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (["kvmsim", "run", "/dev/null"], "numpy"),
        (["kvmsim", "journal", "check", "x"], "msgspec"),
        (["kvmsim", "race", "--list"], "msgspec"),
        (["memfs", "check", "/"], "msgspec"),
        (["memfsd", "-f", "/nowhere"], "msgspec"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_ctrl_c_while_a_program_is_loading_is_no_traceback(command: list[str], module: str, tmp_path: Path) -> None:
    """In the place of a module there is one that takes forever to load."""
    loading, report = os.pipe()
    never, held = os.pipe()
    (tmp_path / f"{module}.py").write_text(SLOW_MODULE.format(fd=report, until=never))
    program = subprocess.Popen(
        [BIN / command[0], *command[1:]],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        pass_fds=(report, never),
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert os.read(loading, 7) == b"loading"
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=DEADLINE_S)
        assert (program.returncode, said) == (130, b"")
    finally:
        program.kill()
        program.wait()
        for fd in (loading, report, never, held):
            os.close(fd)


HEAVY = {
    "numpy",
    "trio",
    "pyfuse3",
    "matplotlib",
    "rich",
    "unicorn",
    "kvmsim.instruments.compare.command",
    "kvmsim.instruments.race.cli",
}
"""What takes the time to start is mostly what is imported."""
KVMSIM = [
    "run",
    "attach",
    "shell",
    "monitor",
    "top",
    "race",
    "journal",
    "report",
    "trace",
    "stat",
    "perf",
    "vmms",
    "abi",
    "compare",
]
HELP = [
    ["kvmsim"],
    *(["kvmsim", command] for command in KVMSIM),
    ["kvmsim", "journal", "check"],
    ["kvmsim", "trace", "convert"],
    ["kvmsim", "perf", "report"],
    ["memfsd"],
    ["memfs"],
    ["memfs", "top"],
    *([sys.executable, "-m", tool] for tool in ("benchlib", "soaklib", "mutatelib")),
    [sys.executable, "tools/oracle"],
    [sys.executable, "tools/record-kvm"],
]


def loaded(*command: str) -> set[str]:
    """The modules that a program imports; it must not fail."""
    program = command[0] if command[0] == sys.executable else str(BIN / command[0])
    done = subprocess.run(
        [program, *command[1:]],
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr.decode()
    return {line.split("|")[-1].strip() for line in done.stderr.decode().splitlines()}


@pytest.mark.parametrize("command", HELP, ids=lambda words: " ".join(words).removeprefix(sys.executable))
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    found = loaded(*command, "--help")
    assert "argparse" in found
    assert found & HEAVY == set()


def test_no_command_of_kvmsim_is_missing_above() -> None:
    done = subprocess.run([BIN / "kvmsim", "--help"], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert re.findall(r"^    ([a-z]+) ", done.stdout, re.MULTILINE) == list(KVMSIM)


@pytest.mark.parametrize(
    ("command", "needed"), [(("kvmsim", "--version"), set()), (("kvmsim", "run", "/dev/null"), {"numpy"})]
)
def test_a_command_loads_what_it_needs(command: tuple[str, ...], needed: set[str]) -> None:
    assert loaded(*command) & HEAVY == needed


def test_the_help_of_kvmsim_itself_needs_no_messages() -> None:
    """Nor what makes classes: msgspec and dataclasses are a third of an import of numpy."""
    assert loaded("kvmsim", "--help") & {"msgspec", "dataclasses", "subprocess"} == set()


@pytest.mark.parametrize("module", ["kvmsim", "memfsd"])
def test_a_package_runs_as_a_module_and_tells_its_version(module: str) -> None:
    said = [
        subprocess.run(
            [*program, "--version"], capture_output=True, text=True, cwd=ROOT, timeout=DEADLINE_S, check=True
        ).stdout
        for program in ([sys.executable, "-m", module], [str(BIN / module)])
    ]
    assert said[0] == said[1]
    assert said[0].startswith(f"{module} ")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("kvmsim run <&-", "kvmsim: standard input is closed"),
        ("kvmsim run /dev/null >&-", "kvmsim: standard output: it is not open for writing"),
        ("kvmsim --help >&-", "kvmsim: standard output: it is not open for writing"),
        ("kvmsim --help >/dev/full", "kvmsim: standard output: No space left on device"),
        ("kvmsim --help 1</dev/null", "kvmsim: standard output: it is not open for writing"),
        ("memfs --help >&-", "memfs: standard output: it is not open for writing"),
        ("memfsd --version >/dev/full", "memfsd: standard output: No space left on device"),
        ("kvmsim run --bogus", "kvmsim run: unrecognized arguments: --bogus: see kvmsim run --help"),
        ("kvmsim", "kvmsim: the following arguments are required: COMMAND: see kvmsim --help"),
    ],
)
def test_what_is_wrong_with_a_command_line_is_one_line(command: str, said: str) -> None:
    done = subprocess.run(
        ["/bin/bash", "-c", f"{BIN}/{command}"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("limit", ["-f 0", "-f 8", "-v 100000", "-v 200000", "-v 400000"])
def test_limits_of_the_shell_are_no_traceback(limit: str) -> None:
    script = "slot set 0 shared gpa=0 size=1G\\nwrite 0 aa shared\\ntouch 0 64M shared"
    done = subprocess.run(
        ["/bin/bash", "-c", f"ulimit {limit}; printf '{script}' | {BIN}/kvmsim run -"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 1), (done.returncode, done.stdout, done.stderr)
