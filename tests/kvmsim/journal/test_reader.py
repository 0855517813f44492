"""Files that are journals, were journals, or never were."""

import json
from pathlib import Path

import pytest

from kvmsim.journal.check import check
from kvmsim.journal.reader import Journals, NotAJournal
from memfsd.uapi.limits import MAX_RECORD_BYTES

OPENING = '{"type":"journal","t":1,"version":1,"side":"memfsd","pid":7}\n'
NOTE = '{"type":"note","t":%d,"what":"out","vm":"vm0","data":{"since":1}}\n'
END = '{"type":"end","t":9,"why":"closed"}\n'


def written(place: Path, text: str | bytes, name: str = "journal") -> str:
    path = place / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def times(*paths: str) -> list[int]:
    return [record.t for record in Journals(list(paths)).records()]


def test_records_of_several_files_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    first = written(tmp_path, OPENING + NOTE % 2 + NOTE % 5, "first")
    second = written(tmp_path, OPENING + NOTE % 3 + NOTE % 4 + END, "second")
    assert times(first, second) == [2, 3, 4, 5, 9]


def test_a_record_says_where_it_stands(tmp_path: Path) -> None:
    path = written(tmp_path, OPENING + NOTE % 2 + NOTE % 5)
    assert [record.where for record in Journals([path]).records()] == [f"{path}:2", f"{path}:3"]


@pytest.mark.parametrize(
    "tail", ['{"type":"note","t":5,"wh', "{", '{"type":"note","t":5,"what":"x"}garbage', "\0\0\0\0"]
)
def test_a_last_line_that_a_crash_tore_is_told_and_tolerated(tmp_path: Path, tail: str) -> None:
    path = written(tmp_path, OPENING + NOTE % 2 + tail)
    journals = Journals([path])
    assert [record.t for record in journals.records()] == [2]
    (torn,) = journals.torn
    assert torn.startswith(f"{path}:3: ")
    assert check([path]).rule == ""


def test_a_journal_that_another_process_goes_on_with_after_a_crash(tmp_path: Path) -> None:
    path = written(tmp_path, OPENING + NOTE % 8 + '{"type":"no\n' + OPENING + NOTE % 2)
    journals = Journals([path])
    first, second = (record.process for record in journals.records())
    assert first != second
    assert len(journals.torn) == 1


def test_a_line_that_is_no_record_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, OPENING + "what is this\n" + NOTE % 2)
    with pytest.raises(NotAJournal, match=r"journal:2: no record"):
        times(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n\n",
        b"\x7fELF" + bytes(range(256)) * 50,
        b"hello\nworld\n",
        (NOTE % 1).encode(),
        OPENING.replace('"version":1', '"version":99').encode(),
        b"[1,2,3]\n",
        b'{"type":"message"}\n',
        b"{" * (2 * MAX_RECORD_BYTES),
        b"\xff\xfe\n",
    ],
    ids=["empty", "blank", "binary", "text", "no opening", "version", "list", "fields", "huge line", "not utf-8"],
)
def test_what_is_no_journal_is_refused_with_its_place(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path, content)
    with pytest.raises(NotAJournal, match="journal"):
        check([path])


def test_a_record_with_fields_of_another_kind_is_refused(tmp_path: Path) -> None:
    message = {
        "type": "message", "t": 2, "conn": 1, "peer": 3, "channel": "down", "sent": True, "kind": "BIND", "id": 1,
    }  # fmt: skip
    asked = dict(message, body={"pgoff": "seven"})
    answered = dict(message, sent=False, reply=True, body={})
    paired = [
        dict(message, kind=kind, id=id_, sent=not reply, reply=reply, body=body)
        for id_, kind, body in (
            (8, "HELLO", {"role": 0}),
            (9, "PAIR", {"seq": 0}),
        )
        for reply in (False, True)
    ]
    lines = "".join(json.dumps(line) + "\n" for line in [*paired, asked, answered])
    with pytest.raises(NotAJournal, match=r"journal:7: a field is missing"):
        check([written(tmp_path, OPENING + lines)])


def test_a_large_journal_is_read_record_by_record(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with path.open("w") as file:
        file.write(OPENING.replace("memfsd", "kvmsim"))
        for t in range(100_000):
            file.write(NOTE % t)
    assert check([str(path)]).note_count == 100_000
