"""`--gdb`: the real gdb, and connections that end or send anything."""

import socket
import subprocess
from collections.abc import Iterator

import pytest

from kvmsim.kvm.exits import HltExit
from kvmsim.shell.gdb import GdbServer, parse_address
from kvmsim.shell.gdb_packets import Packets
from tests.support.both_sides import LocalVm, errno_of, page
from tests.support.machine_code import Code
from tests.support.threads import DEADLINE_S, Beside, until

CODE, DATA = page(1), page(8)
LOOP = "1: incq (%rbx)\n nop\n nop\n cmpq $0, 8(%rbx)\n je 1b\n hlt"
SHARED = 1 << 51


@pytest.fixture
def code(vm: LocalVm) -> Code:
    """Runs from shared memory, whose addresses have the SHARED bit."""
    vm.shared_slot(0, 0, page(64))
    return Code(vm).place(LOOP, CODE | SHARED, rbx=DATA | SHARED)


@pytest.fixture
def server(code: Code) -> Iterator[GdbServer]:
    server = GdbServer("127.0.0.1:0", lambda: code.vm)  # type: ignore[arg-type,return-value]
    server.start()
    yield server
    server.close()


def gdb(server: GdbServer, *commands: str) -> str:
    words = [word for command in (f"target remote {server.address}", *commands) for word in ("-ex", command)]
    done = subprocess.run(
        ["gdb", "-q", "-batch", "-nx", *words], capture_output=True, text=True, timeout=2 * DEADLINE_S
    )
    return done.stdout + done.stderr


def end(code: Code, running: Beside[object]) -> None:
    """The loop ends by itself: nobody holds it."""
    code.vm.guest.write(code.vm.vm.create_vcpu(7), DATA + 8, b"\x01", shared=True)
    got = running.result()
    assert got == HltExit(), (got, {k: hex(v) for k, v in code.engine.registers().items()})


def test_gdb_stops_steps_breaks_and_goes(code: Code, server: GdbServer) -> None:
    running: Beside[object] = Beside(code.run)
    until(lambda: code.vcpu.guest_lock.locked(), "it runs")
    at = CODE | SHARED
    said = gdb(
        server,
        f"break *{at + 3:#x}",
        "continue",
        'printf "first %#lx\\n", $rip',
        "stepi",
        'printf "then %#lx\\n", $rip',
        "continue",
        'printf "again %#lx\\n", $rip',
        f"set var *(long *){DATA | SHARED:#x} = 0x1234",
        f'printf "memory %#lx\\n", *(long *){DATA | SHARED:#x}',
        "set var $rdx = 0x77",
        "info threads",
        "x/2i $pc",
    )
    assert f"first {at + 3:#x}" in said, said
    assert f"then {at + 4:#x}" in said
    assert f"again {at + 3:#x}" in said
    assert "memory 0x1234" in said
    assert "vCPU 0" in said
    assert said.count("nop") >= 2
    end(code, running)
    assert code.get("rdx") == 0x77


def test_gdb_debugs_what_does_not_run_yet(code: Code, server: GdbServer) -> None:
    said = gdb(server, "stepi", 'printf "at %#lx\\n", $rip', "detach")
    assert f"at {(CODE | SHARED) + 3:#x}" in said
    assert code.cpus.debugger is None


@pytest.mark.parametrize("runs", [False, True])
def test_gdb_steps_over_port_io(code: Code, server: GdbServer, *, runs: bool) -> None:
    """Which user space serves, whoever calls KVM_RUN."""
    at = CODE | SHARED
    code.place("1: out %al, $0xe9; in $0x80, %al; jmp 1b", at, rax=ord("x"))
    running: Beside[object] | None = None
    if runs:
        running = Beside(lambda: code.vm.vmm.run(code.vcpu, code.run, lambda _: True))
        until(code.has_printed, "it prints")
    steps = ["stepi", 'printf "at %#lx\n", $rip'] * 3
    said = gdb(server, f"set var $rip = {at:#x}", "set var $rax = 0x79", *steps, 'printf "rax %#lx\n", $rax', "detach")
    for place in (at + 2, at + 4, at):
        assert f"at {place:#x}" in said, said
    assert "rax 0xff" in said
    if running:
        code.vcpu.request_exit()
        assert errno_of(running.result) == "EINTR"
    assert "y" in code.console()


class Raw:
    """A client that may do anything."""

    def __init__(self, server: GdbServer) -> None:
        host, _, port = server.address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
        self.packets = Packets(self.socket, 1 << 16)

    def ask(self, body: bytes) -> bytes:
        self.packets.send(body)
        reply = self.packets.receive()
        assert reply is not None
        return reply


@pytest.mark.parametrize(
    "last", [b"", b"$g#67", b"$c#63", b"$s#73", b"$Z0,1003,1#", b"$m", b"\x03", b"$D#44", b"$k#6b"]
)
def test_gdb_may_go_at_any_point(code: Code, server: GdbServer, last: bytes) -> None:
    running: Beside[object] = Beside(code.run)
    until(lambda: code.vcpu.guest_lock.locked(), "it runs")
    raw = Raw(server)
    assert raw.ask(b"?") == b"T05thread:1;"
    assert raw.ask(b"Z0,%x,1" % (CODE | SHARED)) == b"OK"
    raw.socket.sendall(last)
    raw.socket.close()
    end(code, running)
    until(lambda: code.cpus.debugger is None, "nobody debugs")


def test_ctrl_c_of_gdb_stops_and_a_kick_gets_out(code: Code, server: GdbServer) -> None:
    running: Beside[object] = Beside(code.run)
    until(lambda: code.vcpu.guest_lock.locked(), "it runs")
    raw = Raw(server)
    raw.ask(b"?")
    raw.packets.send(b"c")
    raw.socket.sendall(b"\x03")
    assert raw.packets.receive() == b"T02thread:1;"
    code.vcpu.request_exit()
    assert errno_of(running.result) == "EINTR"
    code.vcpu.run.immediate_exit = 0
    raw.socket.close()


def test_packets_that_are_none_are_answered(code: Code, server: GdbServer) -> None:
    raw = Raw(server)
    answers = {
        body: raw.ask(body)
        for body in (
            b"m,",
            b"mzz,1",
            b"Mffff,1:zz",
            b"G00",
            b"Hg99",
            b"Hgx",
            b"T63",
            b"Z9,0,1",
            b"Z0",
            b"vCont?",
            b"!",
            b"qfoo",
        )
    }
    assert answers.pop(b"vCont?") == answers.pop(b"!") == answers.pop(b"qfoo") == answers.pop(b"Z9,0,1") == b""
    assert set(answers.values()) == {b"E01"}, answers
    assert raw.ask(b"m%x,4" % (1 << 48)) == b"E01"
    assert raw.ask(b"qC") == b"QC1"
    raw.socket.close()


@pytest.mark.parametrize("address", ["", "x", "1.2.3.4:5", "0.0.0.0:5", "host:5", "127.0.0.1:99999", "127.0.0.1:"])
def test_other_addresses_are_refused(address: str) -> None:
    assert errno_of(parse_address, address) == "EINVAL"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("1234", ("127.0.0.1", 1234)),
        (":0", ("127.0.0.1", 0)),
        ("localhost:5", ("localhost", 5)),
        ("[::1]:5", ("::1", 5)),
    ],
)
def test_addresses(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(text) == parsed


def test_an_address_in_use_is_refused(server: GdbServer) -> None:
    assert errno_of(GdbServer, server.address, lambda: None) == "EADDRINUSE"
