"""The bridge between the event loop and the synchronous engine.

Owns the threads: one writer for the index, one for the ledger, and bounded pools of readers (what is looked up), scanners
(what is gone through), workers (packs that come in) and provers (files that are put together).  Who may read or push must not
keep a flip waiting, so what costs more than a look-up never runs among the readers, by which everyone is authenticated.
LMDB write transactions belong to a thread, and one writer at a time is all that LMDB allows: so each environment has exactly
one thread that writes, and nothing else ever does.

Must not know: HTTP, formats, what a submission means.

Invariants:

- The loop never waits for a disk, a lock or a hash.
- A job that was accepted runs to its end, whether or not someone still waits for it: a flip whose client vanished is a
  flip that happened.
- No queue grows without bound: a full one raises :class:`~casstore.errors.Overloaded`.
- No principal fills one: whoever has its share waiting is told so (:mod:`casstore_server.shares`).
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

from casstore.errors import CasstoreError, OutcomeUnknown, Overloaded
from casstore.limits import GROUP_COMMIT_MAX, READER_QUEUE_MAX, READER_THREADS, WRITER_QUEUE_MAX
from casstore_server.shares import Shares

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")
R = TypeVar("R")

SCANNER_THREADS = 2
SCANNER_QUEUE_MAX = 128  # LIMIT: they may take seconds, and who would wait longer had better ask again
DOCUMENTS_MAX = 64  # LIMIT: of 1 MiB at most, so a batch fits into one pack


class Lane:
    """Threads of one purpose behind one bounded queue.

    Args:
        name: for thread names, metrics and errors.
        threads: how many jobs run at once.
        queue_max: how many more may wait.

    Threads: called from the event loop only.
    """

    def __init__(self, name: str, *, threads: int, queue_max: int) -> None:
        self.name = name
        self._limit = threads + queue_max
        self._depth = 0
        self.shares = Shares(self._limit, f"requests for the {name}")
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=f"casstore-{name}")

    @property
    def depth(self) -> int:
        """Jobs that wait or run."""
        return self._depth

    @property
    def executor(self) -> Executor:
        """The threads themselves, for a job that shares its work among them."""
        return self._executor

    def demand_room(self) -> None:
        """Refuse at once what would have to wait too long.

        Raises:
            Overloaded: the queue is full.
        """
        if self._depth >= self._limit:
            raise Overloaded(
                f"{self._depth} requests wait for the {self.name} already: nothing was done, try again",
                retry_after_s=1,
            )

    def start(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Hand a job to the lane's threads.

        Raises:
            Overloaded: the queue is full; the job was not taken.
        """
        self.demand_room()
        share = self.shares.take()
        self._depth += 1
        inner: Future[T] = self._executor.submit(lambda: _run(call, *args, **kwargs))
        future = asyncio.wrap_future(inner)
        future.add_done_callback(lambda _: self._ended(share))
        return future

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``call`` in the lane and wait for what it returns or raises.

        Raises:
            Overloaded: the queue is full; the job was not taken.
        """
        # ORDER: shielded, so that whoever stops waiting does not take the job out of the queue, nor the count down early.
        return await asyncio.shield(self.start(call, *args, **kwargs))

    def _ended(self, share: str | None) -> None:
        self._depth -= 1
        self.shares.give_back(share)

    async def close(self) -> None:
        """Run what was accepted, then end the threads."""
        await asyncio.to_thread(self._executor.shutdown, wait=True)


def _run(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call, and let an error keep the lines of its traceback, but not what stood in their variables.

    An error and the future that carries it refer to each other, so what its frames hold is freed when the garbage collector
    comes by, which may be much later: a layout of many MiB for each push that was refused.
    """
    try:
        return call(*args, **kwargs)
    except BaseException as error:
        link: BaseException | None = error
        while link is not None:
            traceback.clear_frames(link.__traceback__)
            link = link.__cause__ or link.__context__
        raise


@dataclass(slots=True)
class _Waiting(Generic[S, R]):
    submission: S
    answer: asyncio.Future[R]


