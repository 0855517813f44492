"""What an op of a recorded case came to.

{"result": ...}, {"errno": name}, {"signal", "si_code"}, {"skipped": why} or {"hangs": true}
"""

import errno
from collections.abc import Callable
from typing import Any

from .fault import Faulted

Outcome = dict[str, Any]

_NAMES = {errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EAGAIN: "EAGAIN", errno.EDEADLK: "EDEADLK"}
"""Errnos with two names."""


class Hangs(Exception):
    """The op would not end before its process is killed. It is not made."""


def name_of(number: int) -> str:
    return _NAMES.get(number) or errno.errorcode.get(number, str(number))


def outcome_of(do: Callable[[dict[str, Any]], object], args: dict[str, Any]) -> Outcome:
    """Handles that there are not are skipped, as in the recording."""
    try:
        return {"result": do(args)}
    except KeyError as error:
        return {"skipped": f"no handle {error}"}
    except Faulted as fault:
        return {"signal": fault.signal.name, "si_code": fault.code}
    except Hangs:
        return {"hangs": True}
    except OSError as error:
        if error.errno is None:
            raise
        return {"errno": name_of(error.errno)}


def same(recorded: Any, found: Any) -> bool:
    """ "*" in the recording stands for whatever differs from run to run."""
    if recorded == "*":
        return True
    if isinstance(recorded, dict) and isinstance(found, dict):
        return recorded.keys() == found.keys() and all(same(recorded[key], found[key]) for key in recorded)
    if isinstance(recorded, list) and isinstance(found, list):
        return len(recorded) == len(found) and all(map(same, recorded, found))
    return bool(recorded == found)
