"""The event loop of a server: who has just come is looked at first, and each turn is short.

The loop of the standard library reads from every connection that has sent something before anything else gets its turn.  With
five thousand of them that takes a second, which a supervisor's ``/livez`` waits, and a rollback from a command line.  Here a turn
looks at ``EVENTS_AT_ONCE`` of them, in the kernel's round-robin order, and always at those who have just connected: a tool
connects, asks once and goes; whoever keeps a connection has had a turn before.

Threads: as any selector, the loop's only.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
from collections.abc import Mapping
from select import EPOLLIN, EPOLLOUT
from select import epoll as Epoll
from typing import Any, Final, Protocol

EVENTS_AT_ONCE: Final = 32  # some 5 ms of Python, and at most 8 MiB that are read


class HasNumber(Protocol):
    """A file or a socket."""

    def fileno(self) -> int: ...


FileLike = int | HasNumber


class FairSelector(selectors.BaseSelector):
    """Implements the selector that :mod:`asyncio` wants, with two epoll sets: all, and those to be looked at first."""

    def __init__(self) -> None:
        self._all = Epoll()
        self._first = Epoll()
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: FileLike, events: int, data: Any = None) -> selectors.SelectorKey:
        """See the base class."""
        number = _number_of(fileobj)
        if number in self._keys:
            raise KeyError(f"{fileobj!r} is registered already")
        self._all.register(number, _mask_of(events))
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return key

    def unregister(self, fileobj: FileLike) -> selectors.SelectorKey:
        """See the base class."""
        key = self._keys.pop(self._known(fileobj))
        with contextlib.suppress(OSError):  # it was closed, and the kernel has forgotten it
            self._all.unregister(key.fd)
        return key

    def modify(self, fileobj: FileLike, events: int, data: Any = None) -> selectors.SelectorKey:
        """See the base class."""
        number = self._known(fileobj)
        if events != self._keys[number].events:
            self._all.modify(number, _mask_of(events))
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See the base class; at most ``2 * EVENTS_AT_ONCE`` of them, those that were put first in front."""
        ready = self._poll(self._first, 0)
        wait_s = -1 if timeout is None else max(0.0, math.ceil(timeout * 1000) / 1000)
        ready = {**ready, **self._poll(self._all, 0 if ready else wait_s)}
        return [(self._keys[number], events) for number, events in ready.items()]

    def _poll(self, polled: Epoll, wait_s: float) -> dict[int, int]:
        found: dict[int, int] = {}
        try:
            found_now = polled.poll(wait_s, EVENTS_AT_ONCE)
        except InterruptedError:
            return found
        for number, mask in found_now:
            key = self._keys.get(number)
            # Hung up or in error: whoever waits, for whatever, is to find out.
            events = (selectors.EVENT_WRITE if mask & ~EPOLLIN else 0) | (
                selectors.EVENT_READ if mask & ~EPOLLOUT else 0
            )
            if key is not None and events & key.events:
                found[number] = events & key.events
        return found

    def put_first(self, number: int) -> None:
        """Look at this descriptor before all others, until :meth:`put_back` or its end."""
        with contextlib.suppress(FileExistsError):
            self._first.register(number, EPOLLIN)

    def put_back(self, number: int) -> None:
        """Look at it in its turn; harmless where it was not put first."""
        with contextlib.suppress(OSError):
            self._first.unregister(number)

    def close(self) -> None:
        """See the base class."""
        self._all.close()
        self._first.close()
        self._keys.clear()

    def get_map(self) -> Mapping[FileLike, selectors.SelectorKey]:
        """See the base class; by number."""
        return self._keys  # type: ignore[return-value]

    def get_key(self, fileobj: FileLike) -> selectors.SelectorKey:
        """See the base class."""
        return self._keys[self._known(fileobj)]

    def _known(self, fileobj: FileLike) -> int:
        """The number of a registered file, which may be closed by now."""
        try:
            number = _number_of(fileobj)
        except ValueError:
            number = next((key.fd for key in self._keys.values() if key.fileobj is fileobj), -1)
        if number not in self._keys:
            raise KeyError(f"{fileobj!r} is not registered")
        return number


class FairLoop(asyncio.SelectorEventLoop):
    """The loop that a server runs in; ``asyncio.Runner(loop_factory=FairLoop)``."""

    def __init__(self) -> None:
        self.fair = FairSelector()
        super().__init__(self.fair)


def fair_selector() -> FairSelector | None:
    """The selector of the running loop, or None if it is another kind of loop: then all wait in one line."""
    loop = asyncio.get_running_loop()
    return loop.fair if isinstance(loop, FairLoop) else None


def _number_of(fileobj: FileLike) -> int:
    number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
    if number < 0:
        raise ValueError(f"{fileobj!r} is closed")
    return number


def _mask_of(events: int) -> int:
    return (EPOLLIN if events & selectors.EVENT_READ else 0) | (EPOLLOUT if events & selectors.EVENT_WRITE else 0)
