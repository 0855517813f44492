"""kvmsim compare on real mounts: what each design costs and destroys, and that nothing of it is typed in."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.real_mount import BIN, ENVIRONMENT, MountFactory
from tests.support.threads import until

DEADLINE_S = 280
CAP = 600
Row = dict[str, object]


def compare(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "kvmsim", "compare", *map(str, arguments)],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def rows_of(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], Row]:
    assert done.returncode == 0, done.stderr
    rows = [row for line in done.stdout.splitlines() if (row := json.loads(line))["design"]]
    return {(row["workload"], f"{row['design']}/{row['under']}".removesuffix("/None")): row for row in rows}


@pytest.fixture(scope="module")
def large(shared_mount: MountFactory) -> Path:
    """A directory on a mount with room for pages of 1 GiB."""
    return shared_mount("size=4G").path


@pytest.fixture(scope="module")
def rows(large: Path) -> dict[tuple[str, str], Row]:
    designs = compare(large, "--page-sizes", "4K", "--max-slots", CAP, "--json", "--workloads", "boot,ring,misbehave")
    return rows_of(designs)


DESIGNS = ("recreate", "punch", "overlay/kept", "overlay/freed")


def test_every_workload_runs_under_every_design(rows: dict[tuple[str, str], Row]) -> None:
    assert set(rows) == {(workload, design) for workload in ("boot", "ring", "misbehave") for design in DESIGNS}
    for row in rows.values():
        assert row["conversions"] and row["conversion_us"] and row["exits"], row
        assert bool(row["tlb_flushes"]) == bool(row["zapped"]), "what was not mapped is not flushed"


def test_only_recreate_loses_data_that_nobody_converted(rows: dict[tuple[str, str], Row]) -> None:
    assert {key for key, row in rows.items() if row["lost_pages"]} == {
        (workload, "recreate") for workload in ("boot", "ring", "misbehave")
    }


def test_only_an_overlay_that_keeps_holds_memory_twice(rows: dict[tuple[str, str], Row]) -> None:
    doubled = {key for key, row in rows.items() if row["doubled_bytes_peak"]}
    assert doubled == {("ring", "overlay/kept"), ("misbehave", "overlay/kept")}, "boot shares what it has not touched"
    assert rows["misbehave", "overlay/kept"]["doubled_bytes_peak"] == CAP * 4096


def test_the_misbehaving_guest_is_stopped_by_the_cap(rows: dict[tuple[str, str], Row]) -> None:
    for design in DESIGNS:
        row = rows["misbehave", design]
        assert str(row["stopped"]).startswith("ENOSPC")
        assert row["conversions"] == CAP
        assert row["slots_peak"] == (2 * CAP if design == "recreate" else CAP + 1)
    assert not any(row["stopped"] for (workload, _), row in rows.items() if workload != "misbehave")


def test_an_overlay_that_keeps_asks_the_store_for_nothing_when_it_converts(rows: dict[tuple[str, str], Row]) -> None:
    messages = {design: rows["ring", design]["store_messages"] for design in DESIGNS}
    assert messages["overlay/kept"] == min(messages.values())  # type: ignore[type-var]


LINUX = ("attributes", "inplace")


def test_linuxs_designs_cost_no_slots_lose_nothing_and_hold_nothing_twice(tmp_path: Path) -> None:
    """On mounts of their own, each of its ABI; larger pages are left out."""
    page = tmp_path / "page.html"
    asked = ("--designs", ",".join(LINUX), "--workloads", "boot,misbehave", "--max-slots", 40, "--page-sizes", "4K,2M")
    rows = rows_of(compare(*asked, "--json", "--html", page))
    assert set(rows) == {(workload, design) for workload in ("boot", "misbehave") for design in LINUX}
    for (workload, design), row in rows.items():
        assert row["abi"] == ("gmem-7.2" if design == "attributes" else "gmem-inplace")
        assert (row["slots_peak"], row["lost_pages"], row["doubled_bytes_peak"], row["stopped"]) == (1, 0, 0, "")
        assert row["conversions"] == (17 if workload == "boot" else 40)
        assert row["conversion_us"] and row["store_messages"]
    assert all(design in page.read_text() for design in LINUX)


def test_pages_are_measured_in_any_directory_of_a_mount_of_sealed_files(shared_mount: MountFactory) -> None:
    below = shared_mount("size=64M").path / "below"
    below.mkdir()
    measured = compare(below, "--workloads", "page", "--page-sizes", "4K")
    assert measured.returncode == 0 and "first touch" in measured.stdout
    refused = compare(shared_mount("size=64M,abi=gmem-7.2").path, "--workloads", "page")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "on abi=thread alone, and this is abi=gmem-7.2" in refused.stderr


def test_a_mount_has_the_designs_of_its_abi(large: Path, shared_mount: MountFactory) -> None:
    refused = compare(large, "--designs", "punch,inplace", "--page-sizes", "4K")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "abi=thread, without inplace: name one with abi=gmem-inplace, or none" in refused.stderr
    named = shared_mount("size=2G,abi=gmem-6.18").path
    rows = rows_of(compare(named, "--workloads", "misbehave", "--max-slots", 10, "--json"))
    assert [(key, row["abi"]) for key, row in rows.items()] == [(("misbehave", "attributes"), "gmem-6.18")]
    small = compare("--designs", "attributes", "--page-sizes", "2M")
    assert (small.returncode, small.stderr.count("\n")) == (1, 1)
    assert "a guest_memfd has pages of 4K only: add 4K to --page-sizes" in small.stderr


def test_it_leaves_nothing_on_the_mount(rows: dict[tuple[str, str], Row], large: Path) -> None:
    assert rows
    assert os.listdir(large) == []


OPERATIONS = ("first touch", "move", "swap out", "swap in")


def test_what_is_done_to_a_page_is_measured_beside_its_first_touch(tmp_path: Path) -> None:
    """On its own mount, with a second node and a swap file; also on the HTML page."""
    page = tmp_path / "costs.html"
    done = compare("--workloads", "page", "--page-sizes", "4K", "--json", "--html", page)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [(what, encrypted) for encrypted in (False, True) for what in OPERATIONS]
    assert [(row["operation"], row["memory_encryption"]) for row in rows] == expected
    touch = rows[0]["us_each"]
    for row in rows:
        assert (row["workload"], row["design"], row["page_size"], row["pages"]) == ("page", None, 4096, 1024)
        assert row["us_each"] > 0 and row["times_touch"] == row["us_each"] / touch
    assert ">swap out</td>" in page.read_text() and f"{rows[-1]['us_each']:.1f}" in page.read_text()


def test_what_a_named_mount_or_this_python_cannot_do_is_left_out_in_a_line(large: Path, tmp_path: Path) -> None:
    """One node and no swap file; and without the package that does the ciphers."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['cryptography'] = None\n")
    for path, lines, operations in (
        ("", ["one node: mount with nodes=2", "no swap file with 4M free: mount with swap="], [("first touch", True)]),
        (str(tmp_path), ["cryptography: pip install cryptography", "one node", "no swap file"], []),
    ):
        done = compare(large, "--workloads", "page", "--page-sizes", "4K", PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        assert all(line in said for line, said in zip(lines, done.stderr.splitlines(), strict=True)), done.stderr
        rows = [line.split("  ")[0] for line in done.stdout.splitlines() if line.startswith(OPERATIONS)]
        assert rows == ["first touch", *(name for name, _ in operations)]


def test_larger_pages_are_compared_on_a_mount_of_its_own(tmp_path: Path) -> None:
    picture = tmp_path / "slots.png"
    done = compare("--page-sizes", "2M,1G", "--workloads", "misbehave", "--max-slots", 60, "--plot", picture)
    assert done.returncode == 0, done.stderr
    lines = [line.split()[:3] for line in done.stdout.splitlines() if line.startswith("misbehave")]
    assert [tuple(line[1:]) for line in lines] == [(design, size) for size in ("2M", "1G") for design in DESIGNS]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workloads", "boot,nap"], "'nap' does not exist: choose from boot, ring, misbehave, page"),
        (
            ["--designs", "overlay"],
            "'overlay' does not exist: choose from recreate, punch, overlay/kept, overlay/freed",
        ),
        (["--page-sizes", "8K"], "page size 8K does not exist"),
        (["--max-slots", "1"], "'1' is not a number of slots: choose 2 to"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], said: str) -> None:
    done = compare(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_directory_that_is_no_mount_of_ours_exits_1_in_one_line(tmp_path: Path) -> None:
    done = compare(tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}: not on a memfsd mount" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_picture_that_can_not_be_written_says_so(large: Path) -> None:
    done = compare(
        large, "--workloads", "boot", "--page-sizes", "4K", "--designs", "punch", "--plot", "/dev/null/x.png"
    )
    assert done.returncode == 1
    assert "/dev/null/x.png" in done.stderr


def test_a_pool_that_is_too_small_is_one_line(shared_mount: MountFactory) -> None:
    path = shared_mount("size=1G").path
    done = compare(path, "--workloads", "boot", "--designs", "punch", "--page-sizes", "4K")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"kvmsim: {path}: its pool has 1G and 2G are needed: mount with size=2G or more (ENOSPC)\n"
    assert not list(path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--plot", "picture.pgn"], "'pgn' is not a format: choose "),
        (["--plot", "picture"], "'' is not a format: choose "),
        (["--plot", "/no/such/picture.png"], "directory /no/such does not exist"),
        (["--plot", "picture.png", "--workloads", "boot"], "--plot draws workload misbehave"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_run(arguments: list[str], said: str) -> None:
    done = compare("/no/such/mount", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_comparison_that_is_killed_leaves_nothing(number: int, tmp_path: Path) -> None:
    running = subprocess.Popen(
        [BIN / "kvmsim", "compare", "--page-sizes", "4K", "--json"],
        env={**ENVIRONMENT, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with running:
        assert running.stdout is not None
        running.stdout.readline()  # a row: it is under way
        running.send_signal(number)
        running.wait(DEADLINE_S)
    until(lambda: not list(tmp_path.iterdir()), "its mount point goes")


def test_a_file_on_a_named_mount_is_gone_while_it_is_used(large: Path) -> None:
    running = subprocess.Popen(
        [BIN / "kvmsim", "compare", large, "--page-sizes", "4K", "--json"], env=ENVIRONMENT, stdout=subprocess.PIPE
    )
    with running:
        assert running.stdout is not None
        running.stdout.readline()
        running.kill()
    until(lambda: not list(large.glob("compare-*")), "no file stays")
