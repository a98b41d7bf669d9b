"""The turnstile: when thousands ask in one instant, each turn of the loop lets in a few of them.

Without it all of them would be worked on side by side: the queue of the readers overflows, most are refused, and until the last
refusal is written nothing else gets a turn, a supervisor's ``/livez`` and a rollback least of all.  Here they wait in order, at
the price of a small object each, and are let in as fast as the readers take them; who would wait too long is told to come again.

It holds no places: what has been let in is bounded by the lanes, and a slow client is in nobody's way.

Threads: event loop only.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final

from casstore.errors import Overloaded

LET_IN_AT_ONCE: Final = 16  # some 5 ms of one turn of the loop
LOOK_AGAIN_S: Final = 0.002  # while there is no room behind it
RETRY_AFTER_MAX_S: Final = 5


class Turnstile:
    """In front of every request but ``/livez``.

    Args:
        has_room: whether what lies behind it takes more.
        wait_max_s: who has waited so long is refused, in seconds.
    """

    def __init__(self, has_room: Callable[[], bool], wait_max_s: float) -> None:
        self._has_room = has_room
        self._wait_max_s = wait_max_s
        self._urgent: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._let_in = 0
        self._turning = False
        self.refused = 0

    @property
    def depth(self) -> int:
        """How many wait."""
        return len(self._urgent) + len(self._waiting)

    async def enter(self, *, urgent: bool) -> None:
        """Wait for one's turn.

        Args:
            urgent: before all who are not.

        Raises:
            Overloaded: it did not come in time; nothing was done.
        """
        loop = asyncio.get_running_loop()
        queue = self._urgent if urgent else self._waiting
        if self._let_in < LET_IN_AT_ONCE and not queue and self._has_room():
            self._let_in += 1
            self._turn_soon(loop)
            return
        turn: asyncio.Future[None] = loop.create_future()
        queue.append((loop.time(), turn))
        self._turn_soon(loop)
        await turn

    def _turn_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._turning:
            self._turning = True
            loop.call_soon(self._turn)

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        self._turning, self._let_in = False, 0
        limit = loop.time() - self._wait_max_s
        for queue in (self._urgent, self._waiting):
            while queue and self._let_in < LET_IN_AT_ONCE:
                since, turn = queue[0]
                if since >= limit and not self._has_room():
                    break
                queue.popleft()
                if turn.done():
                    continue  # its client is gone
                self._let_in += 1
                if since < limit:
                    self._refuse(turn)
                else:
                    turn.set_result(None)
        if self._let_in:
            self._turn_soon(loop)
        elif self.depth:
            self._turning = True
            loop.call_later(LOOK_AGAIN_S, self._turn)

    def _refuse(self, turn: asyncio.Future[None]) -> None:
        self.refused += 1
        turn.set_exception(
            Overloaded(
                f"the server is busy, and {self.depth} requests wait behind this one: nothing was done, try again",
                retry_after_s=random.randint(1, RETRY_AFTER_MAX_S),  # noqa: S311  (spreads load, no secret)
            )
        )
