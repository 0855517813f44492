"""A VM that runs, as its monitor reports it, polled, and the pool of the store behind it."""

import contextlib
import os
import time
from typing import Any

from memfsd.common.fields import counted
from memfsd.common.mounts import mount_of
from memfsd.common.qmp import Client
from memfsd.uapi.errors import Refused
from memfsd.uapi.names import XATTR_NUMASTAT, XATTR_POOL

Facts = dict[str, Any]
RATES = {
    "faults": ("pf_fixed",),
    "converted": ("converted_to_shared", "converted_to_private"),
    "invalidated": ("mmu_invalidate_seq",),
    "exits": ("exits",),
    "zapped": ("zapped",),
    "messages": ("store_messages",),
}
"""By name: counters whose sum grows. converted and zapped count pages, invalidated ranges."""
_MOST_PARTS = 16
"""Of the mappings of one EPT: 1024 runs each."""


class Watched:
    """One VM of the process that listens at a socket; `name` may be "", for the current one."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name or str(client.ask("query-name")["name"])
        self._pid = int(client.ask("query-monitor")["pid"])
        self._before: dict[str, int] = {}
        self._at = time.monotonic()

    def look(self) -> Facts:
        """PeerLost when the process ends; QmpError when it has no such VM."""
        vm = next((one for one in self._ask("query-vms") if one["vm"] == self._name), None)
        stats = {one["name"]: one["value"] for one in self._ask("query-stats", target="vm", vm=self._name)[0]["stats"]}
        slots = self._ask("query-memslots", vm=self._name)
        facts = {
            "vm": self._name,
            "pid": self._pid,
            "running": vm is not None and vm["running"],
            "policy": vm["policy"] if vm else None,
            "vcpus": self._ask("query-cpus-fast", vm=self._name),
            "slots": slots["slots"],
            "slot_count": slots["total"],
            "memory": self._ask("query-memory", vm=self._name),
            "stats": stats,
            "per_s": self._rates(stats),
            "mappings": {space: self._mappings(space) for space in ("private", "shared")},
            "store": self._store(slots["slots"]),
        }
        self._client.take_events()
        return facts

    def _ask(self, command: str, **arguments: Any) -> Any:
        return self._client.ask(command, arguments)

    def _rates(self, stats: dict[str, int]) -> dict[str, float]:
        """Of the time since the last look; none at the first."""
        now = time.monotonic()
        before, elapsed_s = self._before or stats, max(now - self._at, 1e-9)
        self._before, self._at = stats, now
        return {
            rate: round(sum(stats[name] - before.get(name, 0) for name in names) / elapsed_s, 1)
            for rate, names in RATES.items()
        }

    def _mappings(self, space: str) -> list[Facts]:
        found: list[Facts] = []
        part: Facts = {"next": 0}
        for _ in range(_MOST_PARTS):
            part = self._ask("query-ept", space=space, gpa=part["next"], vm=self._name)
            found += part["mappings"]
            if "next" not in part:
                break
        return found

    def _store(self, slots: list[Facts]) -> Facts | None:
        """The pool and the nodes of the mount that the first private slot's file is on; None: it cannot be seen."""
        for slot in slots:
            if slot["space"] == "private":
                for path in (slot["file"], f"/proc/{self._pid}/cwd/{slot['file']}"):
                    with contextlib.suppress(OSError, Refused, ValueError):
                        return _pool(mount_of(path).path)
        return None


def _pool(mountpoint: str) -> Facts:
    pool = counted(os.getxattr(mountpoint, XATTR_POOL).decode())
    nodes = [
        {"total": node["total"], "free": node["free"]}
        for node in map(counted, os.getxattr(mountpoint, XATTR_NUMASTAT).decode().splitlines())
        if "node" in node
    ]
    return {"mount": mountpoint, "pool": pool, "nodes": nodes}
