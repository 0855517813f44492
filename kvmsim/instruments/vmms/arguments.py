"""The arguments of `kvmsim vmms`: what --help loads. Nothing of it is a VM's."""

import argparse
from collections.abc import Sequence
from typing import Protocol, TypeVar

from kvmsim.vmm.models import MODELS, Model
from memfsd.uapi.abi import GMEM_6_18, GMEM_INPLACE, THREAD, Abi

from .model_file import ModelError, load
from .scenarios import ABIS_THAT_CONVERT, SCENARIOS

_ALL = "default: all; --list names them"
_EPILOG = """\
It needs no mount and no root: store and VMs are in this process, and each row has its own.
docs/vmms.md is what --markdown prints, and says what is judged.
exit status: 0 measured, and the reference and your own models passed all; 1 not; 2 usage
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run models of real VMMs' conversion code through scenarios; print what each leaves behind."
    parser.epilog = _EPILOG
    models, scenarios = (lambda words: _named(words, MODELS)), (lambda words: _named(words, SCENARIOS))
    abis = ", ".join(abi.name for abi in ABIS_THAT_CONVERT)
    parser.add_argument("--models", type=models, metavar="M[,M]", help=_ALL)
    parser.add_argument(
        "--model",
        type=_models_of,
        action="extend",
        default=[],
        metavar="FILE",
        help="also one of your own, in Python (docs/examples/vmm_model.py); alone, unless --models names others",
    )
    parser.add_argument("--scenarios", type=scenarios, default=SCENARIOS, metavar="S[,S]", help=_ALL)
    parser.add_argument(
        "--abi",
        type=_abis,
        default=(THREAD, GMEM_6_18),
        metavar="A[,A]",
        help=f"of {abis} (default thread,gmem-6.18)",
    )
    parser.add_argument("--list", action="store_true", help="models and scenarios, and what they are")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON object a row")
    how.add_argument("--markdown", action="store_true", help="as docs/vmms.md")


def _abis(words: str) -> list[Abi]:
    if GMEM_INPLACE.name in words.split(","):
        raise argparse.ArgumentTypeError(f"{GMEM_INPLACE.name} keeps one copy of a page, which no VMM here converts")
    return _named(words, ABIS_THAT_CONVERT)


def _models_of(path: str) -> list[type[Model]]:
    try:
        return load(path)
    except ModelError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
