"""The libraries of the optional extra `cpu`: unicorn, which executes x86-64 code, and iced-x86, which decodes it."""

import errno
import importlib.util

from memfsd.uapi.errors import Refused

_NEEDED = ("unicorn", "iced_x86")


def missing() -> list[str]:
    """What of the extra is not installed."""
    try:
        return [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    except ImportError:
        return list(_NEEDED)


def check() -> None:
    """ENOSYS (Refused) where the extra is not installed."""
    if lacking := missing():
        names = " and ".join(name.replace("_", "-") for name in lacking)
        raise Refused(
            errno.ENOSYS,
            f"machine code needs {names}, an optional extra: pip install 'memfsd[cpu]', or pip install '.[cpu]' here",
        )
