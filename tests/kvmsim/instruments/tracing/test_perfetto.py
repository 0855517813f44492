"""kvmsim trace convert: the file parsed back by Perfetto's own messages."""

import json
from pathlib import Path
from typing import Any

import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2

from kvmsim.cli import run_command
from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.journaled import record_run
from tests.support.traced import VM_PID, write_traces


def parsed(path: Path) -> Any:
    trace = perfetto_trace_pb2.Trace()
    trace.ParseFromString(path.read_bytes())
    return trace


def convert(out: Path, *paths: Path) -> Any:
    assert run_command(["trace", "convert", *map(str, paths), "-o", str(out), "--json"]) == 0
    return parsed(out)


def test_traces_of_both_sides_parsed_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = convert(tmp_path / "out", *write_traces(tmp_path))
    counted = json.loads(capsys.readouterr().out)
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")}
    events = [p for p in trace.packet if p.HasField("track_event")]
    assert len(tracks) == counted["tracks"]
    names = {one.name for one in tracks.values()}
    assert names >= {"kvmsim", "memfsd", "vm0 vCPU 0", "vm0 vCPU 1", "store", "inode 2"}
    assert {one.process.pid for one in tracks.values() if one.HasField("process")} >= {VM_PID}
    assert all(one.parent_uuid in tracks for one in tracks.values() if not one.HasField("process"))
    for p in events:
        assert p.track_event.track_uuid in tracks
        assert p.timestamp_clock_id == perfetto_trace_pb2.BUILTIN_CLOCK_MONOTONIC
    (end,) = [p.track_event for p in events if p.track_event.terminating_flow_ids]
    flows = [p.track_event for p in events if p.track_event.flow_ids]
    assert [one.name for one in flows] == ["INVALIDATE_BEGIN"] * 2
    assert [list(one.flow_ids) for one in flows] == [list(end.terminating_flow_ids)] * 2
    counters = {tracks[p.track_event.track_uuid].name for p in events if p.track_event.type == 4}
    assert counters == {"pool", "private", "pending", "vm0 shared", "vm0 doubled"}
    (fault,) = [p.track_event for p in events if p.track_event.name == "kvm_page_fault"]
    assert {a.name: a.uint_value for a in fault.debug_annotations}["fault_address"] == 0x1000


def test_journals_of_both_sides_parsed_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(store: LocalStore, one: LocalVm, two: LocalVm) -> None:
        for vm in (one, two):
            vm.write(page(16), b"x")
        store.punch("one", 0, 16)

    trace = convert(tmp_path / "out", *record_run(tmp_path, run))
    counted = json.loads(capsys.readouterr().out)
    assert counted["flows"] >= 1
    names = [p.track_event.name for p in trace.packet if p.HasField("track_event")]
    assert "GET_PFN" in names
    assert "INVALIDATE_BEGIN" in names
    assert "acknowledged" in names
    assert "kvmsim_zapped" in names


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "perfetto.protos.perfetto.trace", None)
    store, _ = write_traces(tmp_path)
    assert run_command(["trace", "convert", str(store), "-o", str(tmp_path / "out")]) == 2
    assert "pip install perfetto" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_viewers_axis_is_the_clock_of_the_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Perfetto's viewer drops, as an import error, each event whose clock it cannot convert."""
    trace = convert(tmp_path / "out", *write_traces(tmp_path))
    snapshot = trace.packet[0].clock_snapshot
    assert {p.timestamp_clock_id for p in trace.packet if p.HasField("track_event")} == {snapshot.primary_trace_clock}
    assert snapshot.primary_trace_clock in {clock.clock_id for clock in snapshot.clocks}
