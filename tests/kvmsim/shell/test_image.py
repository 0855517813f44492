"""`populate` takes a host file: regular, not empty, its last page filled up with zeros."""

import os
from pathlib import Path

import pytest

import kvmsim.cpu.guests
from kvmsim.kvm.measurement import Measurement
from kvmsim.shell.image import open_image
from kvmsim.shell.script.grammar import FORMS
from tests.support.both_sides import LocalStore, errno_of
from tests.support.script_lines import Lines


def refused_image(path: Path) -> str:
    def opened() -> None:
        with open_image(str(path)):
            pass

    return errno_of(opened)


def test_only_regular_files_with_something_in_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    assert refused_image(tmp_path / "fifo") == "EINVAL"
    assert refused_image(tmp_path / "empty") == "EINVAL"
    assert refused_image(tmp_path) == "EINVAL"


def test_a_file_that_shrinks_is_eio(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    with open_image(str(path)) as image:
        os.truncate(path, 5000)
        assert errno_of(image.read, 0, 8192) == "EIO"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"a" * 4096 + b"tail")
    return path


def test_populate_finalize_and_measurement(private: Lines, image: Path) -> None:
    assert private.ok(f"populate 4K {image}").text == "4100 bytes, 2 pages"
    assert private.ok("read 8190 8").data == b"aatail\0\0"
    measured = Measurement()
    measured.add(4096, b"a" * 4096)
    measured.add(8192, b"tail".ljust(4096, b"\0"))
    shown = private.ok("measurement")
    assert (shown.data, shown.text, shown.info) == (measured.digest(), measured.digest().hex(), {"final": False})
    private.ok("finalize")
    refused = private(f"populate 16K {image}")
    assert (refused.errno, "finalized" in refused.reason) == ("EINVAL", True)
    assert private.ok("measurement").info == {"final": True}
    assert private("finalize").errno == "EINVAL"


def test_the_same_image_has_the_same_measurement_and_one_byte_changes_it(
    store: LocalStore, tmp_path: Path, image: Path
) -> None:
    digests = []
    for number, data in enumerate((image.read_bytes(), image.read_bytes(), b"b" + image.read_bytes()[1:])):
        store.create(f"vm{number}.mem", 16)
        (tmp_path / "the image").write_bytes(data)
        lines = Lines(store=store)
        lines.ok(
            f"slot set 0 private gpa=0 size=64K file={store.path(f'vm{number}.mem')}",
            f"populate 0 '{tmp_path / 'the image'}'",
            "finalize",
        )
        digests.append(lines.ok("measurement").data)
        lines.executor.close()
    assert digests[0] == digests[1] != digests[2]


def test_errors_name_what_is_wrong(private: Lines, tmp_path: Path, image: Path) -> None:
    missing = private("populate 0 /nowhere/at/all")
    assert (missing.errno, "/nowhere/at/all" in missing.reason) == ("ENOENT", True)
    large = private(f"populate 60K {image}")
    assert (large.errno, "2 pages at gpa 0xf000" in large.reason) == ("EFBIG", True)
    assert private(f"populate 64K {image}").errno == "EINVAL"
    private.ok("kick")
    assert private(f"populate 0 {image}").errno == "EINTR"
    private.ok(f"populate 0 {image}")
    assert private(f"populate 0 {image}").errno == "EEXIST"


def test_the_help_of_boot_names_every_shipped_guest() -> None:
    about = next(form.help for form in FORMS if form.name == "boot")
    guests = {path.stem for path in Path(kvmsim.cpu.guests.__path__[0]).glob("*.c")}
    assert {name for name in guests if name not in about} == set()
