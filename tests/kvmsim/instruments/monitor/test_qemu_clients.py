"""Clients that nobody here wrote: QEMU's own, qmp-shell and the asynchronous one of qemu.qmp."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient
from qemu.qmp.legacy import QEMUMonitorProtocol

from tests.support.both_sides import LocalStore
from tests.support.qmp import monitored
from tests.support.script_lines import Lines
from tests.support.threads import DEADLINE_S

BIN = Path(sys.executable).parent


@pytest.fixture
def do(store: LocalStore) -> Iterator[Lines]:
    """Private slot 0 at 0, 64 pages."""
    store.create("file", 64)
    lines = Lines(store=store)
    lines.ok(f"slot set 0 private gpa=0 size=256K file={store.path('file')}", "write 0x2000 01")
    yield lines
    lines.executor.close()


@pytest.fixture
def path(do: Lines, tmp_path: Path) -> Iterator[Path]:
    with monitored(do.executor, tmp_path / "qmp"):
        yield tmp_path / "qmp"


def test_the_asynchronous_client(do: Lines, store: LocalStore, path: Path) -> None:
    async def talk() -> None:
        client = QMPClient("test")
        with client.listener() as events:
            await client.connect(str(path))
            assert await client.execute("query-status") == {"running": True, "status": "running"}
            names = {command["name"] for command in await listed(client)}
            assert {"query-stats", "stop", "quit"} <= names
            with pytest.raises(ExecuteError, match="Parameter 'target' is missing") as caught:
                await client.execute("query-stats")
            assert caught.value.error_class == "GenericError"
            with pytest.raises(ExecuteError) as caught:
                await client.execute("no-such")
            assert caught.value.error_class == "CommandNotFound"
            kvm, name = await asyncio.gather(client.execute("query-kvm"), client.execute("query-name"))
            assert (kvm, name) == ({"enabled": True, "present": True}, {"name": "vm0"}), "answers by their ids"
            await client.execute("stop")
            await client.execute("cont")
            await asyncio.to_thread(store.punch, "file", 2, 1)
            assert [await next_name(events) for _ in range(3)] == ["STOP", "RESUME", "INVALIDATE"]
            await client.disconnect()

    asyncio.run(asyncio.wait_for(talk(), DEADLINE_S))


async def listed(client: QMPClient) -> list[dict[str, Any]]:
    found = await client.execute("query-commands")
    assert isinstance(found, list)
    return found


async def next_name(events: EventListener) -> str:
    return str((await events.get())["event"])


def test_the_synchronous_client(path: Path) -> None:
    client = QEMUMonitorProtocol(str(path))
    try:
        client.connect()
        assert client.cmd("query-name") == {"name": "vm0"}
        text = client.cmd("human-monitor-command", **{"command-line": "info slots"})
        assert isinstance(text, str) and text.startswith("SPACE")
    finally:
        client.close()


@pytest.mark.parametrize("options", [[], ["-p"], ["-v"]], ids=" ".join)
def test_qmp_shell(options: list[str], path: Path, tmp_path: Path) -> None:
    said = shell(
        [*options, str(path)],
        "query-status\nquery-ept space=private limit=1\nstop\n\ncont\nquery-stats\nnonsense\n",
        tmp_path,
    )
    squeezed = "".join(said.split())
    assert "Connected to QEMU" in said
    assert '{"running":true,"status":"running"}' in squeezed or '"running":true' in squeezed
    assert '"gpa":8192' in squeezed
    assert "'event':'STOP'" in squeezed
    assert "Parameter 'target' is missing" in said
    assert "The command nonsense has not been found" in said


def test_qmp_shell_as_a_human_monitor(path: Path, tmp_path: Path) -> None:
    said = shell(["-H", str(path)], "info memory\ninfo nonsense\n", tmp_path)
    assert "private_mapped" in said
    assert "GenericError: column 6" in said


def shell(arguments: list[str], lines: str, home: Path) -> str:
    done = subprocess.run(
        [BIN / "qmp-shell", *arguments],
        input=lines,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"HOME": str(home), "TERM": "dumb"},
        text=True,
        timeout=DEADLINE_S,
    )
    return done.stdout
