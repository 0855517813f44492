"""fio: random reads and writes through every engine, each block with its crc32c and checked."""

import json
from pathlib import Path

import pytest

from tests.programs.conftest import LONG, Run

SIZE = "256M" if LONG else "16M"
ENGINES = {
    "psync": (),
    "pvsync2": (),
    "mmap": (),
    "libaio": ("--iodepth=8",),
    "libaio, O_DIRECT": ("--iodepth=8", "--direct=1"),
    "io_uring": ("--iodepth=8",),
    "posixaio": ("--iodepth=4",),
}


def io_uring_is_off() -> bool:
    off = Path("/proc/sys/kernel/io_uring_disabled")
    return off.exists() and off.read_text().strip() != "0"


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_written_is_read(place: Path, run: Run, engine: str) -> None:
    if engine == "io_uring" and io_uring_is_off():
        pytest.skip("io_uring is switched off: kernel.io_uring_disabled")
    report = run(
        place,
        *("fio", "--name=verify", f"--ioengine={engine.partition(',')[0]}", *ENGINES[engine]),
        *("--rw=randrw", "--bsrange=4k-128k", "--blockalign=4k", f"--size={SIZE}", "--randseed=1"),
        *("--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=64", "--output-format=json"),
    )
    (job,) = json.loads(report[report.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["read"]["io_bytes"] > 0
    assert job["write"]["io_bytes"] > 0


def test_four_writers_at_once_each_find_their_own(place: Path, run: Run) -> None:
    report = run(
        place,
        *("fio", "--name=many", "--numjobs=4", "--ioengine=psync", "--rw=randwrite", "--bs=4k", "--size=2M"),
        *("--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--randseed=2", "--output-format=json"),
    )
    jobs = json.loads(report[report.index("{") :])["jobs"]
    assert [job["error"] for job in jobs] == [0] * 4
