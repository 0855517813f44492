"""tools/mutate: a sample of faults, one at a time, and how many of them the tests find."""

import argparse
import json
import queue
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mutatelib import coverage
from mutatelib.catalogue import Equivalents, catalogue, known_equivalents, sample, sources
from mutatelib.mutations import Mutation
from mutatelib.trial import DIED, EQUIVALENT, NOT_EXECUTED, SURVIVED, TIMED_OUT, Verdict, try_one
from mutatelib.workplace import Workplace

ROOT = Path(__file__).resolve().parents[2]
_HELP = """\
A fault is one changed operator, number, condition, call or statement of memfsd or kvmsim, some instruments (race,
journal, compare) left out. Each is tried in a copy of the checkout with the tests that execute the function it is in
(tests of single modules, of a mount, models, pairs and races), up to the first that fails. What is tried depends
on the seed and the code only.

Which test executes what is recorded first, which takes a few times as long as these tests. --map FILE keeps it; with
one that exists only test files that have changed are recorded again.

exit status: 0 the target is reached, 1 it is not, 2 usage, 130 interrupted
"""


@dataclass(frozen=True)
class Result:
    mutation: Mutation
    verdict: Verdict
    before: str
    after: str

    def line(self) -> str:
        where = f"{self.mutation.path}:{self.mutation.line}"
        return f"{self.verdict.outcome}: {where}: {self.mutation.kind}: {self.before}  ->  {self.after}"

    def as_json(self) -> dict[str, object]:
        mutation, verdict = self.mutation, self.verdict
        what = {"file": mutation.path, "line": mutation.line, "function": mutation.function, "kind": mutation.kind}
        return {**what, "before": self.before, "after": self.after, "outcome": verdict.outcome, "why": verdict.why}


def main() -> int:
    asked = _parser().parse_args()
    texts = sources(ROOT, asked.paths)
    if not texts:
        print(f"tools/mutate: no module to mutate begins with {' or '.join(asked.paths)}", file=sys.stderr)
        return 2
    everything = catalogue(texts)
    equivalents = Equivalents(known_equivalents())
    for key in equivalents.stale(texts, everything):
        print(f"mutate: equivalent.toml: no longer in the code: {key[0]}: {key[2]}  ->  {key[3]}", file=sys.stderr)
    chosen = sample(everything, asked.seed, asked.count)
    if asked.list:
        for each in chosen:
            before, after = each.lines(texts[each.path])
            print(f"{each.path}:{each.line}: {each.kind}: {before}  ->  {after}")
        return 0
    begin = time.monotonic()
    places: list[Workplace] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        places += [Workplace(ROOT) for _ in range(asked.workers)]
        known = _recorded(places[0], asked.map)
        results = _try_all(places, coverage.Coverage(known), equivalents, texts, chosen)
    except KeyboardInterrupt:
        print("mutate: interrupted", file=sys.stderr)
        return 130
    finally:
        for place in places:
            place.remove()
    return _show(asked, len(everything), results, time.monotonic() - begin)


def _recorded(place: Workplace, kept: Path | None) -> dict[str, coverage.TestFile]:
    """Which tests execute what; saved file by file, so that an interrupted recording goes on where it was."""
    current = coverage.test_files(place.root)
    known = {name: file for name, file in coverage.load(kept).items() if name in current}
    for name in coverage.outdated(place.root, known):
        known[name] = coverage.record(place, name)
        print(f"mutate: recorded {len(known[name].tests)} tests of {name}", file=sys.stderr, flush=True)
        for test in known[name].left_out:
            print(f"mutate: left out, because it does not pass by itself: {test}", file=sys.stderr, flush=True)
        if kept:
            coverage.save(kept, known)
    return known


def _try_all(
    places: list[Workplace],
    known: coverage.Coverage,
    equivalents: Equivalents,
    texts: dict[str, str],
    chosen: list[Mutation],
) -> list[Result]:
    """In the order of the sample, one worker for each place."""
    waiting: queue.SimpleQueue[tuple[int, Mutation]] = queue.SimpleQueue()
    for item in enumerate(chosen):
        waiting.put(item)
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def work(place: Workplace) -> None:
        while not errors:
            try:
                number, mutation = waiting.get_nowait()
            except queue.Empty:
                return
            source = texts[mutation.path]
            try:
                reason = equivalents.reason(mutation, source)
                verdict = Verdict(EQUIVALENT, reason) if reason else try_one(place, known, mutation, source)
            except BaseException as error:
                errors.append(error)
                return
            results[number] = Result(mutation, verdict, *mutation.lines(source))
            progress = f"mutate: {len(results)}/{len(chosen)} {results[number].line()}"
            print(progress, f"({verdict.why})" if verdict.why else "", file=sys.stderr, flush=True)

    threads = [threading.Thread(target=work, args=[place], daemon=True) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[number] for number in sorted(results)]


def _show(asked: argparse.Namespace, all_of_them: int, results: list[Result], seconds: float) -> int:
    counts = Counter(result.verdict.outcome for result in results)
    died = counts[DIED] + counts[TIMED_OUT]
    alive = counts[SURVIVED] + counts[NOT_EXECUTED]
    percent = 100 * died / (died + alive) if died + alive else 100.0
    reached = percent >= asked.target
    if asked.json:
        sampled = {"seed": asked.seed, "tried": len(results), "of": all_of_them, "counts": dict(counts)}
        reach = {"percent": round(percent, 1), "target": asked.target, "reached": reached, "seconds": round(seconds)}
        print(json.dumps(sampled | reach | {"mutations": [result.as_json() for result in results]}))
        return 0 if reached else 1
    for result in results:
        if result.verdict.outcome in (SURVIVED, NOT_EXECUTED):
            print(result.line())
    print(
        f"{died} of {died + alive} died ({percent:.1f} %; target {asked.target:g} %), {counts[TIMED_OUT]} of them by "
        f"time; {counts[EQUIVALENT]} more are equivalent; a sample of {len(results)} of {all_of_them}, "
        f"seed {asked.seed}, {seconds:.0f} s"
    )
    return 0 if reached else 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tools/mutate",
        description="Plants faults, one at a time, and counts those that the tests find.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="only modules whose path begins so, as memfsd/core")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="which are tried (default 1)")
    parser.add_argument("--count", type=_positive, default=100, metavar="N", help="how many (default 100)")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1, help="how many at a time (default 1)")
    parser.add_argument(
        "--target", type=_percent, default=95.0, metavar="PERCENT", help="how many must die (default 95)"
    )
    parser.add_argument("--map", type=Path, metavar="FILE", help="keep what each test executes here")
    parser.add_argument("--list", action="store_true", help="only show the sample")
    parser.add_argument("--json", action="store_true", help="one JSON object with every mutation of the sample")
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 1 << 20:
        raise argparse.ArgumentTypeError(f"'{text}' is not a count: choose 1 to {1 << 20}")
    return int(text)


def _percent(text: str) -> float:
    try:
        percent = float(text)
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise argparse.ArgumentTypeError(f"'{text}' is not a percentage: choose 0 to 100")
    return percent


if __name__ == "__main__":
    sys.exit(main())
