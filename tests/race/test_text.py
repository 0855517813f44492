"""Scenario files, what a guest may read, and replay files."""

import errno
import json
from pathlib import Path

import pytest

from kvmsim.instruments.race import explore, record
from kvmsim.instruments.race.history import History
from kvmsim.instruments.race.scenario import ScenarioError, load, parse, with_page_maps

GOOD = """\
# what it is about
store frames=16 resize=any
file mem 4
vm vm0 vcpus=2
before vmm: slot 0 mem 0 0 4   # pairs
vcpu1: write 1 "a b"; read 1
host: punch mem 1 1
outside: kill vm0
after vcpu0: read 1
"""


def test_a_scenario_says_what_there_is_and_who_acts() -> None:
    scenario = parse("good", GOOD)
    assert scenario.about == "what it is about"
    assert (scenario.frames, scenario.resize_any, scenario.files, scenario.vms) == (16, True, {"mem": 4}, {"vm0": 2})
    assert [actor.name for actor in scenario.actors] == ["vm0.vcpu1", "host", "outside"]
    assert [str(command) for command in scenario.actors[0].commands] == ['write 1 "a b"', "read 1"]
    assert scenario.before[0].commands[0].arguments == (0, "mem", 0, 0, 4)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("vcpu7: read 1", "vm0 has 2 vCPUs"),
        ("vm9.vcpu0: read 1", "no VM vm9"),
        ("host: read 1", "host has no command"),
        ("host: punch other 0 1", "no file other"),
        ("host: punch mem 0", "punch FILE PGOFF PAGES"),
        ("host: punch mem 0 99999", "not 0 to"),
        ("outside: kill vm9", "no process vm9"),
        ("vcpu1: read 1", "is an actor already"),
        ("vcpu001: read 1", "is an actor already: write its commands in one line"),
        ("before outside: kill vm0", "only during the race"),
        ("after outside: cut vm0", "only during the race"),
        ("outside2: stop store 3", "no VM store"),
        ("host: punch mem zero 1", "'zero' is not a number"),
        ("host: punch mem " + "9" * 5000 + " 1", "is not a number"),
        ("store frames=0", "at least one frame"),
        ("vcpu0: write 1 'a\0b'", r"'a\\x00b' is not 1 to 8 bytes"),
        ("nobody: read 1", "is not an actor"),
        ("host: ;", "does nothing"),
        ("vcpu0: code store 1 2 0", "0 times, or instructions, is nothing"),
        ("vcpu0: code store 1 2 1 0", "0 times, or instructions, is nothing"),
        ("vcpu0: place nothing 1", "'nothing' is not a program"),
        ("nonsense", "expected store, file, device, vm"),
        ("store color=red", "store has frames=N"),
        ('vcpu0: write 1 "far too long a text"', "1 to 8 bytes"),
        ("vm vm1 vcpus=99", "a VM has 1 to 8"),
        ('vcpu0: write 1 "open', "No closing quotation"),
        ("file mem 8", "file mem is said twice"),
        ("device mem 8", "file mem is said twice"),
        ("vm vm0", "vm vm0 is said twice"),
        ("vm vm1 vcpus=1 vcpus=2", "vcpus of vm1 is said twice"),
        ("store frames=8", "store frames is said twice"),
    ],
)
def test_a_line_that_can_not_be_understood_is_named(line: str, why: str) -> None:
    with pytest.raises(ScenarioError, match=r"line 10: .*" + why):
        parse("bad", GOOD + line + "\n")


def test_page_maps_are_in_the_text_so_that_a_record_has_them() -> None:
    plain = parse("plain", "file mem 8\n  vm vm0 vcpus=2 # two\nvm vm1 page-map\nvcpu0: read 0\n")
    every, none = with_page_maps(plain, on=True), with_page_maps(plain, on=False)
    assert (every.page_maps, none.page_maps) == ({"vm0", "vm1"}, set())
    assert parse("again", every.text).page_maps == {"vm0", "vm1"}
    assert every.vms == none.vms == {"vm0": 2, "vm1": 1}


def test_a_scenario_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="fault-x-punch"):
        load("no-such-scenario")
    with pytest.raises(OSError, match="No such file"):
        load(str(tmp_path / "none.race"))
    (tmp_path / "own.race").write_text(GOOD)
    assert load(str(tmp_path / "own.race")).name == "own"
    (tmp_path / "own.race").write_text(GOOD + "nonsense\n")
    with pytest.raises(ScenarioError, match=f"{tmp_path}/own.race, line 10"):
        load(str(tmp_path / "own.race"))


PAGE = ("mem", 1)


def test_a_guest_reads_the_last_write_or_one_that_is_under_way() -> None:
    history = History()
    history.end(history.begin([PAGE], b"old"))
    running = history.begin([PAGE], b"new")
    start = history.tick()
    assert history.check(PAGE, b"old", start) == history.check(PAGE, b"new", start) == ""
    history.end(running)
    assert history.check(PAGE, b"new", history.tick()) == ""
    assert "'old'" in history.check(PAGE, b"old", history.tick())


def test_after_a_punch_the_page_is_zero_until_it_is_written() -> None:
    history = History()
    assert history.check(PAGE, bytes(3), history.tick()) == ""
    history.end(history.begin([PAGE], b"old"))
    assert "zeros" in history.check(PAGE, bytes(3), history.tick())
    history.end(history.begin([PAGE], bytes(3)))
    assert "'old'" in history.check(PAGE, b"old", history.tick())
    assert history.check(PAGE, bytes(3), history.tick()) == ""


def test_a_write_that_was_refused_was_not() -> None:
    history = History()
    history.end(history.begin([PAGE], b"new"), happened=False)
    assert "'new'" in history.check(PAGE, b"new", history.tick())


def test_a_record_stands_alone(tmp_path: Path) -> None:
    scenario = load("fault-x-punch")
    result = next(explore.seeded(scenario, 1, 1))
    record.save(record.record_file(tmp_path / "a.replay"), scenario, result)
    again, schedule = record.read(tmp_path / "a.replay")
    assert (again.text, schedule) == (scenario.text, result.schedule)


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 99},
        {"turns": 3},
        {"text": "nonsense"},
        {"turns": [["a"]]},
        {"turns": [["host", float("inf")]]},
        {"turns": [["host", 10**9]]},
        {"turns": [["host", -1]]},
    ],
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, damage: dict[str, object]) -> None:
    scenario = load("fault-x-punch")
    path = tmp_path / "a.replay"
    record.save(record.record_file(path), scenario, next(explore.seeded(scenario, 1, 1)))
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ScenarioError):
        record.read(path)
    for text in ("{", "[" * 200_000, "[]"):
        path.write_text(text)
        with pytest.raises(ScenarioError, match="not a replay file"):
            record.read(path)


def test_a_record_is_whole_or_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = load("fault-x-punch")
    path = tmp_path / "a.replay"
    before = '{"format": "of the one before"}'
    path.write_text(before)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        record.save(record.record_file(path), scenario, next(explore.seeded(scenario, 1, 1)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.replay"]
    assert path.read_text() == before
