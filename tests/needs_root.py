"""Tests that only root can run, and why. Everything else, mounting included, runs as any user."""

from collections import Counter

import pytest

NEEDS_ROOT = {
    "tests/attack/": "acts as three users",
    "tests/hostile/test_impostor.py": "acts as other users",
    "tests/hostile/test_live_mount.py": "acts as other users",
    "tests/mount/test_daemon.py::test_a_missing_dev_fuse_is_one_line": "mounts over /dev",
    "tests/mount/test_daemon.py::test_it_goes_into_the_background": "looks into memfsd, which is not dumpable",
    "tests/mount/test_file_handles.py": "opens by handle, and remounts",
    "tests/mount/test_guest_seal.py::test_attributes_names_and_times_work_as_on_any_file": "gives a file away (chown)",
    "tests/mount/test_journals_of_a_mount.py::test_a_disk_that_fills_up": "mounts a small tmpfs",
    "tests/mount/test_journals_of_a_mount.py::test_a_journal_that_can_not_begin": "mounts a small tmpfs",
    "tests/mount/test_mount_command.py": "mounts with mount(8)",
    "tests/mount/test_ordinary_files.py": "acts as other users",
    "tests/mount/test_ordinary_user.py": "becomes another user",
    "tests/mount/test_overlay.py": "mounts an overlay, with devices",
    "tests/mount/test_readme.py": "the README's session is root's: where the socket is, and its uid",
    "tests/mount/test_semantics_doc.py": "mounts a tmpfs to compare with",
    "tests/mount/test_shell_interface.py::test_other_namespaces_of_attributes": "sets a trusted xattr",
    "tests/programs/": "mounts for every user, with devices and set-user-ID, and remounts",
    "tests/reference/": "mounts a tmpfs to compare with, and acts as other users",
    "tests/tools/test_killed_run.py::test_a_daemon_in_the_background": "makes namespaces",
}
"""By how a test's id begins."""


def reason(test_id: str) -> str | None:
    """Why this test needs root; None when it does not."""
    return next((why for start, why in NEEDS_ROOT.items() if test_id.startswith(start)), None)


LEFT_OUT: Counter[str] = Counter()
"""Modules and reasons."""


def report() -> dict[str, int]:
    return dict(LEFT_OUT)


def hear(report: dict[str, int]) -> None:
    """All workers collect the same tests."""
    LEFT_OUT.clear()
    LEFT_OUT.update(report)


def show(reporter: pytest.TerminalReporter) -> None:
    if LEFT_OUT:
        reporter.section("not run, since they need root (sudo tools/test)")
        for what, count in sorted(LEFT_OUT.items()):
            reporter.line(f"{what} ({count})")
