"""Lines of a script, with and without a store, and a prompt that waits for a command."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.both_sides import LocalStore
from tests.support.prompt import PROMPT, PromptTerminal
from tests.support.script_lines import Lines


@pytest.fixture
def do() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.executor.close()


@pytest.fixture
def private(store: LocalStore) -> Iterator[Lines]:
    """VMs pair with the local store; private slot 0 at 0, 16 pages."""
    store.create("file", 16)
    lines = Lines(store=store)
    lines.ok(f"slot set 0 private gpa=0 size=64K file={store.path('file')}")
    yield lines
    lines.executor.close()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[PromptTerminal]:
    with PromptTerminal(tmp_path) as terminal:
        terminal.until(PROMPT)
        yield terminal
