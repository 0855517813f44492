"""A tool finds no store, or one that does not listen. What it asks of one is tested on mounts."""

from pathlib import Path

import pytest

from memfsd.common.mounts import Mount
from memfsd.common.observer import Observer, Store, store_of
from memfsd.uapi.errors import PeerLost
from tests.support.both_sides import errno_of


def test_another_file_system_has_no_store(tmp_path: Path) -> None:
    assert errno_of(store_of, str(tmp_path)) in ("EOPNOTSUPP", "ENODATA")
    assert errno_of(store_of, str(tmp_path / "absent")) == "ENOENT"


def test_a_store_that_does_not_listen_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with pytest.raises(PeerLost, match=r"does not listen at .*socket \(No such file or directory\): is it running\?"):
        Observer(Store(Mount(0, str(tmp_path), 0), str(path)))
