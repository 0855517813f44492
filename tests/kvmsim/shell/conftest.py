"""A prompt that waits for a command."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.prompt import PROMPT, PromptTerminal


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[PromptTerminal]:
    with PromptTerminal(tmp_path) as terminal:
        terminal.until(PROMPT)
        yield terminal
