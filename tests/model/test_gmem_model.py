"""VMs with guest_memfds against dictionaries, with attributes of the VM and of the file: random steps, and after each
R1 to R8, what is mapped, and what the step came to.

KVMSIM_MODEL_STEPS=N takes N steps, KVMSIM_MODEL_SEED=N begins elsewhere. A failure names the steps that led to it.
"""

import os
import random
from contextlib import closing

import pytest

from memfsd.uapi.abi import GMEM_6_18, GMEM_7_2, GMEM_INPLACE, Abi
from tests.support.gmem_model import GFNS, ModelledGmemVm

STEPS = int(os.environ.get("KVMSIM_MODEL_STEPS", "1500"))
SEED = int(os.environ.get("KVMSIM_MODEL_SEED", "0"))
STEPS_PER_WORLD = 200
FILES = {"a": 12, "b": 6, "c": 9}
pytestmark = pytest.mark.minutes

KINDS = (
    ("slot",) * 3
    + ("attributes",) * 3
    + ("convert",) * 3
    + ("write",) * 6
    + ("read",) * 4
    + ("host", "punch", "allocate")
)


def steps(seed: int) -> list[str]:
    chance = random.Random(seed)
    made = ["slot 0 0 8 a 0", "slot 1 8 6 b 0", "slot 2 14 4 - 0", "slot 3 18 6 c 3"]
    while len(made) < STEPS_PER_WORLD:
        made.append(_step(chance))
    return made


def _step(chance: random.Random) -> str:
    kind = "release" if chance.random() < 0.005 else chance.choice(KINDS)
    name = chance.choice(list(FILES))
    gfn, count, alias = chance.randrange(GFNS), chance.choice((0, 1, 1, 2, 3, 8)), chance.choice(("private", "shared"))
    pgoff = chance.randrange(FILES[name])
    match kind:
        case "slot":
            file = chance.choice((name, name, "-"))
            return f"slot {chance.randrange(5)} {gfn} {count} {file} {pgoff if file != '-' else 0}"
        case "attributes":
            return f"attributes {gfn} {count} {alias}"
        case "convert":
            return f"convert {name} {pgoff} {count} {alias}"
        case "punch" | "allocate":
            return f"{kind} {name} {pgoff} {count}"
        case "write":
            return f"write {gfn} {alias} {chance.randrange(10**6)}"
        case "read":
            return f"read {gfn} {alias}"
        case "host":
            return f"host {name} {pgoff}"
    return f"release {name}"


@pytest.mark.parametrize("abi", [GMEM_6_18, GMEM_7_2, GMEM_INPLACE], ids=lambda abi: abi.name)
def test_a_vm_with_guest_memfds_agrees_with_dictionaries(abi: Abi) -> None:
    for seed in range(SEED, SEED + -(-STEPS // (3 * STEPS_PER_WORLD))):
        born_shared = {name: name == "c" and abi is GMEM_INPLACE for name in FILES}
        done: list[str] = []
        with closing(ModelledGmemVm(abi, {name: (FILES[name], born_shared[name]) for name in FILES})) as world:
            try:
                for line in steps(seed):
                    done.append(line)
                    world.step(line)
                    world.check()
                done.append("read everything")
                world.read_everything()
            except Exception as error:
                raise AssertionError(f"seed {seed}, after these steps:\n" + "\n".join(done)) from error
