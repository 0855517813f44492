"""The command lines of `kvmsim run`, `attach` and `shell`: where commands come from, and what the exit status says."""

import argparse
import contextlib
import errno
import functools
import logging
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from kvmsim.memory.memory import OpenWindow, WindowMemory
from kvmsim.store.link import store_of_sealed
from memfsd.common import trace
from memfsd.common.journal import Recording
from memfsd.common.journalfile import open_journal, start_journal
from memfsd.common.logqueue import LogQueue, StderrHandler
from memfsd.common.logs import OneLine
from memfsd.common.quote import printable, quoted
from memfsd.common.starting import INTERRUPTED
from memfsd.common.traceoptions import open_asked
from memfsd.uapi.abi import ABIS
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_SCRIPT_BYTES
from memfsd.uapi.messages import KVM_OPERATIONS

from .execute import Executor
from .gdb import GdbServer
from .interrupt import Interrupt
from .lines import InputLines, Stream
from .script.commands import Command, SlotSet
from .script.grammar import parse_line
from .script.output import HumanPrinter, JsonPrinter
from .script.repeat import parse_script
from .script.runner import Session, Shown
from .script.runner import run as run_script
from .script.words import ScriptError

_HINT = "'help' lists the commands, 'quit' leaves."
_RECORD_LOST = 2


class Beside(Protocol):
    """What looks at a run from beside it, on its own threads: a monitor."""

    def start(self) -> None: ...

    def stop(self, why: str) -> None:
        """The VMs are about to end."""

    def detach(self) -> None:
        """They have ended."""


MakeBeside = Callable[[argparse.Namespace, Executor], Beside]
"""Refused when it cannot be as the command line has it."""


def run(asked: argparse.Namespace, beside: MakeBeside) -> int:
    """A script is parsed as a whole before its first command runs; what comes from a pipe or a terminal is not."""
    streamed = asked.script == "-" and _is_streamed()
    source = "standard input" if asked.script == "-" else quoted(asked.script)
    commands: Iterator[Command] = iter(())
    try:
        if not streamed:
            commands = parse_script(_read(asked.script))
    except ScriptError as error:
        return _say(f"{source}: {error}", 2)
    except OSError as error:
        where = "" if asked.script == "-" else f"{source}: "
        return _say(f"{where}{error.strerror}", 2)
    run_ = Run(asked, beside)
    with run_ as executor:
        is_ready: Callable[[], bool] = lambda: True  # noqa: E731 - the other one has a name
        if streamed:
            stream = Stream(InputLines(sys.stdin.fileno(), executor.interrupt))
            commands, is_ready = iter(stream), stream.is_ready
        printer = JsonPrinter(sys.stdout) if asked.json else HumanPrinter(sys.stdout)
        try:
            run_.status = run_script(
                commands,
                executor,
                Shown(printer.emit, quiet=asked.quiet),
                keep_going=asked.keep_going,
                is_stopped=lambda: executor.interrupt.asked,
                is_ready=is_ready,
                complain=_complain,
            )
        except ScriptError as error:
            run_.status = _say(f"{source}: {error}", 2)
    return run_.status


def attach(asked: argparse.Namespace, beside: MakeBeside) -> int:
    run_ = Run(asked, beside)
    with run_ as executor:
        try:
            _plug(executor, asked.file, asked.gpa)
        except (OSError, Refused, ScriptError) as error:
            reason = error.reason if isinstance(error, Refused) else getattr(error, "strerror", None) or str(error)
            name = quoted(asked.file)
            run_.status = _say(f"{name}: {reason.removeprefix(f'{name}: ')}", 1)
        else:
            greeting = f"{quoted(asked.file)} is private slot 0 at gpa {asked.gpa:#x}. {_HINT}"
            run_.status = _commands(executor, greeting, asked)
    return run_.status


def shell(asked: argparse.Namespace, beside: MakeBeside) -> int:
    run_ = Run(asked, beside)
    with run_ as executor:
        run_.status = _commands(executor, f"vm0 has no memory yet. {_HINT}", asked)
    return run_.status


