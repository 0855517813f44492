"""python -m kvmsim, and the command kvmsim."""

from memfsd.common.starting import be_quiet_when_interrupted


def main() -> None:
    be_quiet_when_interrupted()
    from . import cli

    cli.main()


if __name__ == "__main__":
    main()
