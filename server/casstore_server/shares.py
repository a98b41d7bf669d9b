"""Fairness: no principal takes more than half of what waits for any lane.

Who asks is known only behind the authentication, and what is done before it is short and counted for nobody.  Everyone who
reads the log without a token is one principal, :data:`ANYONE`.

Threads: event loop only.
"""

from __future__ import annotations

import random
from collections import Counter
from contextvars import ContextVar
from typing import Final

from casstore.errors import RateLimited

ANYONE: Final = ""
"""All who need no token."""
ASKING: Final[ContextVar[str | None]] = ContextVar("casstore.asking", default=None)
"""The principal of the request that is being answered; None until it is known."""
RETRY_AFTER_MAX_S: Final = 3
SHARE: Final = 0.5


class Shares:
    """What each principal has waiting in one queue.

    Args:
        limit: how many jobs the queue takes of all together.
        what: what waits, for the error.
        share: how much of it one principal may have.
    """

    def __init__(self, limit: int, what: str, share: float = SHARE) -> None:
        # LIMIT: half by default, so that one that floods the server leaves as much to all others.
        self._each = max(1, int(limit * share))
        self._what = what
        self._held: Counter[str] = Counter()
        self.refused = 0

    def take(self) -> str | None:
        """Count one job of whoever is asking; what is returned is to be given back.

        Raises:
            RateLimited: that one has its half already; the job was not taken.
        """
        principal = ASKING.get()
        if principal is None:
            return None
        if self._held[principal] >= self._each:
            self.refused += 1
            who = principal or "the public"
            raise RateLimited(
                f"{who} has {self._each} {self._what} waiting already, all that one may have: nothing was done, try again",
                retry_after_s=random.randint(1, RETRY_AFTER_MAX_S),  # noqa: S311  (spreads load, no secret)
            )
        self._held[principal] += 1
        return principal

    def give_back(self, principal: str | None) -> None:
        """A job has ended."""
        if principal is not None:
            self._held[principal] -= 1
            if not self._held[principal]:
                del self._held[principal]
