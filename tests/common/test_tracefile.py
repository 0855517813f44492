"""A trace: what is written, what a full or stuck place does to it, and that nothing else stops."""

import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from memfsd.common import _ring, tracefile
from memfsd.common.traceevents import EVENTS, FAULT_WAITED, KICKED, Event
from memfsd.common.tracefile import TraceFile, open_trace, wanted
from memfsd.uapi.errors import Refused
from tests.support.threads import until
from tests.support.traced import events, fault, tracing


def test_lines_are_those_of_the_kernels_trace_pipe(tmp_path: Path) -> None:
    path, before = tmp_path / "trace", time.monotonic()
    with tracing(path) as to:
        to.guest_entered("vm0", 0)
        fault(to, 1)
    head, side, *lines = path.read_text().splitlines()
    assert head == "# tracer: nop"
    assert side == f"# side: kvmsim pid: {os.getpid()} clock: mono"
    task, cpu, flags, seconds, name, *_ = lines[1].split()
    assert (task, flags, name) == (f"vm0/0-{threading.get_native_id()}", ".....", "kvm_exit:")
    assert cpu in {f"[{n:03}]" for n in range(os.cpu_count() or 1)}
    assert before - 0.001 <= float(seconds.rstrip(":")) <= time.monotonic()
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_what_is_chosen_and_passes_its_filter(tmp_path: Path) -> None:
    with tracing(tmp_path / "trace", ("kvm:kvm_page_fault", "gpa >= 0x2000 && comm ~ 'vm0/*'")) as to:
        assert not to.sees_packets
        for gfn in range(4):
            fault(to, gfn)
    assert [line.split()[6] for line in events(tmp_path / "trace")] == [f"0x{gpa:016x}" for gpa in (0x2000, 0x3000)]


def test_a_filter_of_several_events_must_fit_each() -> None:
    with pytest.raises(Refused, match="filter 'gpa > 1': column 1: kvm_entry has no field 'gpa'"):
        wanted([("kvm:*", "gpa > 1")])


VALUES = {
    "u": (0, 7, 1 << 63, (1 << 64) - 1, 1 << 70, True),
    "d": (0, -1, -(1 << 63), 1 << 70, -(1 << 70)),
    "x": (0, 0xABCDEF, (1 << 64) - 1, 1 << 70, -5),
    "s": ("word", "", "two words", "\u00e9\udc80"),
}


@pytest.mark.parametrize("event", EVENTS.values(), ids=lambda event: event.name)
def test_the_text_of_an_event_is_what_percent_makes_of_its_format(event: Event) -> None:
    ring = _ring.Ring(10, {event}, {}, str, {})
    kinds = [spec[-1] for spec in re.findall("%[0-9]*[usdx]", event.text)]
    for turn in range(6):
        values = tuple(VALUES[kind][turn % len(VALUES[kind])] for kind in kinds)
        ring.put(event, "vm0", values)
        assert ring.text(1).split(b": ", 1)[1] == (event.line % values)[2:].encode(errors="backslashreplace")


def test_a_ring_keeps_the_oldest_and_counts_what_it_loses() -> None:
    ring = _ring.Ring(3, {FAULT_WAITED}, {FAULT_WAITED: lambda values: values[0] != 2}, str, {})
    for turn in range(3):
        for gfn in range(5):
            ring.put(FAULT_WAITED, "vm0", (gfn,))
            ring.put(KICKED, "vm0", (gfn,))
        assert (len(ring), ring.take_lost(), ring.take_lost()) == (3, 2, 0), turn
        assert [line.split()[-1] for line in (ring.text(2) + ring.text(2)).splitlines()] == [b"0x0", b"0x1"]
    ring.put(FAULT_WAITED, "vm0", (1,))
    ring.end()
    ring.put(FAULT_WAITED, "vm0", (1,))
    assert (len(ring), ring.text(9), ring.take_lost()) == (0, b"", 1)


@pytest.mark.parametrize("values", [(), ("text",), (1.5,)], ids=["too few", "text", "no integer"])
def test_values_that_are_not_the_events_are_an_error_and_leave_the_ring(values: tuple[Any, ...]) -> None:
    ring = _ring.Ring(3, {FAULT_WAITED}, {}, str, {})
    ring.put(FAULT_WAITED, "vm0", values)
    with pytest.raises(TypeError):
        ring.text(1)
    ring.put(FAULT_WAITED, "vm0", (1,))
    assert ring.text(1).endswith(b": kvmsim_fault_waited: gfn 0x1\n")


