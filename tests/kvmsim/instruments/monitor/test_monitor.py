"""Clients of all kinds: many, hostile, silent, gone; a VM that is stopped; and a process that ends."""

import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from kvmsim.instruments.monitor import monitor as module
from kvmsim.instruments.monitor.monitor import Monitor
from memfsd.uapi.limits import MAX_QMP_CLIENTS, MAX_QMP_EVENTS, MAX_QMP_MESSAGE_BYTES
from tests.support.leftovers import held
from tests.support.qmp import Raw, client, monitored
from tests.support.script_lines import Lines
from tests.support.threads import DEADLINE_S, Beside, until


@pytest.fixture
def do() -> Iterator[Lines]:
    lines = Lines()
    lines.ok("slot set 0 shared gpa=0 size=64K")
    yield lines
    lines.executor.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp"


@pytest.fixture
def monitor(do: Lines, path: Path) -> Iterator[Monitor]:
    with monitored(do.executor, path) as monitor:
        yield monitor
        with client(path) as raw:
            assert raw.value("query-status")["running"], "it serves the next one, whatever came before"


# -- bad input


def test_garbage_is_answered_and_the_connection_stays(monitor: Monitor, path: Path) -> None:
    with client(path) as raw:
        raw.send(b"GET / HTTP/1.1\r\n")
        answer = raw.receive()
        assert answer is not None and answer["error"]["class"] == "GenericError"
        raw.send(b'{"execute": "query-name", "id": [1, {"a": null}]}')
        assert raw.receive() == {"return": {"name": "vm0"}, "id": [1, {"a": None}]}


def test_half_a_message_waits_and_its_end_is_no_command(monitor: Monitor, path: Path) -> None:
    with client(path) as raw, client(path) as other:
        raw.send(b'{"execute": "query-na')
        assert other.value("query-name") == {"name": "vm0"}
        raw.send(b'me"}')
        assert raw.receive() == {"return": {"name": "vm0"}}
        raw.send(b'{"execute": "quit"')


@pytest.mark.parametrize("part", [b"a" * 65536, b'"' * 65536, b'{"a":"' + b"b" * 65536], ids=["a", "quotes", "string"])
def test_100_mib_end_at_the_limit(part: bytes, monitor: Monitor, path: Path) -> None:
    with client(path) as raw:
        sent = 0
        with suppress(BrokenPipeError, ConnectionResetError):
            while sent < 100 << 20:
                raw.socket.sendall(part)
                sent += len(part)
        assert sent < 3 * MAX_QMP_MESSAGE_BYTES, "it was read on"


def test_many_commands_at_once_are_answered_in_order(monitor: Monitor, path: Path) -> None:
    with client(path) as raw:
        raw.send(b"".join(json.dumps({"execute": "query-name", "id": id_}).encode() for id_ in range(5000)))
        assert [answer["id"] for _ in range(5000) if (answer := raw.receive())] == list(range(5000))


def test_a_client_that_never_reads_is_disconnected(
    monitor: Monitor, path: Path, do: Lines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_QMP_BACKLOG_BYTES", 1 << 16)
    with client(path), client(path) as good:
        while monitor.dropped_clients == 0:
            monitor.emit("STOP", {"vm": "x" * 1000})
            good.event("STOP")
        assert good.value("query-monitor")["clients-dropped"] == 1
    assert "reads nothing" in caplog.text
    caplog.clear()


def test_one_that_asks_and_never_reads_is_not_read_either(monitor: Monitor, path: Path) -> None:
    """Its answers stay in its own socket, and here is room for one of them."""
    with client(path) as raw:
        raw.socket.setblocking(False)
        question = json.dumps({"execute": "query-commands"}).encode()
        count = 0
        with suppress(BlockingIOError):
            while count < 1_000_000:
                raw.socket.send(question)
                count += 1
        assert count < 1_000_000, "it was read on"
        with client(path) as other:
            assert other.value("query-monitor")["clients"] == 2


def test_events_that_do_not_fit_are_dropped_and_counted(monitor: Monitor, path: Path) -> None:
    with client(path):
        monitor._is_woken = True  # nobody looks at the queue
        for number in range(MAX_QMP_EVENTS + 10):
            monitor.emit("STOP", {"vm": str(number)})
        monitor._is_woken = False
        monitor.emit("STOP", {"vm": "last"})
        until(lambda: monitor.dropped_events == 11, "the oldest are counted")


def test_a_client_that_vanishes_in_the_middle(monitor: Monitor, path: Path) -> None:
    for data in (b"", b'{"execute"', b'{"execute": "query-commands"}' * 100):
        raw = Raw(path)
        raw.send(data)
        raw.close()
    until(lambda: monitor.client_count == 0, "they are gone")


def test_one_that_has_said_all_gets_its_answers(monitor: Monitor, path: Path) -> None:
    """As `socat - UNIX:PATH` with its input from a file."""
    with closing(Raw(path)) as raw:
        raw.send({"execute": "qmp_capabilities"})
        raw.send({"execute": "query-name"})
        raw.socket.shutdown(socket.SHUT_WR)
        assert [raw.receive() for _ in range(4)][1:] == [{"return": {}}, {"return": {"name": "vm0"}}, None]


def test_clients_are_served_side_by_side_up_to_a_limit(monitor: Monitor, path: Path) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(client(path)) for _ in range(MAX_QMP_CLIENTS)]
        with closing(Raw(path)) as late:
            refused = late.receive()
            assert refused is not None and "8 clients are connected" in refused["error"]["desc"]
            assert late.receive() is None
        for raw in reversed(clients):
            assert raw.value("query-name") == {"name": "vm0"}


