"""The command kvmsim. What a command needs is loaded for it alone: --help needs next to nothing."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from memfsd.common.arguments import Parser, command_of
from memfsd.common.quote import printable, quoted
from memfsd.common.starting import INTERRUPTED, be_quiet_when_interrupted, take_interrupts
from memfsd.common.stdio import fill_standard_fds, with_stdout
from memfsd.common.version import VERSION

if TYPE_CHECKING:
    from .instruments.monitor.listening import Listening
    from .shell.execute import Executor

_NO_MEMORY = "out of memory: raise the limit (ulimit -v), or give the host more"

_EPILOG = """\
examples:
  kvmsim run boot.kvm --json                 a script, one JSON object a line
  echo 'info vms' | kvmsim run -             commands from standard input
  kvmsim attach /mnt/vm.mem --gpa 0          pair with a sealed file, then a prompt: try 'help'
  kvmsim shell                               a prompt without a file
  kvmsim monitor vm0                         from another terminal: look into a VM that runs, stop it, let it go on
  kvmsim top                                 watch it: pages, rates, memory that is held twice
  kvmsim race fault-x-punch --exhaustive     every order of a fault and a punch; --list names the others
  kvmsim compare                             what each design of conversion costs and destroys, as a table

exit status: 0 done, 1 not (run: a command did not do what it should), 2 usage, a script that cannot be parsed, or
standard output, the journal or the trace cannot be written, 130 interrupted, 141 the reader of standard output went
away
"""


def main() -> None:
    fill_standard_fds()
    status: int
    try:
        _close_to_inspection()
        status = with_stdout("kvmsim", _run_asked)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except MemoryError:
        status = _failed(_NO_MEMORY, _no_answer())
    except OSError as error:
        status = _os_error(error)
    be_quiet_when_interrupted()
    sys.exit(status)


def _run_asked() -> int:
    os.write(1, b"")  # what cannot be written is said before anything is done
    try:
        return run_command(sys.argv[1:])
    except SystemExit as end:  # of argparse
        return int(end.code or 0)


def _os_error(error: OSError) -> int:
    if error.errno == errno.ENOMEM:
        return _failed(_NO_MEMORY, _no_answer())
    why = error.strerror or str(error)
    return _failed(why if error.filename is None else f"{quoted(error.filename)}: {why}", _no_answer())


def _no_answer() -> int:
    """1 is an answer of race: a failure was found."""
    return 2 if command_of(sys.argv[1:]) == "race" else 1


def _failed(what: str, status: int) -> int:
    print(f"kvmsim: {printable(what)}", file=sys.stderr)
    return status


def _close_to_inspection() -> None:
    """A guest's memory is mapped here, in the kernel's stead: other processes of the same user must not attach to this
    one or open its window through /proc/PID/fd. A Linux that could not do this would be older than memfds. What root
    dumps all the same is without memory: registers and caches of the vCPUs are buffers here, in plaintext."""
    import ctypes

    with suppress(OSError), open("/proc/self/coredump_filter", "w", encoding="ascii") as kinds:
        kinds.write("0")

    pr_set_dumpable = 4
    ctypes.CDLL(None).prctl(pr_set_dumpable, 0, 0, 0, 0)


def run_command(arguments: list[str]) -> int:
    with _small_numpy():
        parser = _parser(command_of(arguments))
        asked, unknown = parser.parse_known_args(arguments)
    if unknown:
        asked.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    load: Load = asked.load
    with _small_numpy():
        command = load()
    take_interrupts()
    return command(asked)


@contextmanager
def _small_numpy() -> Iterator[None]:
    """What a command imports may be numpy, whose OpenBLAS would start threads and take memory for each core."""
    mine = "OPENBLAS_NUM_THREADS" not in os.environ
    if mine:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if mine:
            del os.environ["OPENBLAS_NUM_THREADS"]


def _parser(command: str) -> argparse.ArgumentParser:
    """Knows the arguments of this command, and only the names of the others."""
    parser = Parser(prog="kvmsim", description="A simulated KVM for guest private memory.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"kvmsim {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (help_, add_arguments) in _COMMANDS.items():
        sub = commands.add_parser(name, help=help_)
        if name == command:
            sub.set_defaults(load=add_arguments(sub), parser=sub)
    return parser


Load = Callable[[], Callable[[argparse.Namespace], int]]
"""Imports what a command needs, and returns what runs it."""
Adder = Callable[[Any], Load]
"""Adds a command's arguments to its parser."""


def _run(parser: argparse.ArgumentParser) -> Load:
    from .instruments.monitor.arguments import add_arguments as add_monitor
    from .shell.arguments import add_run_arguments

    add_run_arguments(parser)
    add_monitor(parser)
    parser.add_argument("--report", metavar="FILE.html", help="write a page about the run when it ends")

    def load() -> Callable[[argparse.Namespace], int]:
        from .shell.script_command import run

        def execute(asked: argparse.Namespace) -> int:
            if asked.report is None:
                return run(asked, _monitored)
            from .instruments.views.report_command import reported

            return reported(asked, lambda: run(asked, _monitored))

        return execute

    return load