class Run:
    """All VMs for the time of a command line. Then `status` is final: what was set, if nothing worse happened.

    SystemExit(2) when it cannot begin, with the reason said.
    """

    def __init__(self, asked: argparse.Namespace, beside: MakeBeside) -> None:
        self.status = 0
        self._verbose: int = asked.verbose
        self._record_lost = False
        self._ending = contextlib.ExitStack()
        try:
            self._journal = self._open_journal(asked.journal)
            begin_trace = open_asked(asked, "kvmsim")
            windows = _windows(asked.memory_encryption, asked.tamper)
            operations = KVM_OPERATIONS.difference(asked.no_op)
            self._executor = Executor(
                asked.max_slots, asked.policy, asked.under, windows=windows, operations=operations, abi=ABIS[asked.abi]
            )
            self._trace = begin_trace and begin_trace(functools.partial(self._lose, asked.trace))
            if self._trace:
                self._executor.switch_events = self._trace.switch
            self._gdb = asked.gdb and GdbServer(asked.gdb, lambda: self._executor.machine(None))
            self._beside = beside(asked, self._executor)
        except Refused as refused:
            sys.exit(_say(refused.reason, 2))

    def __enter__(self) -> Executor:
        interrupt = self._executor.interrupt
        self._ending.enter_context(_logging(self._verbose))
        self._ending.enter_context(interrupt.listen())
        self._ending.enter_context(interrupt.command())
        if self._journal is not None:
            self._ending.callback(self._journal.close)
            self._ending.enter_context(trace.observed(vm=self._journal))
        if self._trace is not None:
            self._ending.callback(self._trace.close)
            self._ending.enter_context(trace.observed(vm=self._trace))
        self._ending.callback(self._beside.detach)
        self._ending.callback(self._executor.close)
        self._beside.start()
        if self._gdb:
            self._gdb.start()
            self._ending.callback(self._gdb.close)
            _say(f"gdb: target remote {self._gdb.address}", 0)
        self._ending.callback(lambda: self._beside.stop(_why(interrupt)))
        return self._executor

    def __exit__(self, *raised: object) -> None:
        with self._ending:
            self._executor.interrupt.ends_process = True
        if self._executor.interrupt.quits:
            self.status = 0
        elif self._executor.interrupt.asked:
            self.status = INTERRUPTED
        elif self._record_lost:
            self.status = self.status or _RECORD_LOST

    def _open_journal(self, path: str | None) -> Recording | None:
        if path is None:
            return None
        return start_journal(open_journal(path), "kvmsim", time.monotonic_ns, functools.partial(self._lose, path))

    def _lose(self, path: str, why: str) -> None:
        self._record_lost = True
        _say(f"{quoted(path)}: {why}", 2)


def _why(interrupt: Interrupt) -> str:
    """The cause of the end, as QEMU's SHUTDOWN has it."""
    return "host-qmp-quit" if interrupt.quits else "host-signal" if interrupt.asked else "host-ui"


def _windows(encryption: str, tamper: str | None) -> Callable[[], OpenWindow]:
    """How each VM maps its windows. EINVAL (Refused): options that do not go together."""
    if encryption == "none":
        if tamper is not None:
            raise Refused(errno.EINVAL, "--tamper goes with --memory-encryption on")
        return lambda: WindowMemory
    from kvmsim.memory.encrypted import MemoryKey  # whose library takes longer to load than all else

    return lambda: MemoryKey(refuse=tamper == "refuse").open_window


@contextlib.contextmanager
def _logging(verbose: int) -> Iterator[None]:
    """The log of kvmsim goes to standard error; no thread waits for whoever reads that, least of all an up thread."""
    log = logging.getLogger("kvmsim")
    if not verbose:
        yield
        return
    # Where stderr is closed or full there is nobody to take a traceback about that either.
    logging.raiseExceptions = False
    stderr = StderrHandler()
    stderr.setFormatter(OneLine("kvmsim: %(message)s"))
    handler = LogQueue(stderr)
    log.addHandler(handler)
    log.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)
    try:
        yield
    finally:
        log.setLevel(logging.NOTSET)
        log.removeHandler(handler)
        handler.close()


def _say(what: str, status: int) -> int:
    print(f"kvmsim: {printable(what)}", file=sys.stderr)
    return status


def _read(path: str) -> bytes:
    if path != "-":
        with open(path, "rb") as file:
            return file.read(MAX_SCRIPT_BYTES + 1)
    if sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed: name a script, or open it")
    return sys.stdin.buffer.read(MAX_SCRIPT_BYTES + 1)


def _plug(executor: Executor, path: str, gpa: int) -> None:
    size = os.stat(path).st_size
    store_of_sealed(path)
    if size == 0:
        raise Refused(errno.EINVAL, f"the file is empty: give it a size first (truncate -s 64M {quoted(path)})")
    command = parse_line(f"slot set 0 private gpa={gpa:#x} size={size} file=-", 1)
    assert isinstance(command, SlotSet)
    executor(msgspec.structs.replace(command, file=path))  # which may hold what no line of a script does


def _commands(executor: Executor, greeting: str, asked: argparse.Namespace) -> int:
    """From a prompt, with exit status 0, or from a pipe."""
    printer = JsonPrinter(sys.stdout) if asked.json else HumanPrinter(sys.stdout, echo=False)
    shown, interrupt = Shown(printer.emit, quiet=asked.quiet), executor.interrupt
    if sys.stdin is None:
        return _say("standard input is closed: open it, or use kvmsim run SCRIPT", 2)
    if sys.stdin.isatty():
        from .prompt import prompt

        session = Session(executor, shown, is_stopped=lambda: interrupt.asked)
        prompt(session, interrupt, "" if asked.json else greeting)
        return 0
    session = Session(executor, shown, _complain, lambda: interrupt.asked)
    for line in InputLines(sys.stdin.fileno(), interrupt):
        if not session.feed(line) or interrupt.asked:
            break
    return session.end()


def _complain(why: str) -> None:
    print(f"kvmsim: {printable(why)}", file=sys.stderr)


def _is_streamed() -> bool:
    """Standard input has lines that may come later: it is no file."""
    try:
        return sys.stdin is not None and not stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode)
    except OSError:
        return False
