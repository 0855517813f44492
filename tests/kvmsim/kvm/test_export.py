"""Pages that are out: only what left comes back."""

import errno
from dataclasses import dataclass
from typing import Any, cast

import pytest

from kvmsim.kvm.export import ExportedPages
from kvmsim.kvm.slots.backing import Gmem
from memfsd.uapi import limits
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import SWAP_BLOB_BYTES
from memfsd.uapi.units import PAGE_SIZE, Gfn, Pgoff

PAGE = b"what the guest knows".ljust(PAGE_SIZE, b"!")


@dataclass(eq=False)
class File:
    """Of a Gmem, what counts here."""

    ino: int


def file(ino: int = 2) -> Gmem:
    return cast(Gmem, File(ino))


@pytest.fixture
def exports() -> ExportedPages:
    return ExportedPages()


def leave(exports: ExportedPages, gmem: Gmem, pgoff: int, page: bytes = PAGE) -> tuple[int, bytes]:
    version = exports.leave(gmem, Pgoff(pgoff), Gfn(pgoff + 100))
    return version, exports.seal(gmem, Pgoff(pgoff), version, page)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return errno.errorcode[caught.value.errno]


def test_a_page_comes_back_as_it_left(exports: ExportedPages) -> None:
    gmem = file()
    version, blob = leave(exports, gmem, 3)
    assert len(blob) == SWAP_BLOB_BYTES
    assert b"the guest knows" not in blob
    assert exports.find(gmem, Pgoff(3)) == (103, version)
    assert exports.unseal(gmem, Pgoff(3), version, blob) == PAGE


def test_a_version_never_repeats_so_that_equal_pages_are_different_blobs(exports: ExportedPages) -> None:
    gmem = file()
    left = [leave(exports, gmem, 3) for _ in range(20)]
    assert len({version for version, _ in left}) == len({blob for _, blob in left}) == 20


def test_a_blob_of_another_page_version_file_or_vm_is_refused(exports: ExportedPages) -> None:
    gmem = file()
    version, blob = leave(exports, gmem, 3)
    newer, _ = leave(exports, gmem, 3)
    assert refused(exports.unseal, gmem, Pgoff(4), version, blob) == "EBADMSG"
    assert refused(exports.unseal, gmem, Pgoff(3), newer, blob) == "EBADMSG"
    assert refused(exports.unseal, file(7), Pgoff(3), version, blob) == "EBADMSG"
    assert refused(ExportedPages().unseal, gmem, Pgoff(3), version, blob) == "EBADMSG"


@pytest.mark.parametrize("at", [0, 2000, PAGE_SIZE, SWAP_BLOB_BYTES - 1])
def test_a_bit_that_changed_is_refused(exports: ExportedPages, at: int) -> None:
    gmem = file()
    version, blob = leave(exports, gmem, 3)
    altered = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
    assert refused(exports.unseal, gmem, Pgoff(3), version, altered) == "EBADMSG"


def test_what_is_not_out_does_not_come_back(exports: ExportedPages) -> None:
    gmem = file()
    assert refused(exports.find, gmem, Pgoff(3)) == "EBADMSG"
    leave(exports, gmem, 3)
    exports.forget(gmem, Pgoff(0), Pgoff(8))
    assert refused(exports.find, gmem, Pgoff(3)) == "EBADMSG"
    assert len(exports) == 0


def test_the_first_page_that_is_out(exports: ExportedPages) -> None:
    gmem = file()
    for pgoff in (9, 5, 7):
        leave(exports, gmem, pgoff)
    assert exports.first_out(gmem, Pgoff(0), Pgoff(5)) is None
    assert exports.first_out(gmem, Pgoff(0), Pgoff(1 << 30)) == 5
    assert exports.first_out(gmem, Pgoff(6), Pgoff(9)) == 7
    assert exports.first_out(file(3), Pgoff(0), Pgoff(9)) is None


def test_what_is_destroyed_while_it_is_out_is_zero(exports: ExportedPages) -> None:
    gmem = file()
    leave(exports, gmem, 3)
    leave(exports, gmem, 4)
    exports.destroy([(Gfn(103), Gfn(104))])
    assert exports.find(gmem, Pgoff(3)) == (103, None)
    assert exports.first_out(gmem, Pgoff(0), Pgoff(9)) == 4, (
        "the store may have another frame for a page without contents"
    )


def test_a_page_that_was_not_bound_for_a_time_may_be_a_hole(exports: ExportedPages) -> None:
    gmem = file()
    version, _ = leave(exports, gmem, 3)
    exports.unbound([(Gfn(100), Gfn(1 << 30))])
    assert exports.first_out(gmem, Pgoff(0), Pgoff(9)) is None
    assert exports.find(gmem, Pgoff(3)) == (103, version), "and may still come back"


def test_what_the_store_took_back_by_gfn_is_forgotten(exports: ExportedPages) -> None:
    gmem = file()
    leave(exports, gmem, 3)
    exports.taken_back(Gfn(103), Gfn(104))
    assert refused(exports.find, gmem, Pgoff(3)) == "EBADMSG"


def test_a_pairing_that_ends_takes_its_pages_along(exports: ExportedPages) -> None:
    gmem, other = file(), file(3)
    leave(exports, gmem, 3)
    exports.leave(other, Pgoff(3), Gfn(500))
    exports.drop(gmem)
    assert len(exports) == 1
    assert exports.find(other, Pgoff(3))[0] == 500


def test_so_many_pages_may_be_out_and_no_more(exports: ExportedPages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmsim.kvm.export.MAX_EXPORTED_PAGES", 2)
    assert limits.MAX_EXPORTED_PAGES > 1 << 20
    exports.check_room(2)
    leave(exports, file(), 3)
    assert refused(exports.check_room, 2) == "ENOSPC"
