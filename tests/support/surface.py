"""The public surface of both packages: what a program may import and count on, a line a name.

`python -m tests.support.surface` writes it to tests/public_surface.txt; a test compares. A line that changes is a
change of the interface: it needs a reason, and a note in the document that promises the name.
"""

import ast
import enum
import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from pathlib import Path

FILE = Path(__file__).parents[1] / "public_surface.txt"
MODULES = (
    "memfsd",
    "memfsd.uapi.errors",
    "memfsd.uapi.limits",
    "memfsd.uapi.messages",
    "memfsd.uapi.names",
    "memfsd.uapi.proof",
    "memfsd.uapi.seals",
    "memfsd.uapi.units",
    "kvmsim",
    "kvmsim.cpu.accesses",
    "kvmsim.cpu.guestlib",
    "kvmsim.kvm.exits",
    "kvmsim.kvm.hypercalls",
    "kvmsim.kvm.kvm",
    "kvmsim.kvm.kvm_run",
    "kvmsim.kvm.vcpu",
    "kvmsim.machine",
    "kvmsim.vmm.models",
    "kvmsim.vmm.policies",
    "kvmsim.vmm.vmm",
)
"""memfsd: the store's contract. kvmsim: what a program makes a VM of."""


def surface() -> str:
    return "".join(f"{line}\n" for name in MODULES for line in _module(importlib.import_module(name)))


def _module(module: types.ModuleType) -> Iterator[str]:
    for name in getattr(module, "__all__", None) or _defined(module):
        yield from _value(f"{module.__name__}.{name}", getattr(module, name))


def _defined(module: types.ModuleType) -> list[str]:
    """Public names that the module's own text makes, not what it imports."""
    names: set[str] = set()
    body = ast.parse(inspect.getsource(module)).body
    at_run_time = [node for branch in body if isinstance(branch, ast.If) for node in branch.orelse]  # not TYPE_CHECKING
    for node in [*body, *at_run_time]:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {found.id for target in targets for found in ast.walk(target) if isinstance(found, ast.Name)}
    return sorted(name for name in names if not name.startswith("_"))


def _value(name: str, value: object) -> Iterator[str]:
    if inspect.isclass(value):
        yield from _class(name, value)
    elif inspect.isfunction(value):
        yield f"{name}{_parameters(value)}"
    elif isinstance(value, bool | int | float | str | bytes):
        yield f"{name} = {value!r}"
    else:
        yield name


def _class(name: str, cls: type) -> Iterator[str]:
    if issubclass(cls, enum.Enum):
        yield from (f"{name}.{member.name} = {member.value!r}" for member in cls)
        return
    is_bare = cls.__init__ is object.__init__ and not hasattr(cls, "_fields")
    yield name if is_bare else f"{name}{_parameters(cls)}"
    for attribute, value in sorted(vars(cls).items()):
        if attribute.startswith("_"):
            continue
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(function):
            yield f"{name}.{attribute}{_parameters(function)}"
        elif isinstance(value, property):
            yield f"{name}.{attribute}"


def _parameters(function: Callable[..., object]) -> str:
    """Names, kinds, and whether there is a default; mypy looks after the types."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return ""
    bare = [
        parameter.replace(annotation=parameter.empty, default=parameter.empty if _needed(parameter) else _DEFAULT)
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def _needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty


class _Default:
    def __repr__(self) -> str:
        return "..."


_DEFAULT = _Default()


if __name__ == "__main__":
    FILE.write_text(surface())
