"""The prompt of `kvmsim attach` on a terminal, with a VM that has no memory yet."""

import sys
from pathlib import Path

from .terminal import Terminal

ROOT = Path(__file__).parents[2]
PROMPT = "(kvmsim) "
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from kvmsim.shell.execute import Executor
from kvmsim.shell.prompt import prompt
from kvmsim.shell.script.output import HumanPrinter
from kvmsim.shell.script.runner import Session
executor = Executor(8)
with executor.interrupt.listen():
    prompt(Session(executor, HumanPrinter(sys.stdout, echo=False).emit), executor.interrupt, "here")
    executor.close()
"""


class PromptTerminal(Terminal):
    def __init__(self, home: Path) -> None:
        super().__init__([sys.executable, "-c", _PROGRAM, str(ROOT)], home)

    def run(self, line: str) -> str:
        """What the command printed."""
        self.type(line + "\n")
        return self.until(PROMPT).split("\n", 1)[1].removesuffix(PROMPT)
