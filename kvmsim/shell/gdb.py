"""`--gdb ADDR`: gdb's remote protocol, for the machine code of the current VM. A vCPU is a thread.

    target remote 127.0.0.1:1234      the vCPUs stand still, also those that begin to run later
    break, stepi, continue, Ctrl-C    info registers, info threads, x, set

gdb may go at any point: breakpoints go with it, and the vCPUs run on.
"""

import contextlib
import errno
import ipaddress
import select
import socket
from collections.abc import Callable

from kvmsim.cpu.x86.library import check
from kvmsim.kvm.vcpu import Vcpu
from kvmsim.machine import VirtualMachine
from memfsd.common import sync
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_GDB_BREAKPOINTS, MAX_GDB_PACKET_BYTES, STOP_DEADLINE_S

from .gdb_packets import Packets, registers_from, registers_to

_LOOK_UP_S = 0.05
"""Between two looks at the vCPUs while they run, and at the end of the process."""
_TARGET = b'l<?xml version="1.0"?><target version="1.0"><architecture>i386:x86-64</architecture></target>'
_OK, _NOT_POSSIBLE, _UNKNOWN = b"OK", b"E01", b""


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, :PORT or PORT. EINVAL (Refused): no address, or one that others can reach."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Refused(errno.EINVAL, f"--gdb {quoted(text)}: write [HOST:]PORT, as 127.0.0.1:1234")
    if not is_local:
        raise Refused(errno.EINVAL, f"--gdb {quoted(text)}: gdb may do anything here: choose a loopback address")
    return host, int(port)


class GdbServer:
    """One gdb at a time, on a thread. machine: the VM that it sees, asked when it connects."""

    def __init__(self, address: str, machine: Callable[[], VirtualMachine]) -> None:
        """EADDRINUSE and others (Refused); ENOSYS without the extra `cpu`."""
        check()
        import kvmsim.cpu.x86.cpus  # noqa: F401  (loaded before gdb comes, which waits two seconds for an answer)

        host, port = parse_address(address)
        self._machine = machine
        self._listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._listening.bind((host, port))
            self._listening.listen(1)
        except OSError as error:
            self._listening.close()
            raise Refused(error.errno or errno.EIO, f"--gdb {quoted(address)}: {error.strerror}") from None
        self.address: str = "{}:{}".format(*self._listening.getsockname()[:2])
        self._ends = False
        self._thread = sync.thread(self._serve, "gdb")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """The vCPUs run on, without gdb."""
        self._ends = True
        if self._thread.is_alive():
            self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while not self._ends:
            if not _is_readable(self._listening):
                continue
            connection, _ = self._listening.accept()
            with connection, contextlib.suppress(OSError, Refused):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                Debugged(self._machine(), connection, lambda: self._ends).run()


