"""docs/semantics-guest-seal.md is the table that is tested."""

from collections import Counter

from tests.attack.all_attacks import ATTACKS
from tests.attack.render import DOCUMENT, document
from tests.attack.table import Aim
from tests.attack.target import WORKS


def test_the_document_is_the_table() -> None:
    assert DOCUMENT.read_text() == document(), "run tools/render-seal"


def test_no_row_promises_that_a_sealed_file_is_read_or_written() -> None:
    for attack in ATTACKS:
        sealed = {attack.blind, attack.blind_rw, attack.strict, attack.rw, *attack.unprivileged.values()}
        assert attack.aim is Aim.NEITHER or WORKS not in sealed, attack.call


def test_each_attack_has_a_name_of_its_own() -> None:
    assert [call for call, count in Counter(attack.call for attack in ATTACKS).items() if count > 1] == []
