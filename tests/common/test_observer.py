"""A store that does not listen. What it asks of one is tested on mounts."""

from pathlib import Path

import pytest

from memfsd.common.mounts import Mount
from memfsd.common.observer import Observer
from memfsd.common.stores import Store
from memfsd.uapi.errors import PeerLost


def test_a_store_that_does_not_listen_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with pytest.raises(PeerLost, match=r"does not listen at .*socket \(No such file or directory\): is it running\?"):
        Observer(Store(Mount(0, str(tmp_path), 0), str(path)))
