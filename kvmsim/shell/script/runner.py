"""Running commands: a whole script, or one line after the other at a prompt.

The caller gives `execute`, which does a command, and `emit`, which shows what it did. Both know nothing of
`expect`: whether an outcome fails the run is decided here, and only here.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from memfsd.uapi.errors import Refused

from .commands import Command, End, Expect, Quiet
from .expect import mismatch
from .grammar import help_names, help_text
from .outcome import Outcome, Record
from .repeat import Parser
from .words import ScriptError

Execute = Callable[[Command], Outcome]
"""Does one command. Refused stands for an Outcome with its errno; any other exception ends the run."""
Emit = Callable[[Record], None]
Complain = Callable[[str], None]
QUIT = ("quit", "exit", "q")
_HELP = """\
help COMMAND explains one, help all explains all; ? is help
Tab completes; Ctrl-C stops a command, resume goes on; quit, exit or q leaves"""


class Shown:
    """Emits records; while `quiet on` is in force, only what goes wrong."""

    def __init__(self, emit: Emit, *, quiet: bool = False) -> None:
        self._emit = emit
        self._quiet = quiet

    def __call__(self, record: Record) -> None:
        if isinstance(record.command, Quiet):
            self._quiet = record.command.quiet
        elif self._quiet and not record.failed and (record.outcome.ok or record.expected):
            return
        self._emit(record)


def run(
    commands: Iterator[Command],
    execute: Execute,
    emit: Emit,
    *,
    keep_going: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
    is_ready: Callable[[], bool] = lambda: True,
    complain: Complain = lambda _: None,
) -> int:
    """Exit status of a script: 0 when every command did what it should, else 1. ``is_stopped`` ends it.

    A command fails the run when it is not ok and no `expect` follows; an `expect` when it does not match.
    The run ends there, or with ``keep_going`` after the last command. Each record is emitted before the next
    command starts. While the next line is not ``is_ready``, a command that is not ok is answered without it, and
    ``complain`` gets a line when no `expect` has come. ScriptError of ``commands``, when all before it is done.
    """
    status = 0
    previous: Outcome | None = None
    ahead = _Ahead(commands)
    while (command := ahead.take()) is not None:
        if isinstance(command, Expect):
            assert previous is not None, "the parser refuses an expect without a command before it"
            record = _judge(command, previous)
            failed = record.failed
            emit(record)
        else:
            record = _attempt(execute, command)
            previous, failed = record.outcome, False
            if previous.ok:
                emit(record)
            elif is_ready():
                failed = not ahead.is_expect()
                emit(replace(record, failed=failed, expected=not failed))
            else:
                emit(record)
                failed = not ahead.is_expect()
                if failed:
                    complain(_unexpected(command))
        if failed:
            status = 1
        if (failed and not keep_going) or is_stopped():
            break
    return status


class _Ahead:
    """Commands, of which the next one can be looked at."""

    def __init__(self, commands: Iterator[Command]) -> None:
        self._commands = commands
        self._next: Command | ScriptError | None = None
        self._is_there = False

    def is_expect(self) -> bool:
        """The next one is an `expect`. It may have to be waited for."""
        self._look()
        return isinstance(self._next, Expect)

    def take(self) -> Command | None:
        """None at the end. ScriptError."""
        self._look()
        if isinstance(self._next, ScriptError):
            raise self._next
        self._is_there = False
        return self._next

    def _look(self) -> None:
        if not self._is_there:
            self._is_there = True
            try:
                self._next = next(self._commands, None)
            except ScriptError as error:
                self._next = error


class Session:
    """One line at a time, for a prompt or a pipe: nothing in a line ends it but `quit`.

    ``complain`` gets one line for each line that cannot be parsed and each command that did not do what it should and
    has no `expect` after it: for pipes, where the exit status says that there is one. All lines but empty ones and
    comments are answered with one record; those of a block at its `end`, a record for each time that they are done.
    ``is_stopped`` ends a block.
    """

    def __init__(
        self,
        execute: Execute,
        emit: Emit,
        complain: Complain = lambda _: None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._execute = execute
        self._emit = emit
        self._complain = complain
        self._is_stopped = is_stopped
        self._parser = Parser()
        self._skipping = 0
        """Blocks that are open and will not be done, since a line of theirs cannot be parsed."""
        self._line = 0
        self._previous: Outcome | None = None
        self._unjudged: Command | None = None
        """Not ok, and an `expect` may follow."""
        self._status = 0

    def feed(self, text: str) -> bool:
        """Parse and run one line, without its end; False when it asks to leave.

        The commands of scripts, and `help [COMMAND]` or `?`, `quit`, `exit` or `q`. Mistakes are answered, not raised.
        """
        self._line += 1
        words = text.split()
        if len(words) == 1 and words[0] in QUIT:
            self._answer("quit", text, Outcome(ok=True))
            return False
        if words[:1] in (["help"], ["?"]):
            self._answer("help", text, _help(words[1:]))
            return True
        if self._skipping:
            self._skip(words[:1], text)
            return True
        try:
            for command in self._parser.feed(text, self._line):
                self._emit(self._run(command))
                if self._is_stopped():
                    break
        except ScriptError as error:
            self._mistake(error, text)
        return True

    @property
    def is_open(self) -> bool:
        """A `repeat` waits for its `end`."""
        return self._parser.is_open or self._skipping > 0

    def _mistake(self, error: ScriptError, text: str) -> None:
        self._status = 2
        self._complain(str(error))
        self._skipping = self._parser.depth
        self._parser.drop()
        self._answer("", text, Outcome(ok=False, reason=f"column {error.column}: {error.message}"))

    def _skip(self, first: list[str], text: str) -> None:
        self._skipping += (first == ["repeat"]) - (first == ["end"])
        if not self._skipping:
            self._answer("end", text, Outcome(ok=False, reason="nothing was repeated: a line could not be parsed"))

    def end(self) -> int:
        """No line follows. Exit status as of `run`, which a pipe has and a prompt has not."""
        self._judge_none()
        try:
            self._parser.close()
        except ScriptError as error:
            self._status = 2
            self._complain(str(error))
        return self._status

    def _run(self, command: Command) -> Record:
        if isinstance(command, Expect):
            assert self._previous is not None
            self._unjudged = None
            record = _judge(command, self._previous)
            if record.failed:
                self._status = max(self._status, 1)
            return record
        self._judge_none()
        record = _attempt(self._execute, command)
        self._previous = record.outcome
        if not record.outcome.ok:
            self._unjudged = command
        return record

    def _judge_none(self) -> None:
        if self._unjudged is not None:
            self._status = max(self._status, 1)
            self._complain(_unexpected(self._unjudged))
            self._unjudged = None

    def _answer(self, name: str, text: str, outcome: Outcome) -> None:
        self._emit(Record(Command(line=self._line, name=name, source=text.strip(" \t")), outcome, failed=False))


def _unexpected(command: Command) -> str:
    return f"line {command.line}: it did not do what it should, and no expect follows"


def _attempt(execute: Execute, command: Command) -> Record:
    """Whether the run fails there is not known yet."""
    if isinstance(command, End | Quiet):
        return Record(command, Outcome(ok=True), failed=False)
    began = time.perf_counter()
    try:
        outcome = execute(command)
    except Refused as refusal:
        outcome = Outcome.refused(refusal)
    return Record(command, outcome, failed=False, seconds=time.perf_counter() - began)


def _judge(expect: Expect, previous: Outcome) -> Record:
    trouble = mismatch(expect, previous)
    return Record(expect, Outcome(ok=trouble is None, reason=trouble or ""), failed=trouble is not None)


def _help(topic: list[str]) -> Outcome:
    if topic == ["all"]:
        return Outcome(ok=True, text=help_text())
    if topic:
        try:
            return Outcome(ok=True, text=help_text(" ".join(topic)))
        except ValueError as error:
            return Outcome(ok=False, reason=str(error))
    return Outcome(ok=True, text=f"{help_names()}\n{_HELP}")