class Debugged:
    """A VM, for as long as a connection lasts."""

    def __init__(self, machine: VirtualMachine, connection: socket.socket, ends: Callable[[], bool]) -> None:
        from kvmsim.cpu.x86.debugger import SIGINT, SIGTRAP, Debugger

        self._int, self._trap = SIGINT, SIGTRAP
        self._vm = machine.vm
        self._cpus = machine.cpus
        self._vmm = machine.vmm
        self._packets = Packets(connection, MAX_GDB_PACKET_BYTES)
        self._connection = connection
        self._ends = ends
        self._debugger = Debugger()
        self._current = min(self._vm.vcpus)
        self._answers: dict[bytes, Callable[[bytes], bytes | None]] = {
            b"?": lambda _: self._stopped(self._current, self._trap),
            b"g": lambda _: registers_to(self._registers()),
            b"G": self._write_registers,
            b"m": self._read,
            b"M": self._write,
            b"H": self._choose,
            b"T": lambda text: _OK if int(text, 16) - 1 in self._vm.vcpus else _NOT_POSSIBLE,
            b"q": self._query,
            b"Z": lambda text: self._breakpoint(text, set_=True),
            b"z": lambda text: self._breakpoint(text, set_=False),
            b"c": self._continue,
            b"s": self._step,
            b"D": lambda _: _OK,
        }

    def run(self) -> None:
        """Until gdb goes, in whatever way."""
        self._cpus.debugger = self._debugger
        try:
            self._debugger.stop(self._vcpus(), STOP_DEADLINE_S)
            while not self._ends():
                if not _is_readable(self._connection) and not self._packets.has_more:
                    continue
                packet = self._packets.receive()
                if packet is None:
                    return
                if packet[:1] in (b"", b"\x03"):
                    continue
                self._answer(packet)
                if packet[:1] in (b"D", b"k"):
                    return
        finally:
            self._cpus.debugger = None
            self._debugger.breakpoints = frozenset()
            self._debugger.go_on({})

    def _answer(self, packet: bytes) -> None:
        answer = self._answers.get(packet[:1])
        try:
            reply = _UNKNOWN if answer is None else answer(packet[1:])
        except (ValueError, KeyError, Refused):
            reply = _NOT_POSSIBLE
        if reply is not None:
            self._packets.send(reply)

    def _vcpus(self) -> list[Vcpu]:
        return list(self._vm.vcpus.values())

    @property
    def _vcpu(self) -> Vcpu:
        return self._vm.vcpus[self._current]

    def _stopped(self, vcpu: int, signal: int) -> bytes:
        self._current = vcpu
        return b"T%02xthread:%x;" % (signal, vcpu + 1)

    # -- registers and memory

    def _registers(self) -> dict[str, int]:
        engine = self._cpus.engine(self._vcpu)
        return {**engine.registers(), **engine.segments()}

    def _write_registers(self, text: bytes) -> bytes:
        engine = self._cpus.engine(self._vcpu)
        for name, value in registers_from(text).items():
            engine.write(name, value)
        return _OK

    def _read(self, text: bytes) -> bytes:
        at, length = (int(part, 16) for part in text.split(b","))
        data = self._cpus.peek(self._vcpu, at, min(length, MAX_GDB_PACKET_BYTES // 2 - 8))
        return data.hex().encode() or _NOT_POSSIBLE

    def _write(self, text: bytes) -> bytes:
        place, _, data = text.partition(b":")
        at = int(place.split(b",")[0], 16)
        return _OK if self._cpus.poke(self._vcpu, at, bytes.fromhex(data.decode())) else _NOT_POSSIBLE

    # -- threads and what gdb asks first

    def _choose(self, text: bytes) -> bytes:
        """H g THREAD, or H c THREAD; 0 and -1 are any."""
        number = int(text[1:], 16)
        if number > 0:
            if number - 1 not in self._vm.vcpus:
                return _NOT_POSSIBLE
            self._current = number - 1
        return _OK

    def _query(self, text: bytes) -> bytes:
        if text.startswith(b"Supported"):
            return b"PacketSize=%x;qXfer:features:read+" % MAX_GDB_PACKET_BYTES
        if text.startswith(b"Xfer:features:read:target.xml:"):
            return _TARGET
        if text == b"fThreadInfo":
            return b"m" + b",".join(b"%x" % (id_ + 1) for id_ in sorted(self._vm.vcpus))
        if text == b"sThreadInfo":
            return b"l"
        if text == b"C":
            return b"QC%x" % (self._current + 1)
        if text.startswith(b"Attached"):
            return b"1"
        if text.startswith(b"ThreadExtraInfo,"):
            return f"vCPU {int(text.partition(b',')[2], 16) - 1}".encode().hex().encode()
        return _UNKNOWN

    # -- running

    def _breakpoint(self, text: bytes, *, set_: bool) -> bytes:
        """Z0 and Z1 alike: no code is changed for one."""
        kind, at, _ = text.split(b",", 2)
        if kind not in (b"0", b"1"):
            return _UNKNOWN
        address = {int(at, 16)}
        found = self._debugger.breakpoints | address if set_ else self._debugger.breakpoints - address
        if len(found) > MAX_GDB_BREAKPOINTS:
            return _NOT_POSSIBLE
        self._debugger.breakpoints = found
        return _OK

    def _continue(self, text: bytes) -> bytes | None:
        if text:
            self._cpus.engine(self._vcpu).write("rip", int(text, 16))
        self._debugger.go_on({vcpu.id: self._cpus.engine(vcpu).read("rip") for vcpu in self._vcpus()})
        return self._wait()

    def _step(self, text: bytes) -> bytes | None:
        if text:
            self._cpus.engine(self._vcpu).write("rip", int(text, 16))
        if self._debugger.step(self._vcpu):
            return self._wait()
        # It is in no KVM_RUN: this is one.
        self._cpus.debugger = None
        try:
            self._vmm.run(self._vcpu, lambda: self._cpus.run(self._vcpu, 1))
        finally:
            self._cpus.debugger = self._debugger
        return self._stopped(self._current, self._trap)

    def _wait(self) -> bytes | None:
        """For a stop, or gdb's Ctrl-C; None when gdb has gone."""
        while not self._ends():
            event = self._debugger.event()
            if event is not None:
                self._debugger.stop(self._vcpus(), STOP_DEADLINE_S)
                return self._stopped(*event)
            if self._packets.has_more or _is_readable(self._connection):
                packet = self._packets.receive()
                if packet is None:
                    raise ConnectionResetError
                self._debugger.stop(self._vcpus(), STOP_DEADLINE_S)
                return self._stopped(self._current, self._int)
        return None


def _is_readable(sock: socket.socket) -> bool:
    """Within _LOOK_UP_S. Not by select(2), which knows no descriptor from 1024 on: a VM may have many files."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(_LOOK_UP_S * 1000))
