"""A model of one's own, from a file of Python: `kvmsim vmms --model FILE`."""

import inspect
import sys
import traceback
import types
from pathlib import Path

from kvmsim.vmm.models import MODELS, Facts, Model
from memfsd.uapi.units import format_size

_MAX_BYTES = 1 << 20
_SHIPPED = frozenset(model.name for model in MODELS)


class ModelError(Exception):
    """The file has no model that can be run, or its code has failed; in one line."""


def load(path: str) -> list[type[Model]]:
    """The subclasses of Model that the file defines, in its order, each with a name and facts. ModelError."""
    text = _read(path)
    module = types.ModuleType(f"_vmms_model_{Path(path).stem}")
    module.__file__ = path
    sys.modules[module.__name__] = module
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except SyntaxError as error:
        raise ModelError(f"{path}:{error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        raise ModelError(why(error, path)) from error
    found = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == module.__name__]
    kinds = [kind for kind in found if issubclass(kind, Model) and not kind.__name__.startswith("_")]
    if not kinds:
        raise ModelError(f"{path} defines no subclass of kvmsim.vmm.models.Model: docs/examples/vmm_model.py is one")
    for kind in kinds:
        _complete(kind, path)
    return kinds


def file_of(model: type[Model]) -> str:
    """Where it has been loaded from."""
    return sys.modules[model.__module__].__file__ or ""


def why(error: BaseException, path: str) -> str:
    """Where in the file it happened, and what."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f"{path}:{frames[-1].lineno}" if frames else path
    return f"{where}: {type(error).__name__}: {error}".split("\n")[0]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
    if len(text) > _MAX_BYTES:
        raise ModelError(f"{path} is larger than {format_size(_MAX_BYTES)}: that is no model")
    return text


def _complete(kind: type[Model], path: str) -> None:
    if missing := sorted(kind.__abstractmethods__):
        raise ModelError(f"{path}: class {kind.__name__} has no {'() and no '.join(missing)}()")
    name = vars(kind).get("name")
    if not isinstance(name, str) or not name or name in _SHIPPED:
        raise ModelError(f"{path}: class {kind.__name__} needs a name that no model here has: name = 'my-vmm'")
    if not isinstance(getattr(kind, "facts", None), Facts):
        kind.facts = Facts(path, (), (kind.__doc__ or "no facts given").strip().split("\n")[0])
