"""git on the mount: it writes, links, renames, maps and checks its own hashes."""

import shutil
from pathlib import Path

from tests.programs.conftest import Run

ROOT = Path(__file__).parents[2]
WHO = {
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b",
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip


def test_a_real_tree_through_commits_branches_gc_fsck_and_clones(place: Path, run: Run) -> None:
    def git(*words: str | Path, cwd: Path) -> str:
        return run(cwd, "git", *words, **WHO)

    tree = place / "tree"
    for part in ("memfsd", "kvmsim", "docs", "tests"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", ".*cache"))
    git("init", "-q", "-b", "main", cwd=tree)
    git("add", "-A", cwd=tree)
    git("commit", "-q", "-m", "the tree", cwd=tree)

    git("checkout", "-q", "-b", "other", cwd=tree)
    readme = tree / "memfsd/core/service.py"
    readme.write_text(readme.read_text() + "# changed\n")
    git("rm", "-q", "-r", "docs", cwd=tree)
    git("mv", "tests", "moved", cwd=tree)
    git("commit", "-q", "-a", "-m", "changed, removed, moved", cwd=tree)
    git("checkout", "-q", "main", cwd=tree)
    assert (tree / "docs").is_dir()
    assert not (tree / "moved").exists()
    git("merge", "-q", "other", cwd=tree)
    git("gc", "-q", "--prune=now", cwd=tree)
    git("fsck", "--full", "--strict", cwd=tree)
    assert git("status", "--porcelain", cwd=tree) == ""

    git("clone", "-q", tree, place / "linked", cwd=place)  # hard links
    git("clone", "-q", "--no-hardlinks", tree, place / "copied", cwd=place)
    head = git("rev-parse", "HEAD^{tree}", cwd=tree)
    for clone in (place / "linked", place / "copied"):
        git("fsck", "--full", cwd=clone)
        assert git("rev-parse", "HEAD^{tree}", cwd=clone) == head
        assert git("status", "--porcelain", cwd=clone) == ""
        run(place, "diff", "-r", "--exclude=.git", tree, clone)
