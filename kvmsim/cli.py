"""The command kvmsim: run a script, attach to a file and prompt, or compare designs."""

import argparse
import contextlib
import ctypes
import errno
import os
import sys
import time
from pathlib import Path

from memfsd.uapi.errors import Refused
from memfsd.uapi.journal import NO_JOURNAL, Journal
from memfsd.uapi.journalfile import open_journal, start_journal
from memfsd.uapi.limits import MAX_SCRIPT_BYTES, MAX_SLOTS
from memfsd.uapi.stdio import fill_standard_fds
from memfsd.uapi.units import parse_size

from .compare.command import add_parser as add_compare
from .compare.command import compare
from .execute import Executor
from .journal import command as journal
from .link import store_of_sealed
from .script.grammar import POLICIES, UNDER, help_text, parse_line, parse_script
from .script.output import HumanPrinter, JsonPrinter
from .script.runner import Session, run
from .script.words import ScriptError

_PR_SET_DUMPABLE = 4
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_READER_GONE = 141
"""As shells tell of SIGPIPE: 1 has a meaning of its own for every command."""

_EPILOG = """\
examples:
  kvmsim run boot.kvm --json                 a script, one JSON object a line
  echo 'info vms' | kvmsim run -             commands from standard input
  kvmsim attach /mnt/vm.mem --gpa 0          pair with a sealed file, then a prompt: try 'help'
  kvmsim race fault-x-punch --exhaustive     every order of a fault and a punch; --list names the others
  kvmsim compare                             what each design of conversion costs and destroys, as a table

exit status of run: 0 every command did what it should, 1 one did not, 2 the script can not be parsed,
or standard output can not be written
"""


