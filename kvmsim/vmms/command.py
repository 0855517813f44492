"""The command line of `kvmsim vmms`."""

import argparse
import errno
import json
import logging
import sys
from collections.abc import Sequence
from typing import Protocol, TypeVar

from kvmsim.vmm.models import MODELS
from kvmsim.vmm.models.reference import Reference
from memfsd.uapi.abi import GMEM_6_18, THREAD
from memfsd.uapi.errors import NO_RESOURCES, Refused, errno_name

from . import table
from .rig import ABIS_THAT_CONVERT, Result, run, runs_in
from .scenarios import SCENARIOS

_ALL = "default: all; --list names them"
_EPILOG = """\
It needs no mount and no root: store and VMs are in this process, and each row has its own.
docs/vmms.md is what --markdown prints, and says what is judged.
exit status: 0 measured, and the reference passed all; 1 not; 2 usage
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run models of real VMMs' conversion code through scenarios; print what each leaves behind."
    parser.epilog = _EPILOG
    models, scenarios = (lambda words: _named(words, MODELS)), (lambda words: _named(words, SCENARIOS))
    abis = ", ".join(abi.name for abi in ABIS_THAT_CONVERT)
    parser.add_argument("--models", type=models, default=MODELS, metavar="M[,M]", help=_ALL)
    parser.add_argument("--scenarios", type=scenarios, default=SCENARIOS, metavar="S[,S]", help=_ALL)
    parser.add_argument(
        "--abi",
        type=lambda words: _named(words, ABIS_THAT_CONVERT),
        default=(THREAD, GMEM_6_18),
        metavar="A[,A]",
        help=f"of {abis} (default thread,gmem-6.18)",
    )
    parser.add_argument("--list", action="store_true", help="models and scenarios, and what they are")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON object a row")
    how.add_argument("--markdown", action="store_true", help="as docs/vmms.md")


def vmms(asked: argparse.Namespace) -> int:
    """Exit status."""
    if asked.list:
        return _list(asked.json)
    logging.getLogger("memfsd").addHandler(logging.NullHandler())  # a store that dies is part of a scenario
    results: list[Result] = []
    try:
        for scenario in asked.scenarios:
            for model in asked.models:
                for abi in asked.abi if runs_in(model, scenario) else ():
                    _say(f"\r\033[Kkvmsim: {scenario.name}, {model.name}, {abi.name}")
                    results.append(run(model, scenario, abi))
                    if asked.json:
                        print(json.dumps(table.facts(results[-1])), flush=True)
    except (Refused, OSError) as error:
        number = error.errno or errno.EIO
        if number not in NO_RESOURCES:
            raise
        _say("\r\033[K")
        why = f"no room for a VM and a store ({errno_name(number)}): raise ulimit -n, -u or -v"
        print(f"kvmsim: {why}", file=sys.stderr)
        return 1
    _say("\r\033[K")
    if asked.markdown:
        print(table.markdown(results, asked.models, asked.scenarios), end="")
    elif not asked.json:
        print(table.text(results, asked.scenarios))
    return int(any(result.verdict != "ok" for result in results if result.model == Reference.name))


def _say(progress: str) -> None:
    if sys.stderr.isatty():
        print(progress, end="", file=sys.stderr, flush=True)


def _list(as_json: bool) -> int:
    rows = [{"model": model.name, "about": f"{model.facts.version}: {model.facts.order}"} for model in MODELS]
    rows += [{"scenario": scenario.name, "about": scenario.about} for scenario in SCENARIOS]
    for row in rows:
        name, about = row.values()
        print(json.dumps(row) if as_json else f"{name:24} {about}")
    return 0


class _Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=_Named)


def _named(words: str, known: Sequence[T]) -> list[T]:
    by_name = {each.name: each for each in known}
    for word in words.split(","):
        if word not in by_name:
            raise argparse.ArgumentTypeError(f"'{word}' does not exist: choose from {', '.join(by_name)}")
    return [by_name[word] for word in words.split(",")]
