"""Files that are journals, were journals, or never were."""

import itertools
import json
import subprocess
from pathlib import Path

import pytest

from kvmsim.instruments.journal.check import check
from kvmsim.instruments.journal.reader import Journals, NotAJournal
from memfsd.common.journal import Opening
from memfsd.uapi.limits import MAX_RECORD_BYTES

OPENING = '{"type":"journal","t":1,"version":1,"side":"memfsd","pid":7}\n'
OTHER = OPENING.replace("memfsd", "kvmsim")
NOTE = '{"type":"note","t":%d,"what":"out","vm":"vm0","data":{"since":1}}\n'
END = '{"type":"end","t":9,"why":"closed"}\n'


def written(place: Path, text: str | bytes, name: str = "journal") -> str:
    path = place / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def times(*paths: str) -> list[int]:
    """Of all records but the first of each process."""
    return [record.t for record in Journals(list(paths)).records() if not isinstance(record.entry, Opening)]


def again(t: int) -> str:
    """The opening of another run, later."""
    return OPENING.replace('"t":1', f'"t":{t}')


def test_records_of_several_files_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    first = written(tmp_path, OPENING + NOTE % 2 + NOTE % 5, "first")
    second = written(tmp_path, OTHER + NOTE % 3 + NOTE % 4 + END, "second")
    assert times(first, second) == [2, 3, 4, 5, 9]


def test_a_record_says_where_it_stands(tmp_path: Path) -> None:
    path = written(tmp_path, OPENING + NOTE % 2 + NOTE % 5)
    assert [record.where for record in Journals([path]).records()] == [f"{path}:{n}" for n in (1, 2, 3)]


def test_journals_put_together_with_cat_are_merged_by_time_like_the_files_they_were(tmp_path: Path) -> None:
    """In whatever order: the later half of the store's may stand before the VM's."""
    parts = [OPENING + NOTE % 2 + NOTE % 6, OTHER + NOTE % 3 + NOTE % 5 + END, again(4) + NOTE % 7]
    for order in itertools.permutations(parts):
        path = written(tmp_path, "".join(order))
        records = list(Journals([path]).records())
        assert [record.t for record in records] == [1, 1, 2, 3, 4, 5, 6, 7, 9]
        lines = Path(path).read_text().splitlines(keepends=True)
        assert all(f'"t":{r.t},' in lines[int(r.where.rpartition(":")[2]) - 1] for r in records)
        assert len({record.process for record in records}) == 3


def test_runs_that_were_appended_one_after_the_other_stay_apart(tmp_path: Path) -> None:
    path = written(tmp_path, OPENING + NOTE % 2 + END + again(20) + NOTE % 21)
    processes = [record.process for record in Journals([path]).records()]
    assert processes[:3] == processes[:1] * 3
    assert processes[3:] == processes[3:4] * 2
    assert processes[0] != processes[3]


def test_a_journal_comes_through_a_pipe(tmp_path: Path) -> None:
    path = written(tmp_path, OPENING + NOTE % 5 + OTHER + NOTE % 4)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        assert times(f"/proc/self/fd/{cat.stdout.fileno()}") == [4, 5]


def test_a_run_whose_times_go_back_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, OPENING + NOTE % 5 + NOTE % 4)
    with pytest.raises(NotAJournal, match=r"journal:3: its time is before that of the record above it"):
        check([path])


@pytest.mark.parametrize("how", ["twice", "through a link", "a copy", "with cat"])
def test_a_journal_that_is_given_twice_is_refused(tmp_path: Path, how: str) -> None:
    text = OPENING + NOTE % 2 + END
    path, other = written(tmp_path, text), tmp_path / "other"
    if how == "through a link":
        other.symlink_to(path)
    elif how == "a copy":
        other.write_text(text)
    elif how == "with cat":
        other.write_text(OTHER + NOTE % 2 + text)
    with pytest.raises(NotAJournal, match=r"journal:1 and .*:[13] are the same run: give each journal once"):
        check([path, path if how == "twice" else str(other)])


@pytest.mark.parametrize(
    "tail", ['{"type":"note","t":5,"wh', "{", '{"type":"note","t":5,"what":"x"}garbage', "\0\0\0\0"]
)
def test_a_last_line_that_a_crash_tore_is_told_and_tolerated(tmp_path: Path, tail: str) -> None:
    path = written(tmp_path, OPENING + NOTE % 2 + tail)
    journals = Journals([path])
    assert [record.t for record in journals.records()] == [1, 2]
    (torn,) = journals.incomplete
    assert torn.startswith(f"{path}:3: no record of a journal")
    assert check([path]).rule == ""


@pytest.mark.parametrize("before", ["", END], ids=["running", "ended"])
def test_a_whole_last_line_that_is_no_record_is_refused(tmp_path: Path, before: str) -> None:
    """A crash leaves no newline."""
    path = written(tmp_path, OPENING + before + "hello world\n")
    with pytest.raises(NotAJournal, match=r"journal:[23]: no record of a journal"):
        check([path])


def test_a_process_without_its_last_record_is_told_and_tolerated(tmp_path: Path) -> None:
    """It was killed, or its journal was cut at the end of a line."""
    path = written(tmp_path, OPENING + NOTE % 2 + again(3) + NOTE % 4 + END + again(10))
    verdict = check([path])
    assert verdict.rule == ""
    assert verdict.incomplete == [
        f"{path}:{line}: no record 'end' follows: the process was killed, or runs on" for line in (2, 6)
    ]


def test_a_full_journal_is_told_in_one_printable_line(tmp_path: Path) -> None:
    path = written(tmp_path, OPENING + END.replace("closed", "full\\n\\u001b[31m"))
    assert check([path]).incomplete == [f"{path}:2: full  [31m"]


def test_a_journal_that_another_process_goes_on_with_after_a_crash(tmp_path: Path) -> None:
    path = written(tmp_path, OPENING + NOTE % 8 + '{"type":"no\n' + again(9) + NOTE % 9 + END)
    journals = Journals([path])
    assert len({record.process for record in journals.records()}) == 2
    assert [text.partition(": ")[0] for text in journals.incomplete] == [f"{path}:3"]


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
        OPENING.replace("memfsd", "bogus").encode(),
        (END + OPENING).encode(),
        b"[1,2,3]\n",
        b'{"type":"message"}\n',
        b"{" * (2 * MAX_RECORD_BYTES),
        b"\xff\xfe\n",
    ],
    ids=[
        "empty",
        "blank",
        "binary",
        "text",
        "no opening",
        "version",
        "side",
        "opening later",
        "list",
        "fields",
        "huge line",
        "not utf-8",
    ],
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
        file.write(OTHER)
        for t in range(1, 100_001):
            file.write(NOTE % t)
    assert check([str(path)]).note_count == 100_000


def test_the_side_of_a_later_run_is_checked_too(tmp_path: Path) -> None:
    path = written(tmp_path, OPENING + END + again(10).replace("memfsd", "bo\\ngus"))
    with pytest.raises(NotAJournal, match="journal:3: side 'bo gus' is neither memfsd nor kvmsim"):
        check([path])
