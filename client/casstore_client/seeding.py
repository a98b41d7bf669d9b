"""Goes through the pages of a tree and takes from seeds what they have, a few pages ahead of what is fetched.

Owns how that work is spread over threads: the files of a page, some hundred or some megabytes at a time.  Pages come out in order, each
with the paths that are done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence, Set
from typing import Final

from casstore.formats.tree import EntryType
from casstore_client.pages import Page
from casstore_client.planning import BATCH_BYTES, BATCH_FILES, file_job
from casstore_client.progress_events import ProgressMeter
from casstore_client.restore import FileJob
from casstore_client.seeds import SeedReader
from casstore_client.workers import Workers

PAGES_AHEAD: Final = 4


class Seeder:
    """Takes files of pages from seeds.

    Args:
        reader: takes them; None where there are no seeds.
        workers: threads to do so on.
        tasks: runs the work; a failure ends the pull.
        meter: told what was taken.
    """

    def __init__(
        self, reader: SeedReader | None, *, workers: Workers, tasks: asyncio.TaskGroup, meter: ProgressMeter
    ) -> None:
        self._reader = reader
        self._workers = workers
        self._tasks = tasks
        self._meter = meter
        self.files = 0
        """How many were taken."""
        self.bytes = 0
        """Bytes of content in them."""

    async def run(self, pages: Iterator[Page]) -> AsyncGenerator[tuple[Page, Set[bytes]], None]:
        """Every page in order, with the paths of the files that were taken.

        Raises:
            InvalidInput, CapacityError: the file system of the destination refuses.
        """
        ahead: deque[tuple[Page, asyncio.Task[set[bytes]]]] = deque()
        while (page := await self._workers.run_light(next, pages, None)) is not None:
            if self._reader is None:
                yield page, frozenset()
                continue
            ahead.append((page, self._tasks.create_task(self._take_page(page))))
            if len(ahead) > PAGES_AHEAD:
                first, taking = ahead.popleft()
                yield first, await taking
        for first, taking in ahead:
            yield first, await taking

    async def _take_page(self, page: Page) -> set[bytes]:
        batches: list[list[FileJob]] = []
        size = BATCH_BYTES
        for entry in page.entries:
            if entry.type is EntryType.FILE and entry.size:
                if size >= BATCH_BYTES or len(batches[-1]) >= BATCH_FILES:
                    batches.append([])
                    size = 0
                batches[-1].append(file_job(entry))
                size += entry.size
        taken = await asyncio.gather(*(self._take(jobs) for jobs in batches))
        return {job.path for jobs in taken for job in jobs}

    async def _take(self, jobs: Sequence[FileJob]) -> list[FileJob]:
        assert self._reader is not None, "there are seeds"
        answers = await self._workers.run(self._reader.take, jobs)
        taken = [job for job, is_taken in zip(jobs, answers, strict=True) if is_taken]
        size = sum(job.size for job in taken)
        self.files += len(taken)
        self.bytes += size
        self._meter.add(len(taken), size)
        return taken