def main() -> None:
    fill_standard_fds()
    _close_to_inspection()
    try:
        status = run_command(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        _give_up_stdout()
        status = _READER_GONE
    except OSError as error:
        # A file that fails is told where it is used: what has no name is standard output.
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        print(f"kvmsim: standard output: {error.strerror}", file=sys.stderr)
        _give_up_stdout()
        status = 2
    sys.exit(status)


def _give_up_stdout() -> None:
    """The interpreter must not try to flush to it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _close_to_inspection() -> None:
    """A guest's memory is mapped here, in the kernel's stead: other processes of the same user must not attach to this
    one or open its window through /proc/PID/fd. A Linux that could not do this would be older than memfds."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def run_command(arguments: list[str]) -> int:
    if arguments[:1] == ["race"]:
        return _race(arguments[1:])
    asked = _parser().parse_args(arguments)
    if asked.command == "journal":
        return journal.command(asked)
    if asked.command == "compare":
        return compare(asked)
    return _run(asked) if asked.command == "run" else _attach(asked)


def _race(arguments: list[str]) -> int:
    """Its package is loaded for it alone: it brings the whole of memfsd along."""
    from .race import cli

    parser = argparse.ArgumentParser(
        prog="kvmsim race",
        description="Run the real code of both sides under chosen schedules and check R1 to R8.",
        epilog=cli.epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_arguments(parser)
    return cli.main(parser.parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvmsim",
        description="A simulated KVM for guest private memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run_ = commands.add_parser(
        "run",
        help="run a script, a line a command",
        epilog="script commands:\n" + help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run_.add_argument("script", nargs="?", default="-", metavar="SCRIPT", help="a file, or - for standard input")
    run_.add_argument("--keep-going", action="store_true", help="run on after a command that failed")
    attach = commands.add_parser("attach", help="pair with a sealed file and prompt")
    attach.add_argument("file", metavar="FILE")
    attach.add_argument("--gpa", type=_address, default=0, metavar="G", help="where its memory begins (default 0)")
    commands.add_parser("race", help="run a scenario of both sides under chosen schedules", add_help=False)
    for sub in (run_, attach):
        sub.add_argument("--policy", choices=POLICIES, default="none", help="how exits are handled (default none)")
        sub.add_argument(
            "--under",
            choices=UNDER,
            default="kept",
            help="with policy overlay: what becomes of the private page under an ordinary slot (default kept)",
        )
        sub.add_argument("--max-slots", type=_slots, default=MAX_SLOTS, metavar="N", help="cap per address space")
        sub.add_argument("--json", action="store_true", help="one JSON object per command")
        sub.add_argument("--journal", metavar="FILE", help="record every message to and from the store")
    journal.add_parser(commands)
    add_compare(commands)
    return parser


def _address(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _slots(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_SLOTS:
        raise argparse.ArgumentTypeError(f"'{text}' is not 1 to {MAX_SLOTS}")
    return int(text)


def _run(asked: argparse.Namespace) -> int:
    try:
        commands = parse_script(_read(asked.script))
    except ScriptError as error:
        print(f"kvmsim: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"kvmsim: {asked.script}: {error.strerror}", file=sys.stderr)
        return 2
    printer = JsonPrinter(sys.stdout) if asked.json else HumanPrinter(sys.stdout)
    executor = _executor(asked)
    if executor is None:
        return 2
    try:
        return run(commands, executor, printer.emit, keep_going=asked.keep_going)
    finally:
        executor.close()


def _read(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read(MAX_SCRIPT_BYTES + 1)
    with open(path, "rb") as file:
        return file.read(MAX_SCRIPT_BYTES + 1)


def _executor(asked: argparse.Namespace) -> Executor | None:
    try:
        return Executor(asked.max_slots, asked.policy, asked.under, _journal(asked.journal))
    except Refused as refused:
        print(f"kvmsim: {refused.reason}", file=sys.stderr)
        return None


def _journal(path: str | None) -> Journal:
    if path is None:
        return NO_JOURNAL
    return start_journal(
        open_journal(path), "kvmsim", time.monotonic_ns, lambda text: print(f"kvmsim: {text}", file=sys.stderr)
    )


def _attach(asked: argparse.Namespace) -> int:
    executor = _executor(asked)
    if executor is None:
        return 2
    try:
        size = os.stat(asked.file).st_size
        store_of_sealed(asked.file)
        if size == 0:
            raise Refused(errno.EINVAL, f"the file is empty: give it a size first (truncate -s 64M {asked.file})")
        command = parse_line(f"slot set 0 private gpa={asked.gpa:#x} size={size} file={_quoted(asked.file)}", 1)
        assert command is not None
        executor(command)
    except (OSError, Refused, ScriptError) as error:
        reason = error.reason if isinstance(error, Refused) else getattr(error, "strerror", None) or str(error)
        print(f"kvmsim: {asked.file}: {reason.removeprefix(asked.file + ': ')}", file=sys.stderr)
        executor.close()
        return 1
    try:
        _prompt(executor, asked)
    finally:
        executor.close()
    return 0


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "'\\''") + "'"


def _prompt(executor: Executor, asked: argparse.Namespace) -> None:
    printer = JsonPrinter(sys.stdout) if asked.json else HumanPrinter(sys.stdout, echo=False)
    session = Session(executor, printer.emit)
    interactive = sys.stdin.isatty()
    if interactive:
        _load_history()
        print(f"{asked.file} is private slot 0 at gpa {asked.gpa:#x}. 'help' lists the commands, 'quit' leaves.")
    while True:
        try:
            line = input("(kvmsim) " if interactive else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
            continue
        if not session.feed(line):
            return


def _load_history() -> None:
    """Arrow keys and a history that outlives the session, where readline is there."""
    with contextlib.suppress(ImportError):
        import atexit
        import readline

        path = Path.home() / ".kvmsim_history"
        with contextlib.suppress(OSError):
            readline.read_history_file(path)
        readline.set_history_length(1000)

        def save() -> None:
            with contextlib.suppress(OSError):
                readline.write_history_file(path)

        atexit.register(save)
