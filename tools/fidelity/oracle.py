"""tools/oracle: what the kernel's guest_memfd and ours answer to the same cases, and every difference."""

import contextlib
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from memfsd.common.arguments import Parser
from memfsd.ownmount import mounted
from memfsd.uapi.abi import ABIS, GMEM_6_18
from memfsd.uapi.errors import PeerLost, Refused

from .document import DOCUMENT, render
from .linux_kvm import LinuxKvm, unavailable
from .outcomes import Outcome, same
from .player import NOT_ASKED, Make, play
from .reasons import Difference, reason_for
from .vectors import Vector, load, save

VECTORS = Path(__file__).parents[2] / "tests" / "fidelity" / "guest-memfd.json"

_EPILOG = """\
A GROUP is the beginning of cases' names: create, fd, fd/mmap, fallocate, mmap, gup, uffd, slot, gslot, guest. Without
any all are asked. Each case runs in a separate process: on /dev/kvm, and on a memfsd that is mounted for it.

  tools/oracle                       all differences; those that are listed with their reason
  tools/oracle --json fallocate      one JSON object for each op that differs, and one with the sums
  tools/oracle --record new.json     what this machine's KVM answers, as a recording

exit status: 0 every difference is listed, 1 one is not, or nothing could be asked, 2 usage
"""


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    asked = parser.parse_args(arguments)
    try:
        vectors = load(asked.vectors)
    except (OSError, ValueError) as error:
        print(f"tools/oracle: {asked.vectors}: {error}", file=sys.stderr)
        return 1
    if asked.render:
        DOCUMENT.write_text(render(vectors))
        print(f"{DOCUMENT} is written")
        return 0
    chosen = [vector for vector in vectors if vector.is_of(asked.groups)]
    unknown = [group for group in asked.groups if not any(vector.is_of([group]) for vector in vectors)]
    if unknown:
        known = ", ".join(sorted({vector.group for vector in vectors}))
        parser.error(f"no case is of '{unknown[0]}': choose from {known}")
    why_not = unavailable()
    if asked.record is not None and why_not is not None:
        print(f"tools/oracle: nothing recorded: {why_not}", file=sys.stderr)
        return 1
    try:
        if asked.record is not None:
            save(asked.record, [_recorded_again(vector) for vector in chosen])
            print(f"{asked.record}: {len(chosen)} cases")
            return 0
        if why_not is not None:
            print(f"tools/oracle: {why_not}: compared with the recording instead", file=sys.stderr)
        return _compare(chosen, asked.abi, live=why_not is None, as_json=asked.json)
    except (Refused, PeerLost, TimeoutError, RuntimeError, OSError) as error:
        print(f"tools/oracle: {error}", file=sys.stderr)
        return 1


def _parser() -> Parser:
    parser = Parser(
        prog="tools/oracle",
        description="Ask cases of guest_memfd of the kernel, and of memfsd and kvmsim.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--vectors", type=Path, default=VECTORS, metavar="FILE", help="the cases (default: our recording)"
    )
    parser.add_argument(
        "--abi", choices=sorted(set(ABIS) - {"thread"}), default=GMEM_6_18.name, help="of memfsd and kvmsim"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--record", type=Path, metavar="FILE", help="write what this machine's KVM answers")
    what.add_argument("--render", action="store_true", help=f"write docs/{DOCUMENT.name}, and ask nothing")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="which cases (default: all)")
    return parser


def _compare(vectors: Sequence[Vector], abi: str, *, live: bool, as_json: bool) -> int:
    counts = {"asked": 0, "same": 0, "listed": 0, "unlisted": 0, "not_asked": 0}
    with ours(abi) as answers:
        for vector in vectors:
            kvm = list(vector.recorded)
            if live:
                kvm = [_live(old, new) for old, new in zip(kvm, linux_answers(vector), strict=True)]
            for found in differences(vector, kvm, answers(vector), counts):
                reason = reason_for(found)
                counts["listed" if reason else "unlisted"] += 1
                _say(found, reason.title if reason else None, as_json=as_json)
    if as_json:
        print(json.dumps(counts))
    else:
        print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))
    return 1 if counts["unlisted"] else 0


def _say(found: Difference, reason: str | None, *, as_json: bool) -> None:
    if as_json:
        facts = {"case": found.case, "op": found.at, "kvm": found.kvm, "kvmsim": found.ours, "reason": reason}
        print(json.dumps(facts | {"call": {"op": found.op, "args": found.args}}), flush=True)
        return
    print(f"{found.case} {found.at}: {found.op} {json.dumps(found.args)}")
    print(f"    kvm     {json.dumps(found.kvm)}\n    kvmsim  {json.dumps(found.ours)}")
    print(f"    {reason or 'NOT LISTED'}", flush=True)


def differences(
    vector: Vector, kvm: Sequence[Outcome], found: Sequence[Outcome], counts: dict[str, int]
) -> Iterator[Difference]:
    """Ops that are asked of both and answered otherwise; counts is kept."""
    has_missed_code = False
    for at, (op, theirs, answer) in enumerate(zip(vector.ops, kvm, found, strict=True)):
        # What a guest's code would have done is missing from here on.
        has_missed_code |= answer == NOT_ASKED and op["op"].startswith("guest")
        if has_missed_code or NOT_ASKED in (theirs, answer):
            counts["not_asked"] += 1
            continue
        counts["asked"] += 1
        if same(theirs, answer):
            counts["same"] += 1
        else:
            yield Difference(vector.name, at, op["op"], op["args"], theirs, answer, vector.ops[:at])


def linux_answers(vector: Vector) -> list[Outcome]:
    with tempfile.TemporaryDirectory() as place:
        return _named(vector, place, LinuxKvm)


def _named(vector: Vector, place: str, make: Make) -> list[Outcome]:
    """What ends a case without an answer is reported with its name."""
    try:
        return play(list(vector.ops), place, make)
    except (TimeoutError, RuntimeError) as error:
        raise RuntimeError(f"{vector.name}: {error}") from None


def _recorded_again(vector: Vector) -> Vector:
    answers = zip(vector.recorded, linux_answers(vector), strict=True)
    return replace(vector, recorded=tuple(_live(old, new) for old, new in answers))


def _live(old: Outcome, new: Outcome) -> Outcome:
    """What KVM answers now; what it did, to an op that is not asked. What was known to differ from run to run still
    does."""
    if new == NOT_ASKED:
        return old
    if not isinstance(old.get("result"), dict) or not isinstance(new.get("result"), dict):
        return new
    return {"result": {key: "*" if old["result"].get(key) == "*" else value for key, value in new["result"].items()}}


@contextlib.contextmanager
def ours(abi: str, size: str = "4G") -> Iterator[Callable[[Vector], list[Outcome]]]:
    """What memfsd and kvmsim answer to a case: a function, and a mount for as long as it is asked."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        mountpoint = os.path.join(place, "mnt")
        os.mkdir(mountpoint)
        os.chmod(mountpoint, 0o777)  # cases become another user
        options = f"socket={place}/sock,abi={abi}" + (",allow_other" if os.geteuid() == 0 else "")
        with mounted(mountpoint, size=size, options=options) as mount:
            from .simulated import Simulated  # loads a VM, and --help needs none

            make: Make = functools.partial(Simulated, mount.path, abi)
            yield lambda vector: _named(vector, place, make)
