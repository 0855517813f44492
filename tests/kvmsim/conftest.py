"""VMs with and without a store."""

from tests.support.both_sides import encrypted as encrypted
from tests.support.both_sides import small_store as small_store
from tests.support.both_sides import store as store
from tests.support.both_sides import vm as vm
