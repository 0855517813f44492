"""sqlite on the mount: its locks, its journals, its shared-memory index of the write-ahead log."""

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs.conftest import DEADLINE_S

PROCESSES, ROUNDS = 4, 20
WRITER = f"""
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout={DEADLINE_S}, isolation_level=None)
for number in range({ROUNDS}):
    db.execute("BEGIN IMMEDIATE")
    (count,) = db.execute("SELECT n FROM counter").fetchone()
    db.execute("INSERT INTO rows VALUES (?, ?, randomblob(2000))", (sys.argv[2], number))
    db.execute("UPDATE counter SET n = ?", (count + 1,))
    db.execute("COMMIT")
"""


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal"])
def test_processes_that_write_at_once_lose_nothing(place: Path, journal: str) -> None:
    path = place / "db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        assert db.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
        db.execute("CREATE TABLE rows (who, number, data)")
        db.execute("CREATE TABLE counter (n)")
        db.execute("INSERT INTO counter VALUES (0)")
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, str(who)]) for who in range(PROCESSES)]
        assert [writer.wait(DEADLINE_S) for writer in writers] == [0] * PROCESSES

        assert db.execute("SELECT n FROM counter").fetchone() == (PROCESSES * ROUNDS,)
        assert db.execute("SELECT count(DISTINCT who || ' ' || number) FROM rows").fetchone() == (PROCESSES * ROUNDS,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.execute("DELETE FROM rows WHERE number % 2")
        db.execute("VACUUM")
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_writer_that_is_killed_is_rolled_back(place: Path, journal: str) -> None:
    path = place / "db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={journal}")
        db.execute("CREATE TABLE rows AS SELECT 1 AS n")
    # A cache of one page: the transaction is in the file before it is committed.
    killed = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sqlite3, sys\n"
            "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "db.execute('PRAGMA cache_size=1')\n"
            "db.execute('BEGIN IMMEDIATE')\n"
            "db.execute('UPDATE rows SET n = 2')\n"
            "db.executemany('INSERT INTO rows VALUES (randomblob(5000))', [()] * 200)\n"
            "print('ready', flush=True)\n"
            "sys.stdin.read()",
            path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"ready\n"
        killed.kill()

    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT n FROM rows").fetchall() == [(1,)]
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
