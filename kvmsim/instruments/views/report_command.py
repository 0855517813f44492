"""`kvmsim report`, and what `kvmsim run --report` does: journals to one page."""

import argparse
import contextlib
import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from kvmsim.instruments.journal.reader import NotAJournal
from kvmsim.instruments.outputfile import OutputFile
from memfsd.common.quote import printable, quoted
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.units import format_size

from .history import History, history, rows
from .page import Fact, Page, Section, page_file, write_page

_EPILOG = """\
The page needs no network: send it by mail. It shows slots over guest physical addresses, memory over time with what
is held twice, each invalidation with its parts, exits, data destroyed, and warnings. With the journals of both sides
(memfsd --journal, kvmsim --journal) all parts are known; with one, those of that side. A journal that a crash tore is
shown as far as it goes, with a warning.

examples:
  kvmsim run boot.kvm --report run.html
  kvmsim report store.journal vm.journal -o run.html

The page may come in the place of an older one, and of no other file.

exit status: 0 written, 1 it cannot be written, 2 usage, or a file is no journal
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "One HTML page of what journals recorded."
    parser.epilog = _EPILOG
    parser.add_argument("files", nargs="+", metavar="JOURNAL", help="of memfsd and kvmsim, of one run")
    parser.add_argument(
        "-o", "--output", default="report.html", metavar="FILE.html", help="default report.html; - is stdout"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object: the page, and what is on top of it")


def command(asked: argparse.Namespace) -> int:
    try:
        page = page_file(asked.output, asked.files, stdout="text")
        if asked.json and page.is_stdout:
            raise Refused(errno.EINVAL, "--json prints on standard output, where the page goes: choose -o FILE")
        found = write_report(asked.files, page)
    except NotAJournal as error:
        return _say(str(error), 2)
    except Refused as refused:
        return _say(f"{refused.reason} ({errno_name(refused.errno)})", 1)
    except OSError as error:
        if error.filename is None:
            raise  # of standard output: the command line knows what to do
        return _say(f"{quoted(asked.output)}: {error.strerror}", 1)
    if asked.json:
        print(json.dumps({"file": asked.output, **_facts(found)}))
    elif not page.is_stdout:
        print(quoted(asked.output))
    return 0


def reported(asked: argparse.Namespace, run: Callable[[], int]) -> int:
    """Run with a journal, the asked one or one for the time, and write the page when it has ended, however it went."""
    try:
        page = page_file(asked.report, (asked.script, asked.journal, asked.trace))
    except Refused as refused:
        return _say(f"{refused.reason} ({errno_name(refused.errno)})", 2)
    title = "standard input" if asked.script == "-" else os.path.basename(asked.script)
    with contextlib.ExitStack() as ending:
        if asked.journal is None:
            asked.journal = str(Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="kvmsim-"))) / "journal")
        status = run()
        try:
            write_report([asked.journal], page, title)
        except NotAJournal as error:  # the run could not begin, and has said why
            return status or _say(str(error), 2)
        except Refused as refused:
            return _say(f"{refused.reason} ({errno_name(refused.errno)})", 2)
        except OSError as error:
            return _say(f"{quoted(asked.report)}: {error.strerror}", 2)
    return status


def _say(what: str, status: int) -> int:
    print(f"kvmsim: {printable(what)}", file=sys.stderr)
    return status


def write_report(paths: list[str], to: OutputFile, title: str = "") -> History:
    """What the page is about. NotAJournal; OSError, Refused of the page."""
    found = history(paths)
    write_page(_page(found, title or ", ".join(os.path.basename(path) for path in paths)), to)
    return found


def _facts(found: History) -> dict[str, object]:
    """What `_page` has at the top."""
    return {
        "processes": [{"side": process.side, "pid": process.pid} for process in found.processes],
        "vms": _vms(found),
        "seconds": found.seconds,
        "records": found.record_count,
        "invalidations": len(found.invalidations),
        "converted_pages": sum(found.converted.values()),
        "exits": sum(sum(exits.values()) for exits in found.exits.values()),
        "doubled_bytes_peak": _doubled(found),
        "destroyed_bytes": found.destroyed_bytes,
        "memory_errors": len(found.errors),
        "warnings": found.warnings,
    }


def _vms(found: History) -> list[str]:
    return sorted({band.vm for band in found.bands} | set(found.exits))


def _doubled(found: History) -> int:
    return int(max((value for _, value in found.curves.get("held twice", [])), default=0))


def _page(found: History, title: str) -> Page:
    vms = _vms(found)
    who = ", ".join(f"{process.side} {process.pid}" for process in found.processes)
    page = Page(f"kvmsim: {title}", f"{who}; VMs: {', '.join(map(quoted, vms)) or 'none'}", found.warnings)
    doubled = _doubled(found)
    lasted = f"{found.seconds:.3f} s" if found.seconds >= 0.1 else f"{found.seconds * 1000:.1f} ms"
    page.facts = [
        Fact("between first and last record", lasted),
        Fact("records", str(found.record_count)),
        Fact("invalidations", str(len(found.invalidations))),
        Fact("pages converted", str(sum(found.converted.values()))),
        Fact("exits to user space", str(sum(sum(exits.values()) for exits in found.exits.values()))),
        Fact("held twice, at the worst", format_size(doubled), bad=doubled > 0),
        Fact("private data destroyed", format_size(found.destroyed_bytes), bad=found.destroyed_bytes > 0),
        Fact("exits nobody repaired", str(len(found.errors)), bad=bool(found.errors)),
    ]
    page.sections = [section for section in _sections(found) if section.svg or section.rows]
    return page


def _sections(found: History) -> list[Section]:
    from . import charts

    exits = [
        (quoted(vm), reason, str(count))
        for vm, counts in sorted(found.exits.items())
        for reason, count in counts.most_common()
    ]
    table = [
        (one["at"], one["vm"], str(one["ino"]), one["range"], one["reason"], *(_us(one[f"{p}_us"]) for p in _PARTS))
        for one in rows(found)
    ]
    destroyed = [(f"{at:.6f}", str(pages), format_size(pages * 4096)) for at, pages in found.destroyed[:200]]
    return [
        Section("Slots", "What slots show of guest memory, over time.", charts.slots(found) if found.bands else ""),
        Section(
            "Page states and memory",
            "Private pages granted, mapped and freed; at conversions, shared memory and what is held twice.",
            charts.memory(found) if found.curves else "",
        ),
        Section(
            "Invalidations",
            "In microseconds: mappings leave the EPT (zap) and TLBs (flush), every vCPU leaves the guest (kick); the"
            " acknowledgement; scrub and free by the store. A dash: there was none, or no journal given here has it.",
            charts.invalidations(found) if found.invalidations else "",
            ("seconds", "VM", "inode", "pages", "reason", "zap", "flush", "kick", "ack", "free"),
            table,
            (1, 4),
        ),
        Section("Exits", "To user space, by VM and reason.", "", ("VM", "reason", "count"), exits, (0, 1)),
        Section("Exits that nobody repaired", "KVM_EXIT_MEMORY_ERROR that stayed.", "", ("seconds", "VM", "what"),
                [(f"{at:.6f}", quoted(vm), what) for at, vm, what in found.errors], (1, 2)),
        Section("Data destroyed", "Contents of private pages that KVM destroyed as it unmapped them.", "",
                ("seconds", "pages", "size"), destroyed, ()),
    ]  # fmt: skip


_PARTS = ("zap", "flush", "kick", "ack", "free")


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
