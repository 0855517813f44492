"""A store without FUSE and sockets, whose use cases are watched: they call the core with Service.lock held."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest

from memfsd.core.files.handles import HandleTable
from memfsd.core.files.inodes import InodeTable
from memfsd.core.files.namespace import Namespace
from memfsd.core.gmem import GuestMemory
from memfsd.core.memory.frames import FramePool
from memfsd.core.service import Service
from tests.support.core_store import CoreStore

GUARDED = (Service, GuestMemory, Namespace, HandleTable, InodeTable, FramePool)


@pytest.fixture
def store() -> CoreStore:
    """64 frames, default options."""
    return CoreStore()


@pytest.fixture(autouse=True)
def use_cases_hold_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test with threads is sure to meet the moment in which a lock is missing. Here one thread is enough."""
    services: list[Service] = []

    def guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def checked(part: Any, *arguments: Any, **named: Any) -> Any:
            if sys._getframe(1).f_globals["__name__"].startswith("memfsd.store."):
                assert any(service.lock.locked() for service in services), f"{name} without Service.lock"
            return method(part, *arguments, **named)

        return checked

    def made(service: Service, *arguments: Any, **named: Any) -> None:
        services.append(service)
        construct(service, *arguments, **named)

    construct = Service.__init__
    monkeypatch.setattr(Service, "__init__", made)
    for part in GUARDED:
        for name, method in list(vars(part).items()):
            if inspect.isfunction(method) and not name.startswith("_"):
                monkeypatch.setattr(part, name, guarded(f"{part.__name__}.{name}", method))
    for module in [module for name, module in sys.modules.items() if name.startswith("memfsd.store.")]:
        for name, function in list(vars(module).items()):
            of_core = inspect.isfunction(function) and function.__module__.startswith("memfsd.core.")
            if of_core and next(iter(inspect.signature(function).parameters), "") == "service":
                monkeypatch.setattr(module, name, guarded(name, function))