def _attach(parser: argparse.ArgumentParser) -> Load:
    from .instruments.monitor.arguments import add_arguments as add_monitor
    from .shell.arguments import add_attach_arguments

    add_attach_arguments(parser)
    add_monitor(parser)

    def load() -> Callable[[argparse.Namespace], int]:
        from .shell.script_command import attach

        return lambda asked: attach(asked, _monitored)

    return load


def _shell(parser: argparse.ArgumentParser) -> Load:
    from .instruments.monitor.arguments import add_arguments as add_monitor
    from .shell.arguments import add_shell_arguments

    add_shell_arguments(parser)
    add_monitor(parser)

    def load() -> Callable[[argparse.Namespace], int]:
        from .shell.script_command import shell

        return lambda asked: shell(asked, _monitored)

    return load


def _monitored(asked: argparse.Namespace, executor: "Executor") -> "Listening":
    from .instruments.monitor.listening import Listening
    from .instruments.monitor.places import listen

    return Listening(listen(asked.qmp), executor)


def _monitor(parser: argparse.ArgumentParser) -> Load:
    from .instruments.monitor import command

    command.add_arguments(parser)
    return lambda: command.monitor


def _race(parser: argparse.ArgumentParser) -> Load:
    from .instruments.race.arguments import add_arguments

    add_arguments(parser)

    def load() -> Callable[[argparse.Namespace], int]:
        from .instruments.race import cli

        return cli.main

    return load


def _journal(parser: argparse.ArgumentParser) -> Load:
    from .instruments.journal import command

    command.add_arguments(parser)
    return lambda: command.command


def _trace(parser: argparse.ArgumentParser) -> Load:
    from .instruments.tracing import command

    command.add_arguments(parser)
    return lambda: command.command


def _stat(parser: argparse.ArgumentParser) -> Load:
    from .instruments.tracing import stat_command

    stat_command.add_arguments(parser)
    return lambda: stat_command.command


def _perf(parser: argparse.ArgumentParser) -> Load:
    from .instruments.tracing import perf_command

    perf_command.add_arguments(parser)
    return lambda: perf_command.command


def _top(parser: argparse.ArgumentParser) -> Load:
    from .instruments.views import top_command

    top_command.add_arguments(parser)
    return lambda: top_command.command


def _report(parser: argparse.ArgumentParser) -> Load:
    from .instruments.views import report_command

    report_command.add_arguments(parser)
    return lambda: report_command.command


def _compare(parser: argparse.ArgumentParser) -> Load:
    from .instruments.compare.arguments import add_arguments

    add_arguments(parser)
    parser.add_argument("--html", metavar="FILE.html", help="write the results as a page")

    def load() -> Callable[[argparse.Namespace], int]:
        from .instruments.compare.command import compare

        def execute(asked: argparse.Namespace) -> int:
            if asked.html is None:
                return compare(asked)
            from .instruments.views.comparison import compared

            return compared(asked.html, asked.plot, lambda finish: compare(asked, finish))

        return execute

    return load


def _vmms(parser: argparse.ArgumentParser) -> Load:
    from .instruments.vmms.arguments import add_arguments

    add_arguments(parser)

    def load() -> Callable[[argparse.Namespace], int]:
        from .instruments.vmms.command import vmms

        return vmms

    return load


def _abi(parser: argparse.ArgumentParser) -> Load:
    from .instruments.vmms.abi.arguments import add_arguments

    add_arguments(parser)
    parser.add_argument("--html", metavar="FILE.html", help="write the answers as a page")

    def load() -> Callable[[argparse.Namespace], int]:
        from .instruments.vmms.abi.command import abi

        def execute(asked: argparse.Namespace) -> int:
            if asked.html is None:
                return abi(asked)
            from .instruments.views.answers import answered

            return answered(asked.html, lambda finish: abi(asked, finish))

        return execute

    return load


_COMMANDS: dict[str, tuple[str, Adder]] = {
    "run": ("run a script, a line a command", _run),
    "attach": ("pair with a sealed file and prompt", _attach),
    "shell": ("prompt, with no file yet", _shell),
    "monitor": ("list the VMs that run, look into one, stop it and let it go on", _monitor),
    "top": ("watch a VM that runs, on a full screen", _top),
    "race": ("run a scenario of both sides under chosen schedules", _race),
    "journal": ("verify and show what --journal recorded", _journal),
    "report": ("one HTML page of what --journal recorded", _report),
    "trace": ("which events --trace writes; traces and journals for Perfetto's viewer", _trace),
    "stat": ("count the events of traces, once or as they come", _stat),
    "perf": ("exits by reason, with their times", _perf),
    "vmms": ("run models of real VMMs through conversions that fail, and judge what they leave", _vmms),
    "abi": ("run a catalogue of situations on every ABI and show what differs", _abi),
    "compare": ("run the same guests over all designs of conversion and measure", _compare),
}
