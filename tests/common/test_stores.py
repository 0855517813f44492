"""A path without a store. Those with one are on mounts."""

from pathlib import Path

from memfsd.common.stores import store_of
from tests.support.both_sides import errno_of


def test_another_file_system_has_no_store(tmp_path: Path) -> None:
    assert errno_of(store_of, str(tmp_path)) in ("EOPNOTSUPP", "ENODATA")
    assert errno_of(store_of, str(tmp_path / "absent")) == "ENOENT"