class Gatherer(Generic[S, R]):
    """Turns what arrives while a batch is being written into the next batch.  An idle one writes at once.

    Args:
        lane: whose one thread writes.
        write: takes a batch and answers each of it with its result or its error.
        waiting_max: how many may wait.
        batch_max: how many go into one batch.
        what: what waits, for the error.

    Threads: called from the event loop only.
    """

    def __init__(
        self,
        lane: Lane,
        write: Callable[[Sequence[S]], Sequence[R | CasstoreError]],
        *,
        waiting_max: int,
        batch_max: int,
        what: str,
    ) -> None:
        self._lane = lane
        self._write = write
        self._waiting_max = waiting_max
        self.shares = Shares(waiting_max, what)
        self._batch_max = batch_max
        self._what = what
        self._waiting: deque[_Waiting[S, R]] = deque()
        self._running: Sequence[_Waiting[S, R]] = ()

    @property
    def depth(self) -> int:
        """How many wait for the next batch."""
        return len(self._waiting)

    async def submit(self, submission: S) -> R:
        """Write one, together with whatever else waits.

        Raises:
            Overloaded: too many wait; this one was not taken.
            CasstoreError: what was answered to this one.
        """
        if len(self._waiting) >= self._waiting_max:
            raise Overloaded(
                f"{len(self._waiting)} {self._what} wait already: nothing was done, try again", retry_after_s=1
            )
        if not self._running:
            self._lane.demand_room()
        share = self.shares.take()
        waiting: _Waiting[S, R] = _Waiting(submission, asyncio.get_running_loop().create_future())
        waiting.answer.add_done_callback(lambda _: self.shares.give_back(share))
        self._waiting.append(waiting)
        if not self._running:
            self._write_next()
        return await asyncio.shield(waiting.answer)

    async def drain(self) -> None:
        """Wait until all that was accepted is written."""
        while self._running:
            await asyncio.wait([waiting.answer for waiting in self._running])

    def _write_next(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch_max))]
        self._running = batch
        try:
            future = self._lane.start(self._write, [waiting.submission for waiting in batch])
        except Overloaded as error:
            self._answer(batch, [error] * len(batch))
            return
        future.add_done_callback(lambda done: self._written(batch, done))

    def _written(self, batch: Sequence[_Waiting[S, R]], done: asyncio.Future[Sequence[R | CasstoreError]]) -> None:
        error = done.exception()
        self._answer(batch, [error] * len(batch) if error is not None else done.result())

    def _answer(self, batch: Sequence[_Waiting[S, R]], results: Sequence[R | BaseException]) -> None:
        for waiting, result in zip(batch, results, strict=True):
            if waiting.answer.done():
                continue  # the loop is ending
            if isinstance(result, BaseException):
                waiting.answer.set_exception(result)
            else:
                waiting.answer.set_result(result)
        self._running = ()
        if self._waiting:
            self._write_next()


