"""Fixtures for tests of VMMs: a mount, and a VM. pytest finds them by itself where this project is installed.

Until a test asks for one, nothing is loaded but pytest: the plugin is in every run of its environment.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import kvmsim
    import memfsd


@pytest.fixture
def memfsd_options() -> str:
    """Mount options of `memfsd_mount`, as `memfsd -o` takes them: override it in a module or a conftest.py."""
    return "size=64M"


@pytest.fixture
def memfsd_mount(memfsd_options: str) -> Iterator["memfsd.Mount"]:
    """A memfsd mount for one test. At its end R1 to R8 must hold, unless the test has ended the daemon. Where nothing
    can be mounted the test fails with the reason."""
    import memfsd
    from memfsd.uapi.errors import PeerLost, Refused

    mounting = memfsd.mounted(options=memfsd_options)
    try:
        mount = mounting.__enter__()
    except (Refused, PeerLost) as error:
        pytest.fail(f"memfsd_mount: {error}", pytrace=False)
    try:
        yield mount
        assert mount.process is not None
        if mount.process.poll() is None:
            assert mount.check() == []
    finally:
        mounting.__exit__(None, None, None)


@pytest.fixture
def kvmsim_vm(memfsd_mount: "memfsd.Mount") -> Iterator["kvmsim.VM"]:
    """A VM for one test, with policy none and no slots; it ends before the mount does."""
    import kvmsim

    with kvmsim.VM() as vm:
        yield vm
