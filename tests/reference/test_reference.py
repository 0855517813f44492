"""Random operations on a memfsd mount and on a tmpfs: outcomes, attributes and contents agree (see deviations.py).

    MEMFSD_REFERENCE_OPERATIONS=1000000 MEMFSD_REFERENCE_SEED=7 pytest tests/reference/test_reference.py

is the long mode: for each seed other sequences, as many as wished.
"""

import os
from collections.abc import Iterator

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.reference import operations as op
from tests.reference.compare import Differs, Reference, script
from tests.reference.mounts import memfsd_mount, one_core, tmpfs_mount
from tests.reference.operations import Operation
from tests.reference.replay import parse
from tests.reference.sequences import LENGTH, sequences
from tests.reference.world import World

OPERATIONS = int(os.environ.get("MEMFSD_REFERENCE_OPERATIONS", "8000"))
SEED = os.environ.get("MEMFSD_REFERENCE_SEED")


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    with (
        one_core(),
        memfsd_mount("size=64M,allow_other", wedged_s=100 + OPERATIONS / 50) as memfsd,
        tmpfs_mount("size=64M,nr_inodes=100000,mode=755,nodev") as tmpfs,
    ):
        yield Reference(memfsd, tmpfs)


@pytest.mark.timeout(300 + OPERATIONS // 50)
def test_random_operations_answer_and_leave_what_tmpfs_does(reference: Reference) -> None:
    @settings(
        max_examples=OPERATIONS * 10 // (LENGTH * 8),
        derandomize=SEED is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(sequences)
    def every_sequence(operations: list[Operation]) -> None:
        reference.compare(operations)

    try:
        (every_sequence if SEED is None else hypothesis.seed(int(SEED))(every_sequence))()
    except Differs as differs:
        pytest.fail(str(reference.shrunk(differs)), pytrace=False)
    assert reference.done.total() >= OPERATIONS
    # Sequences that are refused everything would prove nothing; in a short run the rarest may not come to work.
    never = sorted(name for name, count in reference.worked.items() if not count)
    assert len(never) <= (4 if OPERATIONS < 100_000 else 0), never
    assert reference.worked.total() > OPERATIONS // 4


def test_a_difference_is_found_shrunk_and_told_as_a_script() -> None:
    """Two filesystems that do differ: one has no room."""
    with tmpfs_mount("size=64M") as large, tmpfs_mount("size=64K") as small:
        reference = Reference(large, small)
        operations = [
            op.Mkdir(b"d"),
            op.Open(b"a", os.O_RDWR | os.O_CREAT),
            op.Chmod(b"a", 0o600),
            op.Write(0, 1, 4096),
            op.Truncate(b"a", 1 << 20),
            op.Fallocate(0, 0, 0, 1 << 20),
            op.Rmdir(b"d"),
        ]
        with pytest.raises(Differs) as found:
            reference.compare(operations)
        assert found.value.operations == operations[:6]
        smallest = reference.shrunk(found.value).operations
        assert smallest == [op.Open(b"a", os.O_RDWR | os.O_CREAT), op.Fallocate(0, 0, 0, 1 << 20)]
        assert parse(script(smallest).splitlines()) == smallest


SCRIPT = """\
Write(handle=0, seed=1, length=3)
Open(name=b'a', flags=66)
Write(handle=0, seed=1, length=3)
Map(handle=0, offset=0, length=1, shared=True, writable=True)
Load(mapping=0, at=0, length=1, beside=True)
Store(mapping=0, at=0, seed=9, length=1, beside=True)
Ftruncate(handle=0, size=0)
Load(mapping=0, at=0, length=1)
As(uid=1000, gid=1000, groups=(), operation=Chmod(name=b'a', mode=511))
"""


def test_operations_do_what_they_say() -> None:
    """Else two places where nothing happens would agree."""
    with tmpfs_mount("size=64M,mode=755") as place:
        world = World(place / "world")
        report = [world.apply(operation.run) for operation in parse(SCRIPT.splitlines())]
        world.close()
    assert report == ["nothing to act on", 0, 3, None, b"\x01", b"stored", None, "SIGBUS", "EPERM"]
