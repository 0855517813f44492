"""A store with its sessions, and VMs beside it, in one process."""

from tests.support.both_sides import encrypted as encrypted
from tests.support.both_sides import store as store
