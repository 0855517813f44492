"""For all tests: no example of hypothesis has a deadline, since a test says nothing about time."""

from hypothesis import settings

settings.register_profile("no deadline", settings.default, deadline=None)
settings.load_profile("no deadline")
