"""A directory of many entries, listed while it changes: 10,000 of them, 100,000 with MEMFSD_LONG=1."""

import os
import threading
from pathlib import Path

from tests.programs.conftest import LONG, Run

COUNT = 100_000 if LONG else 10_000


def test_whoever_stays_is_listed_once_however_the_others_come_and_go(place: Path, run: Run) -> None:
    directory = place / "many"
    directory.mkdir()
    (place / "one").touch()
    staying = {f"stays {number}" for number in range(0, COUNT, 2)}
    for number in range(0, COUNT, 2):
        # Links of one file: entries at the least cost. A file has at most 32,000 names.
        if number % 20_000 == 0:
            (place / f"one {number}").touch()
            one = place / f"one {number}"
        os.link(one, directory / f"stays {number}")
        os.link(one, directory / f"goes {number}")
    listed = threading.Event()

    def change() -> None:
        number = 0
        while not listed.is_set() and number < COUNT:
            os.unlink(directory / f"goes {number}")
            os.symlink("x", directory / f"new {number}")
            number += 2

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(3):
            with os.scandir(directory) as entries:
                names = [entry.name for entry in entries]
            assert len(names) == len(set(names)), "no name twice"
            assert staying <= set(names)
            assert all(name.split()[0] in ("stays", "goes", "new") for name in names)
    finally:
        listed.set()
        changing.join()
    assert set(run(directory, "ls", "-U").splitlines()) == set(os.listdir(directory))
    assert len(run(directory, "find", ".", "-type", "f", "-name", "stays*").splitlines()) == COUNT // 2
    run(place, "rm", "-r", "many")
    assert min(path.name for path in place.iterdir()) == "one"
