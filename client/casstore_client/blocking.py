"""The SDK for programs without an event loop: the methods of ``AsyncClient``, each waiting for its end.

Owns one event loop on one background thread.  A call that is interrupted (Ctrl-C) first lets the operation clean up, so it leaves
nothing half.

Threads: any number may call at once.

Source: docs/client.md
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future, wait
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from casstore.clock import Clock, SystemClock
from casstore.signing import SigningKey
from casstore_client.client import AsyncClient
from casstore_client.transport import Stats
from casstore_client.trust_store import TrustStore
from casstore_client.verified_log import VerifiedLog

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _waits(
    method: Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[Client, _P], _T]:
    """A method that waits for that of ``AsyncClient``."""

    def waiting(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._call(method(self._client, *args, **kwargs))

    update_wrapper(waiting, method)
    return waiting


def _iterates(
    method: Callable[Concatenate[AsyncClient, _P], AsyncGenerator[_T, None]],
) -> Callable[Concatenate[Client, _P], Iterator[_T]]:
    """A method that gives an ordinary iterator where that of ``AsyncClient`` gives an asynchronous one."""

    def iterating(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> Iterator[_T]:
        return self._iterate(method(self._client, *args, **kwargs))

    update_wrapper(iterating, method)
    return iterating


class Client:
    """A client of one server; a context manager.

    Args:
        url: such as ``http://127.0.0.1:7433``.
        token: bearer token, or None.
        ca: file with the certificates to trust, or None for the system's.
        timeout_s: longest silence in the middle of an answer, in seconds.
        trust: what to verify answers about the log against; None verifies nothing.
        key: signs what this client asks for; None for reading only.
        clock: says when an intent was made, and how old a checkpoint is.

    Raises:
        ConfigurationError: not such a URL, or ``ca`` cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca: str | None = None,
        timeout_s: float = 60.0,
        trust: TrustStore | None = None,
        key: SigningKey | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._client = AsyncClient(
            url, token=token, ca=ca, timeout_s=timeout_s, trust=trust, key=key, clock=clock or SystemClock()
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="casstore-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread; idempotent."""
        if self._thread.is_alive():
            self._call(self._client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    @property
    def stats(self) -> Stats:
        """Requests by step, and bytes, since the client was made."""
        return self._client.stats

    @property
    def verifies(self) -> bool:
        """Whether answers are checked against a trust file."""
        return self._client.verifies

    @property
    def log(self) -> VerifiedLog | None:
        """What answers are checked by; None without a trust file."""
        return self._client.log

    config = _waits(AsyncClient.config)
    push = _waits(AsyncClient.push)
    push_stream = _waits(AsyncClient.push_stream)
    pull = _waits(AsyncClient.pull)
    cat = _iterates(AsyncClient.cat)
    ls = _iterates(AsyncClient.ls)
    artifacts = _waits(AsyncClient.artifacts)
    remove_artifacts = _waits(AsyncClient.remove_artifacts)
    backup = _waits(AsyncClient.backup)
    export = _waits(AsyncClient.export)
    import_file = _waits(AsyncClient.import_file)
    diff = _waits(AsyncClient.diff)
    find_digests = _waits(AsyncClient.find_digests)
    resolve_artifact = _waits(AsyncClient.resolve_artifact)

    snapshot_create = _waits(AsyncClient.snapshot_create)
    snapshot_publish = _waits(AsyncClient.snapshot_publish)
    snapshot_document = _waits(AsyncClient.snapshot_document)
    snapshots = _waits(AsyncClient.snapshots)
    resolve = _waits(AsyncClient.resolve)
    pointer = _waits(AsyncClient.pointer)
    pointer_or_none = _waits(AsyncClient.pointer_or_none)
    pointers = _waits(AsyncClient.pointers)
    history = _waits(AsyncClient.history)
    was_live = _waits(AsyncClient.was_live)
    rollback_target = _waits(AsyncClient.rollback_target)
    rollback_candidates = _waits(AsyncClient.rollback_candidates)
    flip = _waits(AsyncClient.flip)
    promote = _waits(AsyncClient.promote)
    retire = _waits(AsyncClient.retire)
    rollback = _waits(AsyncClient.rollback)
    hold = _waits(AsyncClient.hold)
    release = _waits(AsyncClient.release)
    mark = _waits(AsyncClient.mark)
    policy = _waits(AsyncClient.policy)
    set_policy = _waits(AsyncClient.set_policy)
    checkpoint = _waits(AsyncClient.checkpoint)
    entry = _waits(AsyncClient.entry)
    entries = _waits(AsyncClient.entries)
    inclusion_proof = _waits(AsyncClient.inclusion_proof)
    status = _waits(AsyncClient.status)
    token_create = _waits(AsyncClient.token_create)
    token_list = _waits(AsyncClient.token_list)
    token_revoke = _waits(AsyncClient.token_revoke)
    fsck = _waits(AsyncClient.fsck)
    scrub = _waits(AsyncClient.scrub)
    scrub_status = _waits(AsyncClient.scrub_status)
    quarantine = _iterates(AsyncClient.quarantine)
    release_object = _waits(AsyncClient.release_object)
    affected = _waits(AsyncClient.affected)
    repair_plan = _waits(AsyncClient.repair_plan)
    repair_send = _waits(AsyncClient.repair_send)
    objects = _waits(AsyncClient.objects)
    gc = _waits(AsyncClient.gc)
    gc_dropped = _waits(AsyncClient.gc_dropped)
    gc_undo = _waits(AsyncClient.gc_undo)
    pin = _waits(AsyncClient.pin)
    pins = _waits(AsyncClient.pins)
    unpin = _waits(AsyncClient.unpin)
    audit = _waits(AsyncClient.audit)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the loop's thread and wait for its end, whatever interrupts."""
        outcome: Future[_T] = Future()
        task: asyncio.Task[_T] | None = None

        def begin() -> None:
            nonlocal task
            task = self._loop.create_task(work)
            task.add_done_callback(end)

        def end(done: asyncio.Task[_T]) -> None:
            if done.cancelled():
                outcome.cancel()
                outcome.set_running_or_notify_cancel()
            elif (error := done.exception()) is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(done.result())

        def cancel() -> None:
            if task is not None:
                task.cancel()

        self._loop.call_soon_threadsafe(begin)
        try:
            return outcome.result()
        except BaseException:
            if not outcome.done():
                # Interrupted while waiting: the operation removes what it had begun before the interrupt goes on.
                self._loop.call_soon_threadsafe(cancel)
                wait([outcome])
            raise

    def _iterate(self, items: AsyncGenerator[_T, None]) -> Iterator[_T]:
        try:
            while (entry := self._call(_next(items))) is not None:
                yield entry[0]
        finally:
            if self._thread.is_alive():
                self._call(items.aclose())


async def _next(items: AsyncGenerator[_T, None]) -> tuple[_T] | None:
    async for item in items:
        return (item,)
    return None
