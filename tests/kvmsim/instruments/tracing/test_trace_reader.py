"""Traces read back: ours, the kernel's, torn ones, and what is neither."""

import os
from pathlib import Path

import pytest

from kvmsim.instruments.tracing.reader import LOST, Happening, Unreadable, follow, happenings
from tests.support.traced import VM_PID, events, fault, tracing, vm_entry, write_traces


def test_both_sides_are_merged_by_time(tmp_path: Path) -> None:
    store, vm = write_traces(tmp_path)
    found = list(happenings([str(vm), str(store)]))
    assert [one.t for one in found] == sorted(one.t for one in found)
    assert {one.side for one in found} == {"memfsd", "kvmsim"}
    first = found[0]
    assert (first.name, first.task, first.vm, first.vcpu, first.pid) == ("kvm_entry", "vm0/0", "vm0", 0, VM_PID)
    assert first.t == 1_000_001_000
    (fault_,) = [one for one in found if one.name == "kvm_page_fault"]
    assert fault_.values["fault_address"] == 0x1000


def test_what_we_write_is_what_we_read(tmp_path: Path) -> None:
    with tracing(tmp_path / "trace") as to:
        to.guest_entered("vm0", 3)
        fault(to, 5, vcpu=3)
    found = list(happenings([str(tmp_path / "trace")]))
    assert [one.name for one in found] == [line.split(":")[0] for line in events(tmp_path / "trace")]
    assert {(one.vm, one.vcpu) for one in found} == {("vm0", 3)}


def test_a_trace_of_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    path.write_text(
        "# tracer: nop\n#\n"
        "       CPU 0/KVM-4711    [002] d..1.  8712.003417: kvm_entry: vcpu 0, rip 0xfff0\n"
        "CPU:2 [LOST 12 EVENTS]\n"
        "  qemu-system-x86-4700    [000] .....  8712.003500: sys_enter: NR 16 (1, 2)\n"
    )
    entry, lost, other = happenings([str(path)])
    assert (entry.task, entry.pid, entry.values["rip"]) == ("CPU 0/KVM", 4711, 0xFFF0)
    assert (lost.name, lost.values) == (LOST, {"count": 12})
    assert other == Happening(8712003500000, "kernel", 4700, "qemu-system-x86", "sys_enter", {"text": "NR 16 (1, 2)"})


def test_a_line_torn_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    head = "# tracer: nop\n# side: kvmsim pid: 1 clock: mono\n"
    path.write_text(head + vm_entry(1) + vm_entry(2)[:30])
    assert len(list(happenings([str(path)]))) == 1
    with tracing(path) as to:
        fault(to, 1)
    assert [one.name for one in happenings([str(path)])] == ["kvm_entry", "kvm_page_fault", "kvm_entry"]
    path.write_text(head + "nonsense\n" + vm_entry(1))
    with pytest.raises(Unreadable, match=r"trace:3: no line of a trace: nonsense"):
        list(happenings([str(path)]))


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\xff\xfe\x00" * 100, b"{}\n", b'{"type":"message"}\n'])
def test_what_is_neither_a_trace_nor_a_journal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(Unreadable, match="x"):
        list(happenings([str(tmp_path / "x")]))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(Unreadable, match="/nowhere/trace: No such file"):
        list(happenings(["/nowhere/trace"]))


def test_a_trace_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("# tracer: nop\n" + vm_entry(1) + vm_entry(2)[:20])
    looks = iter([True, False])

    def wait() -> bool:
        if again := next(looks):
            with path.open("a") as file:
                file.write(vm_entry(2)[20:])
        return again

    found = list(follow(str(path), wait))
    assert [one and one.t for one in found] == [1_000_001_000, None, 1_000_002_000, None]


def test_a_trace_from_a_pipe_and_no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, names in ((b"# tracer: nop\n" + vm_entry(1).encode(), ["kvm_entry"]), (b'{"type":"journal"}\n', [])):
        ours, theirs = os.pipe()
        os.write(theirs, content)
        os.close(theirs)
        with os.fdopen(ours) as pipe:
            monkeypatch.setattr("sys.stdin", pipe)
            if names:
                assert [one.name for one in happenings(["-"])] == names
            else:
                with pytest.raises(Unreadable, match="a journal from a pipe: name its file"):
                    list(happenings(["-"]))
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(Unreadable, match="standard input is closed"):
        list(happenings(["-"]))
