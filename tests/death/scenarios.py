"""What both sides are doing when a point is reached: scripts of kvmsim, on a file of 64 pages in a pool of 256.

{file} and {other} are sealed and have no VM yet, {mount} is the mount point, {store} memfsd's pid, {memfs} the
command. Each script ends well when nobody dies.
"""

from dataclasses import dataclass
from typing import Literal

from .traps import Action, Hold

PATTERN = b"\xa5\x5aDEAD VM'S DATA!"
POOL_PAGES = 256
FILE_PAGES = 64
_PATTERN = PATTERN.hex()


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    script: str
    status: int = 0
    """With which kvmsim ends when no fault comes on top."""
    also: tuple[str, int, Action] | None = None
    """A first fault that belongs to the scenario."""
    store_ends: bool = False
    stops: bool = False
    """It stops one side by itself, until deadlines have passed: a SIGCONT that comes on top changes how it ends."""
    goes_on: Literal["", "vm", "store"] = ""
    """Whom the harness lets go on: the VM when the store has given it up, the store when the VM has ended."""
    holds: tuple[Hold, ...] = ()
    """What makes two of the VM's threads meet."""
    options: str = ""
    """Of the store, on top of those of every one; {base} is a directory beside its mount."""
    arguments: tuple[str, ...] = ()
    """Of kvmsim."""


_PAIR = f"""
slot set 0 private gpa=0 size=256K file={{file}}
write 0x1000 "{_PATTERN}"
write 0x9000 "{_PATTERN}"
"""
_PUNCH = "sh fallocate -p -o 0 -l 64K {file}\n"
_LOST = "expect exit MEMORY_ERROR\n"
_SWAP = ",swap={base}/swap,swap_size=1M,swap_reset"
_ENCRYPTED = ("--memory-encryption", "on")
_KICKING = "Vcpu.kick_lock taken"
"""The first time before a kick, the second time at its end."""

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("life", _PAIR + "read 0x1000 16\ntouch 0 256K\nslot delete 0 private\n"),
    Scenario("bye", _PAIR),
    Scenario("punch", _PAIR + "touch 0 64K\n" + _PUNCH + "read 0x1000 16\n"),
    Scenario("truncate", _PAIR + "sh truncate -s 32K {file}\nread 0x1000 16\n"),
    Scenario("hole", _PAIR + "slot punch 0 gpa=0 size=64K\nread 0x19000 16\n"),
    Scenario("convert", "policy punch\n" + _PAIR + "map 0 64K shared\nmap 0 64K private\nread 0x1000 16\n"),
    Scenario(
        "large pages",
        _PAIR + "slot set 0 shared gpa=1G size=4M\ntouch 1G 4M shared\nslot delete 0 shared\n",
    ),
    Scenario(
        "reclaim by a guest",
        _PAIR + "touch 0 128K\nsh fallocate -l 736K {mount}/filler\n"
        "slot set 1 private gpa=16M size=256K file={other}\ntouch 16M 64K\n",
    ),
    Scenario("reclaim by a file", _PAIR + "touch 0 128K\nsh head -c 4M /dev/zero >{mount}/filler; true\n"),
    Scenario("check", _PAIR + "sh {memfs} check {mount}\n"),
    Scenario("unlink", _PAIR + "sh rm {file} {other}\nread 0x1000 16\n"),
    Scenario(
        "unmount",
        _PAIR + "sh kill -TERM {store}; timeout 60 tail -s 0.01 --pid={store} -f /dev/null\nread 0x1000 16\n" + _LOST,
        store_ends=True,
    ),
    Scenario(
        "silent",
        _PAIR + "sh kill -STOP $PPID; while grep -h ^State /proc/$PPID/task/*/status | grep -qv stopped; do :; done; "
        "fallocate -p -l 64K {file}; kill -CONT $PPID; true\n",
        stops=True,
    ),
    Scenario(
        "half-open",
        _PAIR,
        status=1,
        also=("vm down send PAIR", 1, Action.STOP_SELF),
        stops=True,
        goes_on="vm",
    ),
    Scenario(
        "silent store",
        _PAIR,
        status=1,
        also=("store down receive GET_PFN", 1, Action.STOP_SELF),
        stops=True,
        goes_on="store",
    ),
    Scenario("VM dies", _PAIR + "sh kill -KILL $PPID\n", status=-9),
    Scenario("no answer", _PAIR, status=1, also=("store down send answer to GET_PFN", 2, Action.CUT)),
    Scenario(
        "no acknowledgement",
        _PAIR + _PUNCH + "read 0x1000 16\n" + _LOST,
        also=("vm up receive INVALIDATE_BEGIN", 1, Action.CUT),
        status=1,
    ),
    Scenario(
        "fault meets invalidation",
        # Whichever comes first, the fault cannot end before the invalidation begins, nor that before the fault waits.
        _PAIR + "start touch vcpu=0 0 64K\n" + _PUNCH + "join vcpu=0\n",
        holds=(
            Hold("vm down receive answer to GET_PFN", 3, "bracket opened"),
            Hold("vm up receive INVALIDATE_END", 1, "Mmu.ended waited for"),
        ),
    ),
    Scenario(
        "conversion meets vCPU",
        # Either the conversion finds the vCPU in KVM_RUN and waits for it, or the vCPU finds the conversion.
        "policy punch\n"
        + _PAIR
        + "vcpu 1\nstart touch vcpu=0 64K 192K\nmap vcpu=1 0 64K shared\njoin vcpu=0\nmap 0 64K private\n",
        holds=(
            Hold("vm down send GET_PFN", 3, "Inhibitor.changed waited for"),
            Hold("vm down send UNBIND", 1, "Inhibitor.changed waited for"),
        ),
    ),
    Scenario(
        "kick meets vCPU",
        # The vCPU is out of the guest and wants in while it is being kicked, for pages that it does not touch.
        _PAIR + "start touch vcpu=0 64K 64K\n" + _PUNCH + "join vcpu=0\n",
        holds=(
            Hold("vm down receive answer to GET_PFN", 3, _KICKING, 2),
            Hold(_KICKING, 2, "Vcpu.go_on waited for"),
        ),
    ),
    Scenario(
        "move",
        _PAIR + "touch 0 64K\nsh {memfs} move -l 64K {file} 1 && {memfs} move -l 64K {file} 0\nread 0x1000 16\n",
        options=",nodes=2",
    ),
    Scenario(
        "swap",
        _PAIR + "touch 0 64K\nsh {memfs} swapout -l 64K {file}\nread 0x1000 16\n"
        "sh {memfs} swapout -l 64K {file}\nread 0x1000 16\n",
        options=_SWAP,
        arguments=_ENCRYPTED,
    ),
    Scenario(
        "eviction",
        _PAIR + "touch 0 256K\nsh fallocate -l 704K {mount}/filler\n"
        "slot set 1 private gpa=16M size=256K file={other}\ntouch 16M 256K\nread 0x1000 16\n",
        options=_SWAP,
        arguments=_ENCRYPTED,
    ),
)
