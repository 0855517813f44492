"""Running commands: a whole script, or one line after the other at a prompt.

The caller gives `execute`, which does a command, and `emit`, which shows what it did. Both know nothing of
`expect`: whether an outcome fails the run is decided here, and only here.
"""

from collections.abc import Callable, Sequence

from memfsd.uapi.errors import Refused

from .commands import Command, Expect
from .expect import mismatch
from .grammar import help_names, help_text, nothing_to_expect, parse_line
from .outcome import Outcome, Record
from .words import ScriptError

Execute = Callable[[Command], Outcome]
"""Does one command. Refused stands for an Outcome with its errno; any other exception ends the run."""
Emit = Callable[[Record], None]
QUIT = ("quit", "exit", "q")
_HELP = """\
help COMMAND explains one, help all explains all; ? is help
Tab completes; Ctrl-C stops a command, resume goes on; quit, exit or q leaves"""


def run(
    commands: Sequence[Command],
    execute: Execute,
    emit: Emit,
    keep_going: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Exit status of a parsed script: 0 when every command did what it should, else 1. ``is_stopped`` ends it.

    A command fails the run when it is not ok and no `expect` follows; an `expect` when it does not match.
    The run ends there, or with ``keep_going`` after the last command. Each record is emitted before the next
    command starts.
    """
    status = 0
    previous: Outcome | None = None
    for at, command in enumerate(commands):
        if isinstance(command, Expect):
            assert previous is not None, "the parser refuses an expect without a command before it"
            record = _judge(command, previous)
        else:
            previous = _attempt(execute, command)
            judged = at + 1 < len(commands) and isinstance(commands[at + 1], Expect)
            record = Record(command, previous, failed=not previous.ok and not judged)
        emit(record)
        if record.failed:
            status = 1
        if (record.failed and not keep_going) or is_stopped():
            break
    return status


class Session:
    """One line at a time, for a prompt or a pipe: nothing in a line ends it but `quit`.

    ``complain`` gets one line for each line that cannot be parsed and each command that did not do what it should and
    has no `expect` after it: for pipes, where the exit status says that there is one. All lines but empty ones and
    comments are answered with one record.
    """

    def __init__(self, execute: Execute, emit: Emit, complain: Callable[[str], None] = lambda _: None) -> None:
        self._execute = execute
        self._emit = emit
        self._complain = complain
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
        try:
            command = parse_line(text, self._line)
            if isinstance(command, Expect) and self._previous is None:
                raise nothing_to_expect(command, text)
        except ScriptError as error:
            self._status = 2
            self._complain(str(error))
            self._answer("", text, Outcome(ok=False, reason=f"column {error.column}: {error.message}"))
            return True
        if command is not None:
            self._emit(self._run(command))
        return True

    def end(self) -> int:
        """No line follows. Exit status as of `run`, which a pipe has and a prompt has not."""
        self._judge_none()
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
        self._previous = _attempt(self._execute, command)
        if not self._previous.ok:
            self._unjudged = command
        return Record(command, self._previous, failed=False)

    def _judge_none(self) -> None:
        if self._unjudged is not None:
            self._status = max(self._status, 1)
            self._complain(f"line {self._unjudged.line}: it did not do what it should, and no expect follows")
            self._unjudged = None

    def _answer(self, name: str, text: str, outcome: Outcome) -> None:
        self._emit(Record(Command(line=self._line, name=name, source=text.strip(" \t")), outcome, failed=False))


def _attempt(execute: Execute, command: Command) -> Outcome:
    try:
        return execute(command)
    except Refused as refusal:
        return Outcome.refused(refusal)


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
