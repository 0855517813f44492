"""Events, as a client sees them while it happens; and that nobody pays for them on the path of a fault."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsim.kvm.faults import Faults
from kvmsim.kvm.mmu.ept import Ept
from memfsd.common import trace
from tests.support.both_sides import LocalStore
from tests.support.qmp import Raw, client, monitored
from tests.support.script_lines import Lines
from tests.support.threads import Beside, until


@pytest.fixture
def do(store: LocalStore) -> Iterator[Lines]:
    """Private slot 0 at 1M, 64 pages."""
    store.create("file", 64)
    lines = Lines(store=store, policy="punch")
    lines.ok(f"slot set 0 private gpa=1M size=256K file={store.path('file')}")
    yield lines
    lines.executor.close()


@pytest.fixture
def qmp(do: Lines, tmp_path: Path) -> Iterator[Raw]:
    with monitored(do.executor, tmp_path / "qmp"), client(tmp_path / "qmp") as raw:
        yield raw


def test_an_invalidation_by_the_store(do: Lines, qmp: Raw, store: LocalStore) -> None:
    do.ok("write 0x102000 01")
    store.punch("file", 2, 3)
    assert qmp.event("INVALIDATE") == {
        "vm": "vm0",
        "inode": store.file("file").ino,
        "offset": 0x2000,
        "size": 0x3000,
        "reason": "punch",
        "ranges": [{"gpa": 0x102000, "size": 0x3000}],
        "more": 0,
    }


def test_a_conversion(do: Lines, qmp: Raw) -> None:
    do.ok("write 0x103000 01 shared")
    assert qmp.event("CONVERSION") == {"vm": "vm0", "gpa": 0x103000, "size": 0x1000, "private": False}


def test_a_memory_error_that_nobody_repairs(do: Lines, qmp: Raw) -> None:
    assert not do("read 0 4").ok
    assert qmp.event("MEMORY_ERROR") == {
        "vm": "vm0",
        "cpu-index": 0,
        "gpa": 0,
        "size": 0x1000,
        "private": True,
        "explicit": False,
        "illegal": False,
    }


def test_a_store_that_is_gone(do: Lines, qmp: Raw, store: LocalStore) -> None:
    store.server.stop()
    lost = qmp.event("PAIRING_LOST")
    assert (lost["vm"], lost["inode"]) == ("vm0", store.file("file").ino)
    assert "revoked" in lost["why"]


def test_stop_and_cont_and_the_end(do: Lines, tmp_path: Path) -> None:
    with monitored(do.executor, tmp_path / "qmp") as monitor, client(tmp_path / "qmp") as raw:
        raw.send({"execute": "stop"})
        assert raw.event("STOP") == {"vm": "vm0"}
        assert raw.receive() == {"return": {}}, "the event comes before the answer"
        raw.value("stop")
        raw.send({"execute": "cont"})
        assert raw.event("RESUME") == {"vm": "vm0"}
        assert raw.receive() == {"return": {}}
        monitor.end("host-signal")
        assert raw.event("SHUTDOWN") == {"guest": False, "reason": "host-signal"}
        assert raw.receive() is None


def test_the_fault_path_is_the_plain_code_with_and_without_a_client(do: Lines, tmp_path: Path) -> None:
    plain = Faults.translate, Ept.map_page
    with monitored(do.executor, tmp_path / "qmp"):
        assert trace.vm is None, "nobody has come"
        with client(tmp_path / "qmp"):
            assert trace.vm is not None
            assert (Faults.translate, Ept.map_page) == plain
    assert trace.vm is None


def test_an_acknowledgement_waits_for_no_client(do: Lines, store: LocalStore, tmp_path: Path) -> None:
    """One that has never read, and one that is stopped in the middle of a message."""
    with monitored(do.executor, tmp_path / "qmp") as monitor, client(tmp_path / "qmp") as silent:
        silent.send(b'{"execute": ')
        for _ in range(200):
            do.ok("write 0x102000 01")
            punched = Beside(lambda: store.punch("file", 2, 1))
            punched.result()
        until(lambda: not monitor._events, "all are sent, or dropped")
        assert monitor.dropped_events == 0
