"""Turns files and their extents into work: which chunks to fetch now, which files to write once they are there.

Owns the pace of a pull.  Files come in tree order, which is more or less the order in which their chunks lie in packs.  They are
gathered into windows of about ``WINDOW_BYTES`` of chunks that are not at hand; a few windows are under way at a time.  Within a
window, files are written in batches, each as soon as its own chunks are there.  A large file spans windows and is written run
by run.

# ORDER: a window begins only when an earlier one is done, and waits for nothing of a later one: so the line always moves.

Memory: ``WINDOWS_MAX`` windows, each of ``WINDOW_BYTES`` or ``WINDOW_BATCHES``, and at most one file of ``LARGE_FILE_BYTES`` more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence, Set
from typing import Final, NamedTuple

from casstore.errors import MalformedDocument
from casstore.formats.layout import Extent
from casstore.formats.tree import EntryType, TreeEntry
from casstore.ids import BlobDigest
from casstore.limits import MIB
from casstore_client.fetch import Fetcher
from casstore_client.pages import Page
from casstore_client.progress_events import ProgressMeter
from casstore_client.restore import FileJob, LargeFile, Part, TreeWriter
from casstore_client.workers import Workers

WINDOW_BYTES: Final = 16 * MIB
WINDOWS_MAX: Final = 4
LARGE_FILE_BYTES: Final = 8 * MIB
RUN_BYTES: Final = 64 * MIB  # of a large file that is one chunk over and over, written at a time
BATCH_FILES: Final = 128
WINDOW_BATCHES: Final = 64  # LIMIT: tiny files need no bytes to speak of, but half a KiB of memory each
BATCH_BYTES: Final = 2 * MIB


class _Run(NamedTuple):
    """A run of a large file."""

    file: LargeFile
    parts: list[Part]
    bytes: int
    final: bool


class Restorer:
    """Fetches and writes the files that it is given.

    Args:
        fetcher: gets the chunks.
        writer: writes the files; None where only :meth:`add_large` is called.
        workers: threads to write on.
        tasks: runs the work; a failure ends the pull.
        meter: told what was written.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        writer: TreeWriter | None,
        *,
        workers: Workers,
        tasks: asyncio.TaskGroup,
        meter: ProgressMeter,
    ) -> None:
        self._fetcher = fetcher
        self._writer = writer
        self._workers = workers
        self._tasks = tasks
        self._meter = meter
        self._slots = asyncio.Semaphore(WINDOWS_MAX)
        self._jobs: list[FileJob] = []
        self._jobs_bytes = 0
        self._batches: list[list[FileJob]] = []
        self._runs: list[_Run] = []
        self._previous: dict[LargeFile, asyncio.Task[None]] = {}

    async def add_page(self, page: Page, taken: Set[bytes] = frozenset()) -> None:
        """Take the files and links of a page, but for the paths that are ``taken``; waits while too much is under way."""
        rows = iter(page.layout.files)
        links: list[TreeEntry] = []
        for entry in page.entries:
            if entry.type is EntryType.FILE:
                row = next(rows) if entry.size else ()
                if entry.path not in taken:
                    await self.add_file(file_job(entry), row, page)
            elif entry.type is EntryType.LINK:
                links.append(entry)
        if links:
            assert self._writer is not None, "links need a writer"
            self._tasks.create_task(self._workers.run_light(self._writer.make_links, links))

    async def add_file(self, job: FileJob, extents: Sequence[Extent], page: Page) -> None:
        """Take a file, whose extents lie in the layout of ``page``; waits while too much is under way."""
        assert self._writer is not None, "files need a writer"
        if job.size > LARGE_FILE_BYTES:
            await self.add_large(self._writer.open_large(job), extents, page)
            return
        job.parts.extend(self._parts(job, extents, page))
        self._jobs.append(job)
        self._jobs_bytes += job.size
        if len(self._jobs) >= BATCH_FILES or self._jobs_bytes >= BATCH_BYTES:
            self._end_batch()
        if self._fetcher.wanted_bytes >= WINDOW_BYTES or len(self._batches) >= WINDOW_BATCHES:
            await self._begin_window()

    async def add_large(self, file: LargeFile, extents: Sequence[Extent], page: Page) -> None:
        """Take a file that is written run by run."""
        parts: list[Part] = []
        size = 0
        for part in self._parts(file.job, extents, page):
            parts.append(part)
            size += part.length
            if self._fetcher.wanted_bytes >= WINDOW_BYTES or size >= RUN_BYTES:
                self._runs.append(_Run(file, parts, size, False))
                parts, size = [], 0
                await self._begin_window()
        self._runs.append(_Run(file, parts, size, True))

    async def finish(self) -> None:
        """Say that no more files come.  The work goes on in the task group."""
        await self._begin_window()

    def close(self) -> None:
        """Close large files that were not finished.  Only once no thread writes any more."""
        for file in self._previous:
            file.close()

    def _parts(self, job: FileJob, extents: Iterable[Extent], page: Page) -> Iterable[Part]:
        want = self._fetcher.want
        at = 0
        for ordinal, offset, length in extents:
            chunk, plain_length = page.layout.chunks[ordinal]
            # What a seed has of a file that is not whole there lies where it would lie in the whole one, if anywhere.
            hint = (job.path, at) if job.size > plain_length == length else None
            yield Part(want(chunk, plain_length, page.chunks[ordinal], page.digest, hint), offset, length)
            at += length

    def _end_batch(self) -> None:
        if self._jobs:
            self._batches.append(self._jobs)
            self._jobs, self._jobs_bytes = [], 0

    async def _begin_window(self) -> None:
        self._end_batch()
        batches, self._batches = self._batches, []
        runs, self._runs = self._runs, []
        if not batches and not runs:
            return
        await self._slots.acquire()
        self._fetcher.start()
        work = [self._tasks.create_task(self._write_batch(jobs)) for jobs in batches]
        for run in runs:
            task = self._tasks.create_task(self._write_run(run, self._previous.get(run.file)))
            self._previous[run.file] = task
            work.append(task)
        self._tasks.create_task(self._end_window(work))

    async def _end_window(self, work: Sequence[asyncio.Task[None]]) -> None:
        await asyncio.wait(work)
        self._slots.release()

    async def _write_batch(self, jobs: Sequence[FileJob]) -> None:
        assert self._writer is not None, "batches need a writer"
        await _arrivals(part for job in jobs for part in job.parts)
        size = sum(job.size for job in jobs)
        # Making a file is 20 µs and more in the kernel: unlike light work, it is done sooner by several threads.
        await self._workers.run(self._writer.write_files, jobs)
        self._meter.add(len(jobs), size)

    async def _write_run(self, run: _Run, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await previous
        await _arrivals(run.parts)
        await self._workers.run(run.file.write, run.parts, run.final)
        self._meter.add(1 if run.final else 0, run.bytes)
        if run.final:
            self._previous.pop(run.file, None)


async def _arrivals(parts: Iterable[Part]) -> None:
    """Wait until the chunks of all parts are there."""
    for task in {part.chunk.arrival for part in parts}:
        assert task is not None, "chunks are fetched from the moment their window begins"
        await task


def file_job(entry: TreeEntry) -> FileJob:
    """The file that an entry stands for, without its parts."""
    assert entry.digest is not None, "a file has a digest"
    return FileJob(entry.path, entry.mode, entry.size, entry.digest, [])


def blob_job(path: bytes, mode: int | None, digest: BlobDigest, page: Page) -> tuple[FileJob, Sequence[Extent]]:
    """The one file that a blob is, and its extents; ``path`` is where it goes.

    Raises:
        MalformedDocument: the layout says that a blob is empty which is not.
    """
    extents: Sequence[Extent] = page.layout.files[0] if page.layout.files else ()
    size = sum(extent.length for extent in extents)
    if not size and page.layout.files:
        raise MalformedDocument(f"the layout of {digest} has a row without bytes")
    return FileJob(path, mode, size, digest, []), extents