class Bridge(Generic[S, R]):
    """All lanes of one server.

    Args:
        commit: takes a batch of submissions and answers each with its result or its error; runs in the ledger's thread.
        store_documents: makes a batch of documents durable; runs in the index's thread.
        worker_threads: threads for pack ingest; as many again for proofs.
        worker_queue_max: jobs that may wait for them; admission of uploads keeps it from filling.
        scanner_threads: long reads at once.
        scanner_queue_max: long reads, and proofs, that may wait.
        reader_threads: reads at once.
        reader_queue_max: reads that may wait.
        writer_queue_max: jobs that may wait for each writer, and submissions that may wait for a commit.
        group_commit_max: submissions in one commit.

    Threads: called from the event loop only.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[S]], Sequence[R | CasstoreError]],
        store_documents: Callable[[Sequence[bytes]], Sequence[None]],
        *,
        worker_threads: int = 3,
        worker_queue_max: int = 256,
        scanner_threads: int = SCANNER_THREADS,
        scanner_queue_max: int = SCANNER_QUEUE_MAX,
        reader_threads: int = READER_THREADS,
        reader_queue_max: int = READER_QUEUE_MAX,
        writer_queue_max: int = WRITER_QUEUE_MAX,
        group_commit_max: int = GROUP_COMMIT_MAX,
    ) -> None:
        self.readers = Lane("readers", threads=reader_threads, queue_max=reader_queue_max)
        self.workers = Lane("workers", threads=worker_threads, queue_max=worker_queue_max)
        self.scanners = Lane("scanners", threads=scanner_threads, queue_max=scanner_queue_max)
        self.provers = Lane("provers", threads=worker_threads, queue_max=scanner_queue_max)
        self.index_writer = Lane("index writer", threads=1, queue_max=writer_queue_max)
        self.ledger_writer = Lane("ledger writer", threads=1, queue_max=writer_queue_max)
        # LIMIT: each submission is an entry of the log, each document at most 1 MiB of a pack: a batch stays below a second.
        self._commits: Gatherer[S, R] = Gatherer(
            self.ledger_writer, commit, waiting_max=writer_queue_max, batch_max=group_commit_max, what="flips"
        )
        self._documents: Gatherer[bytes, None] = Gatherer(
            self.index_writer, store_documents, waiting_max=DOCUMENTS_MAX, batch_max=DOCUMENTS_MAX, what="documents"
        )
        self.sealed = asyncio.Event()

    async def read(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a read of the store."""
        return await self._watch(self.readers.run(call, *args, **kwargs))

    async def work(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that costs processor time, such as taking in a megabyte of pack."""
        return await self._watch(self.workers.run(call, *args, **kwargs))

    async def scan(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a read whose price is that of what it reads, such as a comparison of trees."""
        return await self._watch(self.scanners.run(call, *args, **kwargs))

    async def prove(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the proof of a push, which may take minutes."""
        return await self._watch(self.provers.run(call, *args, **kwargs))

    async def write_index(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that writes the index."""
        return await self._watch(self.index_writer.run(call, *args, **kwargs))

    async def write_ledger(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that writes the ledger beside the log, such as a token."""
        return await self._watch(self.ledger_writer.run(call, *args, **kwargs))

    async def submit(self, submission: S) -> R:
        """Commit one submission, together with whatever else waits: one transaction, one fsync, one signature for all.

        An idle ledger commits at once; while a commit runs, the next batch gathers.

        Raises:
            Overloaded: too many wait; this one was not taken.
            CasstoreError: what the commit said to this submission.

        Durability: the result is durable, signed and published when this returns.
        """
        return await self._watch(self._commits.submit(submission))

    async def store_document(self, document: bytes) -> None:
        """Store a snapshot document, in one pack together with whatever others wait: small objects do not become a pack each.

        Raises:
            Overloaded: too many wait; this one was not taken.

        Durability: the document can be read when this returns, after any crash.
        """
        await self._watch(self._documents.submit(document))

    @property
    def depths(self) -> Mapping[str, int]:
        """Jobs that wait or run, by lane."""
        return {lane.name: lane.depth for lane in self._lanes} | {
            "submissions": self._commits.depth,
            "documents": self._documents.depth,
        }

    @property
    def refused(self) -> int:
        """Jobs that were refused because their principal has its share already."""
        shares = [lane.shares for lane in self._lanes] + [self._commits.shares, self._documents.shares]
        return sum(share.refused for share in shares)

    async def close(self) -> None:
        """Run what was accepted, then end all threads.  Nothing may be handed in any more."""
        await self._commits.drain()
        await self._documents.drain()
        for lane in self._lanes:
            await lane.close()

    @property
    def _lanes(self) -> Sequence[Lane]:
        # ORDER: of the end: nothing that still runs hands work to a lane that has ended.
        return (self.readers, self.scanners, self.workers, self.provers, self.index_writer, self.ledger_writer)

    async def _watch(self, job: asyncio.Future[T] | Coroutine[object, object, T]) -> T:
        try:
            return await job
        except OutcomeUnknown:
            # CRASH: a commit or an fsync failed, so memory and disk may disagree.  Only opening the store again settles it:
            # whoever runs the server stops it, and its supervisor starts it again.
            self.sealed.set()
            raise
