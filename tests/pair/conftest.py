"""Both sides in one process: memfsd's sessions and kvmsim's machines over socketpairs."""

from tests.support.both_sides import resizable_store as resizable_store
from tests.support.both_sides import small_store as small_store
from tests.support.both_sides import store as store
