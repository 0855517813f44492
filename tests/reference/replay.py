"""Run a script of operations in a directory of your choice and print what each answers.

    python -m tests.reference.replay DIRECTORY < SCRIPT

Run it on a memfsd mount and on a tmpfs, and compare.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from tests.reference import operations
from tests.reference.operations import Operation
from tests.reference.world import World


def parse(lines: Iterable[str]) -> list[Operation]:
    """Operations as `compare.script` prints them."""
    return [eval(line, vars(operations).copy()) for line in lines if line.strip()]


def main() -> None:
    world = World(Path(sys.argv[1]) / "replay")
    try:
        for operation in parse(sys.stdin):
            print(operation, "->", world.apply(operation.run))
        for place, seen in world.see_all().items():
            print(place, seen)
    finally:
        world.close()


if __name__ == "__main__":
    main()
