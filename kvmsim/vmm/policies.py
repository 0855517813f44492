"""The policies of user space, by name."""

POLICIES = ("none", "recreate", "punch", "overlay")
"""How exits are handled: not at all, or by which design of conversion."""
UNDER = ("kept", "freed")
"""What becomes of a private page under an ordinary slot, with policy overlay."""
