"""Running commands: a whole script, or one line after the other at a prompt.

The caller gives `execute`, which does a command, and `emit`, which shows what it did. Both know nothing of
`expect`: whether an outcome fails the run is decided here, and only here.
"""

from collections.abc import Callable, Sequence

from memfsd.uapi.errors import Refused

from .commands import Command, Expect
from .expect import mismatch
from .grammar import help_text, nothing_to_expect, parse_line
from .outcome import Outcome, Record
from .words import ScriptError

Execute = Callable[[Command], Outcome]
"""Does one command. Refused stands for an Outcome with its errno; any other exception ends the run."""
Emit = Callable[[Record], None]


def run(commands: Sequence[Command], execute: Execute, emit: Emit, keep_going: bool = False) -> int:
    """Exit status of a parsed script: 0 when every command did what it should, else 1.

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
            if not keep_going:
                break
    return status


class Session:
    """One line at a time, for a prompt: nothing that is typed ends it but `quit`."""

    def __init__(self, execute: Execute, emit: Emit, say: Callable[[str], None] = print) -> None:
        self._execute = execute
        self._emit = emit
        self._say = say
        self._line = 0
        self._previous: Outcome | None = None

    def feed(self, text: str) -> bool:
        """Parse and run one line, without its end; False when it asks to leave.

        The commands of scripts, and `help [COMMAND]`, `quit`, `exit`. Mistakes are said, not raised.
        """
        self._line += 1
        words = text.split()
        if words in (["quit"], ["exit"]):
            return False
        if words[:1] == ["help"]:
            self._say(_help(words[1:]))
            return True
        try:
            command = parse_line(text, self._line)
            if isinstance(command, Expect) and self._previous is None:
                raise nothing_to_expect(command, text)
        except ScriptError as error:
            self._say(f"column {error.column}: {error.message}")
            return True
        if command is not None:
            self._emit(self._run(command))
        return True

    def _run(self, command: Command) -> Record:
        if isinstance(command, Expect):
            assert self._previous is not None
            return _judge(command, self._previous)
        self._previous = _attempt(self._execute, command)
        return Record(command, self._previous, failed=False)


def _attempt(execute: Execute, command: Command) -> Outcome:
    try:
        return execute(command)
    except Refused as refusal:
        return Outcome.refused(refusal)


def _judge(expect: Expect, previous: Outcome) -> Record:
    trouble = mismatch(expect, previous)
    return Record(expect, Outcome(ok=trouble is None, reason=trouble or ""), failed=trouble is not None)


def _help(topic: list[str]) -> str:
    if topic:
        try:
            return help_text(" ".join(topic))
        except ValueError as error:
            return str(error)
    return f"{help_text()}\nhelp [COMMAND]\n    this list, or a part of it\nquit\n    leave; exit does the same"
