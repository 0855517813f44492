"""What Tab offers at the prompt, from the table of commands."""

import glob
import os

from .grammar import FORMS, Form, Term
from .runner import QUIT

_MORE = ("help", *QUIT)


def completions(before: str, word: str) -> list[str]:
    """Words that continue a line: `before` is all of it before the word that is typed. A trailing blank ends a word."""
    words = before.split()
    if words[:1] == ["start"] or words[:1] in (["help"], ["?"]):
        words = words[1:]
    if words[:1] == ["sh"]:
        return _paths(word)
    form = _form_of(words)
    if form is not None:
        return [found for term in form.all_terms for found in _of_term(term, word)]
    depth = len(words)
    names = [form.name.split() for form in FORMS] + [[name] for name in _MORE if not before.strip()]
    offered = [name[depth] for name in names if len(name) > depth and name[:depth] == words]
    return [f"{name} " for name in dict.fromkeys(offered) if name.startswith(word)]


def _form_of(words: list[str]) -> Form | None:
    """The command that the line begins with, once it is complete."""
    for form in FORMS:
        name = form.name.split()
        if words[: len(name)] == name:
            return form
    return None


def _of_term(term: Term, word: str) -> list[str]:
    if not term.option:
        return _values(term, word) if term.choices or term.is_path else []
    key = f"{term.field}="
    if word.startswith(key):
        return [key + value for value in _values(term, word.removeprefix(key))]
    return [key] if key.startswith(word) else []


def _values(term: Term, word: str) -> list[str]:
    if term.is_path:
        return _paths(word)
    return [f"{choice} " for choice in term.choices if choice.startswith(word)]


def _paths(word: str) -> list[str]:
    found = sorted(glob.glob(glob.escape(os.path.expanduser(word)) + "*"))
    return [f"{path}/" if os.path.isdir(path) else f"{path} " for path in found]
