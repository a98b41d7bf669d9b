"""The one thing that the suites need beside ``assert``: an expected error, and work on another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType


class raises:  # lower case: it reads as a word in a with statement
    """Demand that the block raises one of ``expected``.

    Raises:
        AssertionError: it raised nothing.  Any other error passes through.
    """

    def __init__(self, *expected: type[BaseException]) -> None:
        self._expected = expected

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if kind is None:
            names = " or ".join(expected.__name__ for expected in self._expected)
            raise AssertionError(f"{names} expected, nothing raised")
        return issubclass(kind, self._expected)


def run_threads(work: list[Callable[[], None]]) -> None:
    """Run all of ``work`` side by side, begun together, and raise the first error that one of them raised."""
    start = threading.Barrier(len(work))
    errors: list[BaseException] = []

    def run(item: Callable[[], None]) -> None:
        start.wait()
        try:
            item()
        except BaseException as error:  # noqa: BLE001  # handed to the caller below, whatever it is
            errors.append(error)

    threads = [threading.Thread(target=run, args=(item,)) for item in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
