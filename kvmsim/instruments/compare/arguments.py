"""The arguments of `kvmsim compare`: what --help loads. Designs and workloads are a VM's, and loaded when named."""

import argparse

from memfsd.common.arguments import checked, whole
from memfsd.uapi.limits import MAX_SLOTS
from memfsd.uapi.units import ORDERS, PAGE_SIZE, order_of_page_size, parse_size

_DEFAULT_SLOTS = 1024
_slots = whole(2, MAX_SLOTS, f"is not a number of slots: choose 2 to {MAX_SLOTS}")
_PAGE_SIZES = [PAGE_SIZE << order for order in ORDERS]
_EPILOG = """\
workloads:
  boot        nearly all memory stays private; one pool of 64 MiB is shared once, and a page for each of 16 devices
  ring        a driver's ring of 256 pages: each goes to shared for one request and back, four times around
  misbehave   every second page is shared until the cap on slots (--max-slots) stops it; as many without slots
  page        no design: the first touch of private pages, of 4K and 2M, their moves to another node, their way to the
              swap file and back, each with memory encryption and without

designs:
  recreate, punch, overlay/kept, overlay/freed   the thread's, on a mount with abi=thread
  attributes    Linux's guest_memfd and memory attributes of the VM, on one with abi=gmem-6.18 or gmem-7.2
  inplace       attributes in the file, on one with abi=gmem-inplace
A guest_memfd has pages of 4K only.

Without DIRECTORY a memfsd is mounted for each ABI, for the time of the comparison.
exit status: 0 measured, 1 something could not be measured, 2 usage
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run the same guests over all designs of conversion and page sizes; print what each costs."
    parser.epilog = _EPILOG
    parser.add_argument(
        "directory",
        nargs="?",
        metavar="DIRECTORY",
        help="on a memfsd mount, pool of 2 GiB or more; with split=on parts of large pages are given back; nodes=2 and "
        "swap=FILE for all of workload page",
    )
    parser.add_argument("--workloads", type=_workloads, metavar="W[,W]", help="default: all")
    parser.add_argument("--designs", type=_designs, metavar="D[,D]", help="default: all that DIRECTORY has")
    parser.add_argument("--page-sizes", type=_page_sizes, default=_PAGE_SIZES, metavar="P[,P]", help="4K,2M,1G")
    parser.add_argument(
        "--max-slots", type=_slots, default=_DEFAULT_SLOTS, metavar="N", help=f"cap (default {_DEFAULT_SLOTS})"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--plot", metavar="FILE.png", help="draw slots and cost of the misbehaving guest")


def _words(text_: str, known: dict[str, object]) -> list[object]:
    found = []
    for word in text_.split(","):
        if word not in known:
            raise argparse.ArgumentTypeError(f"'{word}' does not exist: choose from {', '.join(known)}")
        found.append(known[word])
    return found


def _workloads(text_: str) -> list[object]:
    from .workloads import COSTS, WORKLOADS

    return _words(text_, {name: name for name in (*WORKLOADS, COSTS)})


def _designs(text_: str) -> list[object]:
    from .rig import DESIGNS

    known: dict[str, object] = {str(design): design for design in DESIGNS}
    return _words(text_, known)


@checked
def _page_sizes(text_: str) -> list[int]:
    return [PAGE_SIZE << order_of_page_size(parse_size(word)) for word in text_.split(",")]
