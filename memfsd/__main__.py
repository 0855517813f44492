"""python -m memfsd, and the commands memfsd and memfs."""

from memfsd.common.starting import be_quiet_when_interrupted


def main() -> None:
    be_quiet_when_interrupted()
    from .commands import memfsd as cli

    cli.main()


def memfs() -> None:
    be_quiet_when_interrupted()
    from .commands import memfs as cli

    cli.main()


if __name__ == "__main__":
    main()
