"""The table of a frame's transitions."""

import ast
from pathlib import Path

import pytest

from memfsd.core.memory.page_life import LEGAL, TRANSITIONS, Transition
from memfsd.uapi.frame_state import FrameState
from tests.support.page_life import DOCUMENT, document

TESTS = Path(__file__).parents[2]


def test_the_document_is_drawn_from_the_table() -> None:
    text = DOCUMENT.read_text()
    assert document(text) == text, "python -m tests.support.page_life"


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: f"{row.old.name}-{row.new.name}")
def test_the_test_that_shows_a_transition_exists(row: Transition) -> None:
    path, function = row.test.split("::")
    tree = ast.parse((TESTS / path).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_a_transition_is_in_the_table_once_and_what_is_legal_is_in_it() -> None:
    pairs = [(row.old, row.new) for row in TRANSITIONS]
    assert len(pairs) == len(set(pairs))
    assert sum(len(new) for new in LEGAL.values()) == len(pairs)
    assert LEGAL[FrameState.POISONED] == frozenset(), "what has failed is never used again"
