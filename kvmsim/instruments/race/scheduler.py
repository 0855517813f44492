"""One thread at a time: who goes on is decided at each point, by a chooser.

A *task* stands for a thread. It runs from one point to the next (a *step*) while all others stand still at theirs:
so all of them are greenlets of one thread, since handing over to another thread takes as long as several steps.
A task is enabled when what its point waits for is there: the lock is free, a packet has come, the event
is set. Waits with a deadline fire when nobody is enabled, the earliest first: time is virtual. Nobody enabled, nobody
with a deadline and an actor not at its end: that is a deadlock.

A run depends on its choices alone, so that the list of choices replays it.
"""

import threading
from collections.abc import Callable
from typing import Any, Protocol

from greenlet import getcurrent, greenlet

from .accesses import Access, Key, Kind

MAX_STEPS = 20_000
"""Of one run: more means that it does not come to an end."""


OUTLIVES = ("queue", "frame", "folio")
"""What is there when the process that touched it is dead."""

SHARED = (*OUTLIVES, "process", "life", "end")
"""What processes know of each other by."""


class Killed(BaseException):
    """Ends a thread whose process is dead, or whose run is over."""


class Stuck(Exception):
    """The main task waits for what nobody will do."""


class Task:
    """One thread of one process."""

    def __init__(self, id_: int, name: str, process: str) -> None:
        self.id = id_
        self.name = name
        self.process = process
        self.is_actor = False
        self.point = "starts"
        """Where it is, or what it did last."""
        self.ready: Callable[[], bool] | None = None
        """None: enabled."""
        self.deadline: float | None = None
        self.pending: Access | None = None
        """What it would touch first."""
        self.done = False
        self.dead = False
        self.error: BaseException | None = None
        self.fiber: greenlet | None = None
        """What runs it; None before it is started."""
        self.fired = False
        self.serves = False
        """Does what another task asks for, and nothing by itself."""
        self.looks = False
        """In a method that only reads under Mmu.lock."""
        self.section: Any = None
        """The Mmu.lock that it holds."""
        self.locks = 0
        """Held now."""
        self.asked = 0
        """The step at which it began what it may have to ask again."""
        self.yields = False
        """Goes on when the answer may be another one, or nobody else can go on."""

    def __repr__(self) -> str:
        return self.name


class Step:
    """From a point to the next: who, where it began, what it touched, who else could have gone."""

    __slots__ = ("accesses", "enabled", "fired", "killed", "name", "note", "said", "task")

    def __init__(self, task: Task, name: str, enabled: list[Task], fired: bool) -> None:
        self.task = task
        self.name = name
        self.enabled = enabled
        self.fired = fired
        """Its deadline had passed: nobody else could go."""
        self.accesses: dict[Access, None] = {}
        self.note = ""
        """What came of it."""
        self.said = b""
        """What it sent."""
        self.killed = ""
        """The process that it killed."""

    @property
    def is_seen(self) -> bool:
        """Other processes could see what it did."""
        return (("process", self.task.process), Kind.READ) in self.accesses

    def as_seen(self) -> "Step":
        """What others could see of it."""
        seen = Step(self.task, self.name, self.enabled, self.fired)
        seen.said = self.said
        seen.accesses = {access: None for access in self.accesses if access[0][0] in SHARED}
        return seen


class Chooser(Protocol):
    """Decides at each step which task goes on."""

    def choose(self, steps: list[Step], enabled: list[Task], current: Task | None) -> Task | None:
        """Who goes on; None ends the run (its rest was seen before)."""


