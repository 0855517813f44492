"""The whole table."""

from tests.attack.mappings import MAPPINGS
from tests.attack.paths import IOCTLS, PATHS
from tests.attack.readings import READINGS
from tests.attack.table import Group
from tests.attack.writings import CLONES, SIZES, WRITINGS

GROUPS: tuple[Group, ...] = (
    ("Reading through a handle", READINGS),
    ("Writing through a handle", WRITINGS),
    ("Sharing extents", CLONES),
    ("Mapping", MAPPINGS),
    ("Size and allocation", SIZES),
    ("Other ioctls", IOCTLS),
    ("Without a handle: reopening, executing, mounting, attaching", PATHS),
)
ATTACKS = tuple(attack for _, attacks in GROUPS for attack in attacks)
