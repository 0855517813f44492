"""VMs with and without a store."""

from tests.support.both_sides import resizable_store as resizable_store
from tests.support.both_sides import store as store
from tests.support.both_sides import vm as vm