class Scheduler:
    """All tasks of one run, in the thread that makes it: what runs there already is the first of them, `main`."""

    def __init__(self, chooser: Chooser) -> None:
        self._chooser = chooser
        self.main = Task(0, "main", "nobody")
        self.tasks: list[Task] = [self.main]
        self.steps: list[Step] = []
        self.racing = False
        self.is_over = False
        self.cut_short = False
        """The chooser ended the run."""
        self.endless = False
        self.now = 0.0
        self.frozen: set[str] = set()
        """Processes that are stopped."""
        self.failures: list[str] = []
        self._thread = threading.get_ident()
        self.main.fiber = getcurrent()
        self._running = self.main
        self._interrupt: BaseException | None = None
        """Ctrl-C, the end of a test's time or of this process's memory, which came while another task than main ran."""
        self._step: Step | None = None
        self._named: dict[str, int] = {}
        self._step_count = 0
        self._limit = MAX_STEPS

    def me(self) -> Task:
        return self._running

    def runs_this_thread(self) -> bool:
        return threading.get_ident() == self._thread

    def fail(self, what: str) -> None:
        self.failures.append(what)

    # -- points

    def reach(
        self,
        name: str,
        ready: Callable[[], bool] | None = None,
        timeout_s: float | None = None,
        pending: Access | None = None,
    ) -> bool:
        """The calling task is at a point; back when it was chosen. False when its deadline passed first."""
        task = self.me()
        if self.is_over and task is self.main:
            return True  # alone: it only clears away
        if self.is_over or task.dead:
            raise Killed
        task.point, task.ready, task.pending = name, ready, pending
        task.deadline = None if timeout_s is None else self.now + timeout_s
        self._hand_over(task)
        if pending is not None and not task.fired:
            self.touch(*pending)
        return not task.fired

    def ask_again(self, name: str) -> None:
        """A point of a task that would only be told again what it was just told, unless something changed."""
        task = self.me()
        task.yields = True
        self.reach(name)
        task.yields = False
        task.asked = len(self.steps)

    def _may_ask(self, task: Task) -> bool:
        """Since it asked, another task was in a section whose outcome the answer depends on."""
        return any(
            kind is Kind.TAKE and (key[1].endswith(" Service.lock") or key[1] == f"{task.process} Mmu.lock")
            for step in self.steps[task.asked :]
            if step.task is not task and not step.task.serves
            for key, kind in step.accesses
        )

    def touch(self, key: Key, kind: Kind) -> None:
        """The running step touches something that other tasks may touch."""
        step = self._step
        if step is not None:
            step.accesses[key, kind] = None
            if key[0] in OUTLIVES:
                self.is_seen()

    def say(self, packet: bytes) -> None:
        """The running step sends it."""
        if self._step is not None:
            self._step.said += packet

    def untouch(self, key: Key, kind: Kind) -> None:
        if self._step is not None:
            self._step.accesses.pop((key, kind), None)

    def is_seen(self) -> None:
        """Other processes can see what the running step does, so that it matters whether its process is dead."""
        if self._step is not None:
            self._step.accesses[("process", self._step.task.process), Kind.READ] = None

    def note(self, text: str) -> None:
        if self._step is not None:
            self._step.note = f"{self._step.note}; {text}" if self._step.note else text

    def rename(self, name: str) -> None:
        """The running step turned out to be this one."""
        if self._step is not None:
            self._step.name = name

    def unique(self, name: str) -> str:
        """A name for what the running task makes: it is the same in every run."""
        maker = self.me()
        full = name if maker is self.main else f"{name} of {maker.name}"
        if maker is self.main and maker.process != "nobody":
            full = f"{maker.process} {name}" if not name.startswith(maker.process) else name
        count = self._named[full] = self._named.get(full, 0) + 1
        return full if count == 1 else f"{full} {count}"

    def _hand_over(self, task: Task) -> None:
        following = self._pick(task)
        if following is not task:
            self._switch(task, following)
        if self.is_over or task.dead:
            raise Killed
        if task is self.main and not self.racing and not task.fired and task.ready is not None and not task.ready():
            raise Stuck(f"nobody ends the wait at '{task.point}'")

    def _switch(self, task: Task, following: Task) -> None:
        """Back when somebody goes on with `task`."""
        assert following.fiber is not None
        following.fiber.switch()
        self._running = task
        if self._interrupt is not None and task is self.main:
            interrupt, self._interrupt = self._interrupt, None
            raise interrupt

    def _pick(self, current: Task | None) -> Task:
        self._step = None
        self._step_count += 1
        main = self.main
        if self._step_count > self._limit and not self.endless:
            self.endless, self.racing = True, False
        main_can = not self.racing and (main.ready is None or main.ready())
        if main_can and current is main:
            enabled = [main]
        else:
            enabled = self._able()
            if main_can and not enabled:
                enabled = [main]
        busy = [task for task in enabled if not task.yields or self._may_ask(task)]
        enabled = busy or enabled
        fired = False
        if self.endless:
            enabled = [main]
        if not enabled:
            timed = [
                task
                for task in self.tasks
                if task.deadline is not None
                and not task.done
                and not task.dead
                and (task.process not in self.frozen or task.process == "outside")
            ]
            if not timed:
                enabled = [main]  # all is quiet, or stuck
            else:
                first = min(timed, key=lambda task: (task.deadline, task.id))
                assert first.deadline is not None
                self.now = max(self.now, first.deadline)
                enabled, fired = [first], True
        if self.racing and enabled != [main]:
            chosen = self._chooser.choose(self.steps, enabled, current)
            if chosen is None:
                self.cut_short, self.racing = True, False
                chosen = main
            else:
                assert chosen in enabled
                self._step = Step(chosen, chosen.point, enabled, fired)
                self.steps.append(self._step)
        else:
            chosen = current if current in enabled and current is not None else enabled[0]
        chosen.fired = fired
        return chosen

    def _able(self) -> list[Task]:
        """Tasks other than main whose wait is over."""
        frozen, found = self.frozen, []
        for task in self.tasks:
            if task.done or task.dead or task.process in frozen or task is self.main:
                continue
            ready = task.ready
            if ready is None or ready():
                found.append(task)
        return found

    # -- threads

    def add(self, name: str, process: str, *, actor: bool = False) -> Task:
        """Names are the same in every run: what they are numbered by is the order of one task's steps."""
        task = Task(len(self.tasks), self.unique(name), process)
        task.is_actor = actor
        task.ready = lambda: False
        self.tasks.append(task)
        return task

    def start(self, task: Task, run: Callable[[], Any]) -> None:
        """The task is enabled from now on."""

        def body(*_: object) -> None:
            self._running = task
            try:
                if not self.is_over and not task.dead:
                    run()
            except Killed:
                pass
            except MemoryError as error:  # ours: no simulated process runs out of it
                self._interrupt = error
            except Exception as error:
                task.error = error
            except BaseException as interrupt:
                self._interrupt = interrupt
            self._end(task)

        task.fiber = greenlet(body, self.main.fiber)
        task.ready = None
        if task.process != self.me().process:
            self.is_seen()

    def _end(self, task: Task) -> None:
        """Whoever is the parent of a greenlet goes on when it has ended."""
        task.done = True
        if self._step is not None:
            self._step.accesses[("end", task.name), Kind.SEND] = None
        assert task.fiber is not None
        if not self.is_over and self._interrupt is None:
            task.fiber.parent = self._pick(None).fiber
        task.fiber = None

    # -- phases, called by the main task

    def race(self) -> None:
        """Let the tasks run under the chooser until nothing goes on any more."""
        self.racing = True
        self.settle()
        self.racing = False
        self._step = None

    def settle(self) -> None:
        """Let the tasks run until nothing goes on any more, deadlines included."""
        main = self.main
        self._step_count = 0
        main.point, main.ready, main.deadline = "waits for the end", lambda: False, None
        following = self._pick(None)
        if following is not main:
            self._switch(main, following)
        main.ready = None

    def kill(self, process: str) -> None:
        """Threads of a process stop for good where they are."""
        killed = [task for task in self.tasks if task.process == process and not task.done and not task.dead]
        for task in killed:
            task.dead = True
        if self._step is not None:
            self._step.killed = process

    def end(self) -> None:
        """Unwind every task that is left, one after the other."""
        self.is_over = True
        for task in self.tasks:
            if task is not self.main and task.fiber is not None:
                self._switch(self.main, task)
