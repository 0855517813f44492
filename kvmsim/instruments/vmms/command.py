"""The command line of `kvmsim vmms`."""

import argparse
import errno
import json
import logging
import sys

from kvmsim.vmm.models import MODELS
from kvmsim.vmm.models.reference import Reference
from memfsd.uapi.errors import NO_RESOURCES, Refused, errno_name

from . import table
from .rig import Result, run, why_not
from .scenarios import SCENARIOS


def vmms(asked: argparse.Namespace) -> int:
    """Exit status."""
    if asked.list:
        return _list(asked.json)
    logging.getLogger("memfsd").addHandler(logging.NullHandler())  # a store that dies is part of a scenario
    results: list[Result] = []
    try:
        for scenario in asked.scenarios:
            for model in asked.models:
                for abi in () if why_not(model, scenario) else asked.abi:
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
        print(table.text(results, asked.models, asked.scenarios))
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
