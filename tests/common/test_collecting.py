"""What lives long is looked through once."""

import subprocess
import sys

SCRIPT = """
import gc
from memfsd.common.collecting import freeze_survivors

freeze_survivors()
before = gc.get_freeze_count()
kept = [[] for _ in range({count})]
for one, other in zip(kept, kept[1:]):
    one.append(other)
gc.collect()
print(gc.get_freeze_count() - before)
"""


def frozen_of(count: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(count=count)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_what_survives_a_long_collection_is_left_out_of_the_next() -> None:
    assert frozen_of(1_000_000) > 800_000, "but for those of the last, short one"


def test_after_a_short_one_garbage_is_still_found() -> None:
    assert frozen_of(10) == 0
