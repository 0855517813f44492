"""The results: for people, for programs, and as docs/vmms.md."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from kvmsim.vmm.models import Model
from memfsd.uapi.units import format_size

from .judge import Finding
from .rig import Result, why_not
from .scenarios import Scenario, Via

LEGEND = """\
ok: everything is as the guest was told; fails: it is not, or a request of the guest ended the VM; -: the VMM does not
convert, or cannot meet this. TWICE is memory held by both sides in all of the VM, LOST pages of the guest's data that
nobody converted."""

_INTRODUCTION = """\
# How VMMs convert memory

<!-- Made by `kvmsim vmms --markdown`: change kvmsim/vmm/models and kvmsim/instruments/vmms, not this file. -->

`kvmsim vmms` runs a model of the conversion code of each VMM through every scenario, each on a VM and a store of its
own, and measures what is there afterwards. A model follows the order of that VMM's calls, as its source has it; it is
not the VMM, and what the VMM does elsewhere is not in it. All of it was measured by the run that made this file, on the
thread's ABI and on that of Linux's guest_memfd ([what stands for what](decisions/0052-models-of-vmms.md)); where both
came to the same, there is one row.

A row is judged by what the guest was told. "done": all of the range is in the wanted alias, and the other side holds
nothing of it. Anything else: nothing has changed. A finding names the call after which it is so, and stays so.

A model of another VMM is a class of some 30 lines: `kvmsim vmms --model FILE` runs it, and exits with status 1 if it
fails a scenario; with `--models qemu` beside a shipped one. [examples/vmm_model.py](examples/vmm_model.py) is one, and
[api.md](api.md#models-of-vmms) says what it is made of.

Guest memory is three regions of 16 pages, each with its own private file and shared memory: two touch, a hole of 8
pages lies before the third. The guest has written to every page. A range that is to be private has been converted to
shared before, and written to.
"""


def joined(results: Sequence[Result]) -> list[Result]:
    """Rows that differ in their ABI alone are one, whose abi names all of them."""
    rows: list[Result] = []
    for result in results:
        for index, row in enumerate(rows):
            if replace(row, abi=result.abi) == result:
                rows[index] = replace(row, abi=f"{row.abi}, {result.abi}")
                break
        else:
            rows.append(result)
    return rows


def text(results: Sequence[Result], models: Sequence[type[Model]], scenarios: Sequence[Scenario]) -> str:
    """By scenario; at the end what each model came to."""
    lines, rows = list[str](), joined(results)
    for scenario in scenarios:
        lines.append(f"{scenario.name}: {scenario.about}")
        lines += [f"  {model.name:17} -      {why}" for model in models if (why := why_not(model, scenario))]
        for result in rows:
            if result.scenario == scenario.name:
                lines += _of(result)
        lines.append("")
    return "\n".join([*lines, *_sums(results), "", LEGEND])


def _of(result: Result) -> list[str]:
    twice, lost = format_size(result.doubled_bytes), result.lost_pages
    seen = f"attribute {result.attribute} | private copy {result.private_copy} | shared copy {result.shared_copy}"
    return [
        f"  {result.model:17} {result.verdict:6} {result.reply} ({result.abi})",
        f"      guest: {result.guest_view} | {seen} | TWICE {twice} | LOST {lost}",
        *(f"      {note}" for note in result.notes),
        *(f"      - {in_words(finding)}" for finding in result.findings),
    ]


def _sums(results: Sequence[Result]) -> list[str]:
    lines = []
    for model, abi in dict.fromkeys((result.model, result.abi) for result in results):
        verdicts = [result.verdict for result in results if (result.model, result.abi) == (model, abi)]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("ok", "fails", "-"))
        lines.append(f"{model:17} {abi:10} {counts}")
    return lines


def in_words(finding: Finding) -> str:
    """ "4 pages: shared copy left beside the private one, after discard 0x104000+0x4000"."""
    pages = {0: "", 1: "1 page: "}.get(finding.page_count, f"{finding.page_count} pages: ")
    return f"{pages}{finding.kind}, {f'after {finding.after}' if finding.after else 'before any call'}"


def facts(result: Result) -> dict[str, Any]:
    """For JSON: memory in bytes."""
    shown = asdict(result)
    shown["reply"] = {"outcome": result.reply.outcome, "why": result.reply.why}
    shown["findings"] = [finding._asdict() for finding in result.findings]
    return shown


def markdown(results: Sequence[Result], models: Sequence[type[Model]], scenarios: Sequence[Scenario]) -> str:
    """docs/vmms.md: models, what each came to, and every row."""
    names = [model.name for model in models]
    results = sorted(joined(results), key=lambda row: names.index(row.model))
    parts = [
        _INTRODUCTION,
        "## The models\n",
        *map(_model, models),
        "## Verdicts\n",
        _verdicts(results, models, scenarios),
    ]
    parts += ["", LEGEND.replace("\n", " "), "", "## What fails\n"]
    parts += [_failures(results, model) for model in models]
    parts += ["## Every scenario\n", *(_rows(results, scenario) for scenario in scenarios)]
    return "\n".join(parts)


def _model(model: type[Model]) -> str:
    facts = model.facts
    sources = "; ".join(f"`{source}`" for source in facts.sources)
    return f"**{model.name}**, {facts.version} ({sources}). {facts.order[0].upper()}{facts.order[1:]}.\n"


def _verdicts(results: Sequence[Result], models: Sequence[type[Model]], scenarios: Sequence[Scenario]) -> str:
    verdicts: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        verdicts[result.model, result.scenario].append(result)
    lines = [_row(["scenario", *(model.name for model in models)]), _row(["---"] * (len(models) + 1))]
    lines += [
        _row([scenario.name, *(_verdict(verdicts[model.name, scenario.name], model, scenario) for model in models)])
        for scenario in scenarios
    ]
    return "\n".join(lines)


def _verdict(rows: Sequence[Result], model: type[Model], scenario: Scenario) -> str:
    verdicts = {row.verdict for row in rows}
    if len(verdicts) > 1:
        return "; ".join(f"{row.verdict} on {row.abi}" for row in rows)
    return verdicts.pop() if verdicts else why_not(model, scenario)


def _failures(results: Sequence[Result], model: type[Model]) -> str:
    failed = [result for result in results if result.model == model.name and result.verdict == "fails"]
    if not failed:
        return f"### {model.name}\n\nNothing.\n"
    lines = dict.fromkeys(
        f"* `{row.scenario}`: {'; '.join([*map(in_words, row.findings), *row.notes])}." for row in failed
    )
    return "\n".join([f"### {model.name}\n", *lines, ""])


def _rows(results: Sequence[Result], scenario: Scenario) -> str:
    via = "" if scenario.via is Via.HYPERCALL else f" By {scenario.via.value}."
    lines = [f"### {scenario.name}\n\n{scenario.about[0].upper()}{scenario.about[1:]}.{via}\n"]
    columns = ["model", "", "abi", "the guest was told", "the guest sees", "attribute", "private copy", "shared copy"]
    lines += [_row([*columns, "held twice", "lost"]), _row(["---"] * 10)]
    for result in results:
        if result.scenario == scenario.name:
            seen = [result.guest_view, result.attribute, result.private_copy, result.shared_copy]
            told = "; ".join([str(result.reply), *result.notes])
            sizes = [format_size(result.doubled_bytes), str(result.lost_pages)]
            lines.append(_row([result.model, result.verdict, result.abi, told, *seen, *sizes]))
    return "\n".join([*lines, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
