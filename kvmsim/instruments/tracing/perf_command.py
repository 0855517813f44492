"""kvmsim perf report: exits by reason, as perf-kvm(1)'s `stat report` shows them."""

import argparse
import json
import sys

from memfsd.common.quote import printable

from .exit_times import Times, exit_times
from .reader import Unreadable, happenings

_HELP = """\
exit status: 0 shown, 2 a file cannot be read
"""


def add_arguments(perf: argparse.ArgumentParser) -> None:
    perf.epilog = _HELP
    actions = perf.add_subparsers(dest="action", metavar="ACTION", required=True)
    report = actions.add_parser("report", help="exits by reason: samples, and times from exit to entry", epilog=_HELP)
    report.add_argument("files", nargs="+", metavar="FILE", help="a trace of kvmsim, or the kernel's trace_pipe")
    report.add_argument("-k", "--key", choices=("sample", "time"), default="sample", help="what to sort by")
    report.add_argument("-g", "--guest", default="", metavar="VM", help="only exits of this VM")
    report.add_argument("--vcpu", type=_vcpu, default=-1, metavar="N", help="only exits of this vCPU")
    report.add_argument("--json", action="store_true", help="one JSON object")


def command(asked: argparse.Namespace) -> int:
    try:
        found = exit_times(happenings(asked.files), vm=asked.guest, vcpu=asked.vcpu)
    except Unreadable as error:
        print(f"kvmsim: {printable(str(error))}", file=sys.stderr)
        return 2
    by_sample = asked.key == "sample"
    rows = sorted(found.items(), key=lambda one: (-(one[1].samples if by_sample else one[1].total), one[0]))
    print(json.dumps(_as_json(rows)) if asked.json else _as_text(rows))
    return 0


def _vcpu(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"'{text[:30]}' is no number of a vCPU")
    return int(text)


def _sums(rows: list[tuple[str, Times]]) -> tuple[int, int]:
    return sum(times.samples for _, times in rows), sum(times.total for _, times in rows)


def _as_json(rows: list[tuple[str, Times]]) -> dict[str, object]:
    samples, total = _sums(rows)
    return {
        "samples": samples,
        "time_ns": total,
        "exits": [
            {
                "reason": reason,
                "samples": times.samples,
                "time_ns": times.total,
                "min_ns": times.least,
                "max_ns": times.most,
                "avg_ns": round(times.average),
                "deviation_percent": round(times.deviation_percent, 2),
            }
            for reason, times in rows
        ],
    }


def _as_text(rows: list[tuple[str, Times]]) -> str:
    samples, total = _sums(rows)
    lines = [
        f"{'VM-EXIT':>20}{'Samples':>11}{'Samples%':>10}{'Time%':>10}{'Min Time':>13}{'Max Time':>13}{'Avg time':>16}",
        "",
    ]
    for reason, times in rows:
        lines.append(
            f"{printable(reason):>20}{times.samples:>11}{100 * times.samples / samples:>9.2f}%"
            f"{100 * times.total / (total or 1):>9.2f}%{times.least / 1000:>11.2f}us{times.most / 1000:>11.2f}us"
            f"{times.average / 1000:>14.2f}us ( +- {times.deviation_percent:6.2f}% )"
        )
    return "\n".join([*lines, "", f"Total Samples:{samples}, Total events handled time:{total / 1000:.2f}us."])
