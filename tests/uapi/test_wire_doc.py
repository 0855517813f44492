"""docs/wire.md is what the code says."""

import difflib

import pytest
import wiredoc

from memfsd.uapi import limits
from memfsd.uapi.messages import Kind
from memfsd.uapi.pairing import State


def test_docs_wire_md_is_what_the_code_renders() -> None:
    written, rendered = wiredoc.PATH.read_text(), wiredoc.render()
    if written != rendered:
        changes = difflib.unified_diff(written.splitlines(), rendered.splitlines(), "docs/wire.md", "the code", n=0)
        pytest.fail("docs/wire.md is out of date: run tools/render-wire\n" + "\n".join(changes))


def test_it_names_every_kind_state_body_and_field() -> None:
    page = wiredoc.render()
    for kind in Kind:
        assert f"| {int(kind)} | `{kind.name}` |" in page
    for state in State:
        assert f"| `{state.name}` |" in page
    for cls in wiredoc.body_classes():
        assert f"### {cls.__name__}\n" in page
        assert cls.__doc__, f"{cls.__name__} has no docstring"
        for field in cls.__struct_fields__:
            assert f"`{field}`" in page
    for name in ("MAX_PACKET_BYTES", "ACK_DEADLINE_S", "PROOF_DEADLINE_S"):
        assert f"| `{name}` | " in page
        assert hasattr(limits, name)


def test_numbers_are_written_as_a_person_would() -> None:
    shown = [wiredoc.number(n) for n in (0, -1, 4096, 32764, 1 << 16, (1 << 16) - 1, (1 << 63) - 1, 1 << 40)]
    assert shown == ["0", "-1", "4096", "32764", "2^16", "2^16 - 1", "2^63 - 1", "2^40"]


def test_links_lead_somewhere() -> None:
    page = wiredoc.render()
    headings = {line.lstrip("# ").lower() for line in page.splitlines() if line.startswith("#")}
    targets = {part.split(")")[0] for part in page.split("](#")[1:]}
    assert targets
    assert targets <= headings
