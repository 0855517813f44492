"""docs/monitor.md: its reference is the schema's, and its session is executed."""

import json
import re
from contextlib import closing
from pathlib import Path

from kvmsim.instruments.monitor.handlers import Handlers
from kvmsim.instruments.monitor.schema import BY_NAME, EVENTS
from tests.support.both_sides import LocalStore
from tests.support.monitor_doc import FILE, documented, render
from tests.support.qmp import Raw, monitored
from tests.support.script_lines import Lines


def test_the_reference_is_the_schema() -> None:
    assert documented() == render(), "python -m tests.support.monitor_doc"


def test_every_command_has_a_handler(tmp_path: Path) -> None:
    with closing(Lines().executor) as executor, monitored(executor, tmp_path / "qmp") as monitor:
        handlers = Handlers(executor, monitor)
        assert handlers._handlers.keys() | {"qmp_capabilities"} == BY_NAME.keys()


def test_the_events_are_those_that_are_emitted() -> None:
    sources = "".join(path.read_text() for path in (FILE.parents[1] / "kvmsim/instruments/monitor").glob("*.py"))
    assert set(re.findall(r'emit\(\s*"([A-Z_]+)"', sources)) == {event.name for event in EVENTS}


def test_the_session_is_true(store: LocalStore, tmp_path: Path) -> None:
    (session,) = re.findall(r"```qmp\n(.*?)```", FILE.read_text(), re.DOTALL)
    store.create("file", 64)
    lines = Lines(store=store)
    lines.ok(f"slot set 0 private gpa=0 size=256K file={store.path('file')}", "write 0x2000 01")
    with closing(lines.executor), monitored(lines.executor, tmp_path / "qmp"), closing(Raw(tmp_path / "qmp")) as raw:
        for line in session.splitlines():
            way, _, text = line.partition(" ")
            if way == "->":
                raw.send(text.encode() + b"\n")
                continue
            said = json.dumps(raw.receive())
            pattern = ".*".join(re.escape(part) for part in text.split("[...]"))
            assert re.fullmatch(pattern, said), f"{text}\nbut it said\n{said}"