# -- stop and cont


def test_a_guest_is_held_between_two_accesses_and_goes_on(
    do: Lines, monitor: Monitor, path: Path, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    do.ok("vcpu 1", f"start load vcpu=1 0x8000000000000 {fifo}")
    with fifo.open("wb", buffering=0) as pipe, client(path) as raw:
        pipe.write(b"first ")
        until(lambda: do.ok("host read 0 6").data == b"first ", "it is in the guest")
        assert raw.value("stop") == {}
        assert raw.value("query-status") == {"running": False, "status": "paused"}
        pipe.write(b"second")
        held = Beside(lambda: do.ok("read 0 12 shared"))
        assert do.ok("host read 0 12").data == b"first \0\0\0\0\0\0", "the vCPU does not run"
        assert raw.value("query-status") == {"running": False, "status": "paused"}
        assert held.running
        assert raw.value("cont") == {}
        held.result()
        pipe.close()
        assert do.ok("join vcpu=1").text == "12 bytes"
        assert do.ok("host read 0 12").data == b"first second"


def test_a_kick_gets_through_while_the_vm_is_stopped(do: Lines, monitor: Monitor, path: Path) -> None:
    with client(path) as raw:
        raw.value("stop")
        do.ok("start touch 0 64K shared", "kick")
        assert do("join").errno == "EINTR"
        assert do.ok("info run").info is not None
        raw.value("cont")
        do.ok("resume")


def test_a_vcpu_that_does_not_come_out_is_named_and_stays_out_later(
    do: Lines, monitor: Monitor, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmsim.instruments.monitor.handlers.STOP_DEADLINE_S", 0.05)
    vmm = do.executor.current.vmm
    with client(path) as raw:
        with vmm.inhibitor.in_kvm_run():
            assert "has not left KVM_RUN within 0.05 s" in raw.refusal("stop")
            assert raw.value("query-status")["running"] is False
        assert raw.value("stop") == {}
        raw.value("cont")


# -- the end


def test_a_client_that_waits_sees_the_end(do: Lines, path: Path) -> None:
    with monitored(do.executor, path) as monitor, client(path) as raw, closing(Raw(path)) as unready:
        waiting = Beside(raw.receive)
        until(lambda: monitor.client_count == 2, "both are served")
        monitor.end("host-ui")
        said = waiting.result()
        assert said is not None and said["event"] == "SHUTDOWN"
        assert raw.receive() is None
        assert "QMP" in (unready.receive() or {})
        assert unready.receive() is None
    assert not path.exists()


def test_the_end_waits_for_nobody(do: Lines, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MONITOR_END_DEADLINE_S", 0.05)
    with monitored(do.executor, path) as monitor, client(path) as raw:
        for _ in range(1000):
            monitor.emit("STOP", {"vm": "x" * 5000})
        until(lambda: any(one.out for one in monitor._clients.values()), "its socket is full")
        monitor.end("host-ui")
        until(lambda: monitor.client_count == 0, "it is cut off")
        raw.socket.settimeout(DEADLINE_S)


def test_nothing_is_loaded_before_the_first_client(tmp_path: Path) -> None:
    program = f"""
import sys
from kvmsim.cli import run_command
status = run_command(["run", "--qmp", "unix:{tmp_path}/qmp", "{tmp_path}/script"])
print(status, "kvmsim.instruments.monitor.monitor" in sys.modules, "kvmsim.instruments.monitor.protocol" in sys.modules)
"""
    (tmp_path / "script").write_text("info vms\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0 False False", "")


def test_a_monitor_that_is_over_holds_no_descriptor(do: Lines, path: Path) -> None:
    gc.collect()
    before = held().descriptors
    with monitored(do.executor, path), client(path) as raw:
        assert raw.value("query-status")["running"]
        assert held().descriptors > before

    def is_over() -> bool:
        gc.collect()
        return held().descriptors <= before

    until(is_over, "the last thread that knew the monitor has ended")
