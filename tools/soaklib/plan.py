"""What the host asks of a VMM: the argument of its process."""

import json
from dataclasses import asdict, dataclass

from soaklib.kvm import PAGE_SHIFT

_SMALL_BLOCK_PAGES = 16
"""A vCPU owns whole blocks, and converts inside them: of 4 KiB frames so many, of larger ones one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the host asks of a VMM."""

    name: str
    path: str
    ledger: str
    file: int
    size_bytes: int
    page_bytes: int
    policy: str
    under: str
    vcpu_count: int
    encrypted: bool
    seed: str
    runs_code: bool = False
    """Its vCPUs run guest programs (soaklib.programs)."""

    @property
    def page_count(self) -> int:
        return self.size_bytes >> PAGE_SHIFT

    @property
    def block_pages(self) -> int:
        return max(_SMALL_BLOCK_PAGES, self.page_bytes >> PAGE_SHIFT)

    @property
    def keeps_private(self) -> bool:
        """A conversion to shared leaves the private page as it was, and needs no punch."""
        return self.policy == "overlay" and self.under == "kept"


def plan_as_argument(plan: Plan) -> str:
    return json.dumps(asdict(plan))