def test_threads_that_put_while_text_is_made_lose_nothing(tmp_path: Path) -> None:
    """Also where a filter lets them in between."""
    count = 3000
    with tracing(tmp_path / "trace", ("kvm_page_fault", "gpa >= 0"), ("kvm_exit", ""), ("kvm_entry", "")) as to:

        def run(vcpu: int) -> None:
            to.guest_entered("vm0", vcpu)
            for gfn in range(count):
                fault(to, gfn, vcpu)

        threads = [threading.Thread(target=run, args=(vcpu,)) for vcpu in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = (tmp_path / "trace").read_text().splitlines()[2:]
    times = [float(line.split()[3].rstrip(":")) for line in lines]
    assert times == sorted(times)
    for vcpu in range(3):
        mine = [line.split()[4:] for line in lines if line.split()[0].startswith(f"vm0/{vcpu}-")]
        assert [words[0] for words in mine] == ["kvm_entry:"] + ["kvm_exit:", "kvm_page_fault:", "kvm_entry:"] * count
        assert [int(words[6], 16) >> 12 for words in mine if words[0] == "kvm_page_fault:"] == list(range(count))


def test_names_cannot_break_a_line(tmp_path: Path) -> None:
    with tracing(tmp_path / "trace") as to:
        to.kicked_out("a b\nkvm_exit:", 0)
    (line,) = (tmp_path / "trace").read_text().splitlines()[2:]
    assert line.lstrip().startswith("a_b\\nkvm_exit:-")


def test_a_trace_is_appended_to_and_no_other_file_is(tmp_path: Path) -> None:
    for _ in range(2):
        with tracing(tmp_path / "trace") as to:
            fault(to, 1)
    assert (tmp_path / "trace").read_text().count("# tracer: nop\n# side: ") == 2
    (tmp_path / "other").write_text("precious\n")
    with pytest.raises(Refused, match=r"trace .*other: the file is there and is no trace: name another file"):
        open_trace(str(tmp_path / "other"))


def test_a_place_that_is_full_at_once_is_refused() -> None:
    with pytest.raises(Refused, match="the trace cannot be written: No space left on device"):
        TraceFile(open_trace("/dev/full"), "kvmsim", wanted([]), print)


def test_a_file_that_is_removed_ends_the_trace_and_says_so_once(tmp_path: Path) -> None:
    said: list[str] = []
    with tracing(tmp_path / "trace", warn=said.append) as to:
        os.unlink(tmp_path / "trace")
        fault(to, 1)
        until(lambda: bool(said), "it is noticed")
        fault(to, 2)
    assert said == ["the trace cannot be written and has ended: its file was removed"]


def test_a_trace_ends_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(tracefile, "MAX_TRACE_BYTES", 1000)
    with tracing(tmp_path / "trace", warn=said.append) as to:
        for gfn in range(1000):
            fault(to, gfn)
    assert said == ["the trace cannot be written and has ended: the limit of a trace's size is reached"]
    assert (tmp_path / "trace").stat().st_size <= 1000


def test_nobody_waits_for_a_fifo_that_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds no room is lost, and counted; the end does not wait for longer than its deadline."""
    monkeypatch.setattr(tracefile, "MAX_TRACE_QUEUE", 100)
    monkeypatch.setattr(tracefile, "_END_DEADLINE_S", 0.2)
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    said: list[str] = []
    with tracing(tmp_path / "fifo", warn=said.append) as to:
        for _ in range(20):
            for gfn in range(1000):
                fault(to, gfn)
            time.sleep(0)
        text = b""

        def reads_a_loss() -> bool:
            nonlocal text
            try:
                text += os.read(reader, 1 << 16)
            except BlockingIOError:
                fault(to, 1)
            return b" EVENTS]" in text

        until(reads_a_loss, "the loss is told")
        for gfn in range(20000):
            fault(to, gfn)
    assert b"CPU:0 [LOST " in text
    os.close(reader)
