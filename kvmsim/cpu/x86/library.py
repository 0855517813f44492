"""The libraries of the optional extra `cpu`: unicorn, which executes x86-64 code, and iced-x86, which decodes it."""

import errno
import importlib.util

from memfsd.uapi.errors import Refused

_NEEDED = ("unicorn", "iced_x86")


def check() -> None:
    """ENOSYS (Refused) where the extra is not installed."""
    try:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    except ImportError:
        missing = list(_NEEDED)
    if missing:
        names = " and ".join(name.replace("_", "-") for name in missing)
        raise Refused(
            errno.ENOSYS,
            f"machine code needs {names}, an optional extra: pip install 'memfsd[cpu]', or pip install '.[cpu]' here",
        )
