"""The command line of `kvmsim vmms`."""

import argparse
import errno
import json
import logging
import sys
from collections.abc import Sequence

from kvmsim.vmm.models import MODELS, Model
from kvmsim.vmm.models.reference import Reference
from memfsd.uapi.abi import Abi
from memfsd.uapi.errors import NO_RESOURCES, Refused, errno_name

from . import table
from .model_file import ModelError, file_of, why
from .rig import Result, run, why_not
from .scenarios import SCENARIOS, Scenario


def vmms(asked: argparse.Namespace) -> int:
    """Exit status."""
    own: list[type[Model]] = asked.model
    models: Sequence[type[Model]] = [*(asked.models or (() if own else MODELS)), *own]
    if len({model.name for model in own}) != len(own):
        print("kvmsim: two models of --model have one name: name them apart", file=sys.stderr)
        return 2
    if asked.list:
        return _list([*MODELS, *own], asked.json)
    logging.getLogger("memfsd").addHandler(logging.NullHandler())  # a store that dies is part of a scenario
    results: list[Result] = []
    try:
        for scenario in asked.scenarios:
            for model in models:
                for abi in () if why_not(model, scenario) else asked.abi:
                    _say(f"\r\033[Kkvmsim: {scenario.name}, {model.name}, {abi.name}")
                    results.append(_run(model, scenario, abi))
                    if asked.json:
                        print(json.dumps(table.facts(results[-1])), flush=True)
    except ModelError as error:
        _say("\r\033[K")
        print(f"kvmsim: {error}", file=sys.stderr)
        return 1
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
        print(table.markdown(results, models, asked.scenarios), end="")
    elif not asked.json:
        print(table.text(results, models, asked.scenarios))
    judged = {Reference.name, *(model.name for model in own)}
    return int(any(result.verdict != "ok" for result in results if result.model in judged))


def _run(model: type[Model], scenario: Scenario, abi: Abi) -> Result:
    """ModelError: the code of a model of one's own has failed."""
    try:
        return run(model, scenario, abi)
    except (Refused, OSError):
        raise
    except Exception as error:
        if model in MODELS:
            raise
        raise ModelError(f"{why(error, file_of(model))} (in {scenario.name}, {abi.name})") from error


def _say(progress: str) -> None:
    if sys.stderr.isatty():
        print(progress, end="", file=sys.stderr, flush=True)


def _list(models: Sequence[type[Model]], as_json: bool) -> int:
    rows = [{"model": model.name, "about": f"{model.facts.version}: {model.facts.order}"} for model in models]
    rows += [{"scenario": scenario.name, "about": scenario.about} for scenario in SCENARIOS]
    for row in rows:
        name, about = row.values()
        print(json.dumps(row) if as_json else f"{name:24} {about}")
    return 0
