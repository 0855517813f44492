"""--trace, -e and filters on a command line."""

import argparse
from pathlib import Path

import pytest

from memfsd.common.traceoptions import add_trace_arguments, open_asked
from memfsd.uapi.errors import Refused


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="program")
    add_trace_arguments(parser, "-f", "--filter")
    return parser.parse_args(words)


def test_a_filter_is_that_of_the_event_before_it() -> None:
    words = ["--trace", "x", "-e", "kvm", "-e", "kvm:kvm_mmio", "-f", "gpa > 1", "-e", "memfsd"]
    assert asked(*words).trace_events == [("kvm", ""), ("kvm:kvm_mmio", "gpa > 1"), ("memfsd", "")]


@pytest.mark.parametrize("words", [["-f", "gpa > 1"], ["-e", "kvm_mmio", "-f", "gpa > 1", "-f", "gpa > 2"]])
def test_a_filter_without_its_event_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        asked(*words)
    assert "a filter follows the -e that it is for" in capsys.readouterr().err


def test_events_without_a_trace_are_refused() -> None:
    with pytest.raises(Refused, match="name its file with --trace"):
        open_asked(asked("-e", "kvm"), "kvmsim")
    assert open_asked(asked(), "kvmsim") is None


def test_a_bad_filter_is_refused_before_there_is_a_file(tmp_path: Path) -> None:
    words = ["--trace", str(tmp_path / "trace"), "-e", "kvm:kvm_page_fault", "-f", "gpa >="]
    with pytest.raises(Refused, match="filter 'gpa >=': column 7: a value is missing here"):
        open_asked(asked(*words), "kvmsim")
    assert not (tmp_path / "trace").exists()


def test_what_is_opened_begins_when_it_is_called(tmp_path: Path) -> None:
    begin = open_asked(asked("--trace", str(tmp_path / "trace")), "memfsd")
    assert begin is not None
    assert (tmp_path / "trace").read_bytes() == b""
    begin(print).close()
    assert b"# side: memfsd" in (tmp_path / "trace").read_bytes()
