"""Shares of a bounded resource: a bound for each user, and a reserve that only root and the mount's owner reach."""

from collections import Counter

ROOT_UID = 0


class Shares:
    """How much each user holds, in whatever unit. Callers lock."""

    def __init__(self, total: int, per_user: int, reserve: int, owner_uid: int) -> None:
        """reserve: of the total, for root and the owner alone, whom per_user does not bind."""
        assert 0 <= reserve < total
        self.total = total
        self.used = 0
        self._per_user, self._reserve = per_user, reserve
        self._privileged = frozenset({ROOT_UID, owner_uid})
        self._held: Counter[int] = Counter()

    def take(self, uid: int, amount: int = 1) -> bool:
        """False, and nothing taken, when that is more than the user may have now."""
        limit = self.total
        if uid not in self._privileged:
            if self._held[uid] + amount > self._per_user:
                return False
            limit -= self._reserve
        if self.used + amount > limit:
            return False
        self._held[uid] += amount
        self.used += amount
        return True

    def give(self, uid: int, amount: int = 1) -> None:
        assert self._held[uid] >= amount
        self._held[uid] -= amount
        self.used -= amount
        if not self._held[uid]:
            del self._held[uid]

    def move(self, uid: int, to: int, amount: int) -> None:
        """Root gives it to another user, whom no bound keeps from getting it."""
        self.give(uid, amount)
        self._held[to] += amount
        self.used += amount

    def held(self, uid: int) -> int:
        return self._held[uid]
