"""Tab and the history, as typed at a terminal."""

from pathlib import Path

from tests.support.prompt import PROMPT, PromptTerminal
from tests.support.terminal import CTRL_D, DEADLINE_S, TAB


def test_tab_completes_the_words_of_a_command(terminal: PromptTerminal) -> None:
    terminal.type(f"inf{TAB}sl{TAB}\n")
    assert terminal.until("\n").strip("\a") == "info slots \n"
    assert "unknown" not in terminal.until(PROMPT)


def test_two_tabs_list_what_may_follow(terminal: PromptTerminal) -> None:
    terminal.type(f"slot {TAB}{TAB}")
    listed = terminal.until(f"{PROMPT}slot ").removesuffix(f"{PROMPT}slot ").replace("\a", "").split()
    assert listed == ["slot", "delete", "delete2", "dirty", "punch", "set", "set2"]
    terminal.type(f"pun{TAB}")
    terminal.until("punch ")


def test_tab_completes_the_name_of_a_file(terminal: PromptTerminal, tmp_path: Path) -> None:
    (tmp_path / "firmware.bin").write_bytes(b"code")
    terminal.run("slot set 0 shared gpa=0 size=64K")
    assert terminal.run(f"load 0x8000000000000 {tmp_path}/firm{TAB}") == "    4 bytes\n"
    assert terminal.run("read 0 4 shared").endswith("|code|\n")


def test_lines_are_there_again_in_the_next_session(tmp_path: Path) -> None:
    with PromptTerminal(tmp_path) as first:
        first.until(PROMPT)
        first.run("info vms")
        first.type(CTRL_D)
        assert first.process.wait(DEADLINE_S) == 0
    with PromptTerminal(tmp_path) as second:
        second.until(PROMPT)
        assert second.run("\x10").startswith("    * vm0"), "Ctrl-P, the line before"
