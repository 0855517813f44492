"""The policies of user space, by name."""

import errno

from memfsd.uapi.abi import Abi, Attributes
from memfsd.uapi.errors import Refused

NEEDED = {
    "none": None,
    "recreate": Attributes.NONE,
    "punch": Attributes.NONE,
    "overlay": Attributes.NONE,
    "attributes": Attributes.VM,
    "inplace": Attributes.FILE,
}
"""Where it must be kept which pages are private, for a policy to convert any."""
POLICIES = tuple(NEEDED)
"""How exits are handled: not at all, or by which design of conversion."""
UNDER = ("kept", "freed")
"""What becomes of a private page under an ordinary slot, with policy overlay."""

_HOW = {
    Attributes.NONE: "converts by slots, on abi thread alone",
    Attributes.VM: "sets memory attributes of the VM, on abi gmem-6.18 and gmem-7.2 alone",
    Attributes.FILE: "sets attributes of the file, on abi gmem-inplace alone",
}


def check_policy(name: str, abi: Abi) -> None:
    """EINVAL: a VM of this ABI cannot convert that way."""
    needed = NEEDED[name]
    if needed is not None and needed is not abi.attributes:
        fits = next(policy for policy in reversed(POLICIES) if NEEDED[policy] is abi.attributes)
        raise Refused(errno.EINVAL, f"policy {name} {_HOW[needed]}: on abi {abi.name} choose {fits}")
