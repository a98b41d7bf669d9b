"""Pull: what a digest names comes out, verified and whole, or nothing does.

Owns the order of a pull.  Three steps depend on each other and no more: the root, the pages, the ranges of packs.

# ORDER: every page is verified before the first file is written; every file before it is finished; all of it before the
rename.  On any fault, Ctrl-C included, the temporary sibling is removed and the destination is as it was.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Set
from functools import partial
from typing import Literal, NamedTuple

from casstore.errors import TreeNotFound
from casstore.ids import BlobDigest, PageDigest, TreeDigest
from casstore.wire import ChunkAt
from casstore_client.destination import Destination
from casstore_client.fetch import Fetcher
from casstore_client.pages import fetch_all, fetch_blob_page, fetch_root, relocate_chunks
from casstore_client.planning import Restorer, blob_job
from casstore_client.progress_events import Phase, Progress, ProgressMeter
from casstore_client.restore import TreeWriter
from casstore_client.transport import Transport
from casstore_client.workers import Workers, finish_cleanup, first_fault


class Pulled(NamedTuple):
    """What a pull did."""

    digest: TreeDigest | BlobDigest
    kind: Literal["tree", "blob"]
    files: int
    directories: int
    links: int
    size_bytes: int
    """Of content."""
    received_bytes: int
    """Bytes of the answers."""
    seconds: float
    requests: dict[str, int]
    """How many requests each step took."""


class Options(NamedTuple):
    """How a pull behaves."""

    replace: bool = False
    sync: bool = True
    progress: Progress | None = None


async def pull(transport: Transport, digest: TreeDigest | BlobDigest | str, path: bytes, options: Options) -> Pulled:
    """Pull a tree or a blob.

    Args:
        transport: the server.
        digest: what to pull; as text it may name either, and is tried as a tree first.
        path: where to.
        options: how.

    Raises:
        As :meth:`casstore_client.client.AsyncClient.pull`.
    """
    job = _Pull(transport, options)
    destination = await asyncio.to_thread(partial(Destination, path, replace=options.replace))
    try:
        if not isinstance(digest, BlobDigest):
            tree = digest if isinstance(digest, TreeDigest) else TreeDigest.parse(digest)
            try:
                return await job.tree(tree, destination)
            except TreeNotFound:
                if isinstance(digest, TreeDigest):
                    raise
        return await job.blob(BlobDigest.parse(str(digest)), destination)
    finally:
        await finish_cleanup(asyncio.to_thread(destination.close))


class _Pull:
    def __init__(self, transport: Transport, options: Options) -> None:
        self._transport = transport
        self._options = options
        self._began_s = time.monotonic()
        self._requests_before = transport.stats.requests.copy()
        self._received_before = transport.stats.bytes_received
        transferred_before = transport.stats.transferred
        self._meter = ProgressMeter(options.progress, lambda: transport.stats.transferred - transferred_before)

    async def tree(self, digest: TreeDigest, destination: Destination) -> Pulled:
        self._meter.enter(Phase.LIST)
        verifier = await fetch_root(self._transport, digest)
        self._meter.total_bytes = sum(ref.content_bytes for ref in verifier.pages)
        root_fd = -1
        restorer: Restorer | None = None
        try:
            async with Workers() as workers:
                store = await fetch_all(self._transport, digest, verifier, workers)
                with store:
                    self._meter.total_files = store.files
                    self._meter.enter(Phase.PULL)
                    root_fd = await workers.run_light(destination.make_directory)
                    writer = TreeWriter(root_fd)
                    await workers.run_light(writer.make_directories, store.directories)
                    async with asyncio.TaskGroup() as tasks:
                        relocate = partial(relocate_chunks, self._transport, digest, verifier.pages)
                        fetcher = Fetcher(self._transport, workers, tasks, relocate)
                        restorer = Restorer(fetcher, writer, workers=workers, tasks=tasks, meter=self._meter)
                        pages = iter(store)
                        while (page := await workers.run_light(next, pages, None)) is not None:
                            await restorer.add_page(page)
                        await restorer.finish()
                    await workers.run_light(writer.set_directory_modes, store.directories)
                await self._publish(destination, workers)
        except BaseExceptionGroup as group:
            raise first_fault(group) from None
        finally:
            if restorer is not None:
                restorer.close()
            if root_fd >= 0:
                os.close(root_fd)
            await finish_cleanup(asyncio.to_thread(destination.discard))
        return Pulled(digest, "tree", store.files, len(store.directories), store.links, store.bytes, *self._costs())

    async def blob(self, digest: BlobDigest, destination: Destination) -> Pulled:
        self._meter.enter(Phase.LIST)
        page = await fetch_blob_page(self._transport, digest)
        job, extents = blob_job(destination.temporary, None, digest, page)
        self._meter.total_files, self._meter.total_bytes = 1, job.size
        self._meter.enter(Phase.PULL)
        restorer: Restorer | None = None
        try:
            async with Workers() as workers:
                async with asyncio.TaskGroup() as tasks:
                    relocate = partial(relocate_blob, self._transport, digest)
                    fetcher = Fetcher(self._transport, workers, tasks, relocate)
                    writer = TreeWriter(destination.parent_fd)
                    restorer = Restorer(fetcher, writer, workers=workers, tasks=tasks, meter=self._meter)
                    await restorer.add_file(job, extents, page)
                    await restorer.finish()
                await self._publish(destination, workers)
        except BaseExceptionGroup as group:
            raise first_fault(group) from None
        finally:
            if restorer is not None:
                restorer.close()
            await finish_cleanup(asyncio.to_thread(destination.discard))
        return Pulled(digest, "blob", 1, 0, 0, job.size, *self._costs())

    async def _publish(self, destination: Destination, workers: Workers) -> None:
        self._meter.enter(Phase.SYNC)
        await workers.run(partial(destination.publish, sync=self._options.sync))
        self._meter.enter(Phase.DONE)

    def _costs(self) -> tuple[int, float, dict[str, int]]:
        """The last three fields of :class:`Pulled`."""
        stats = self._transport.stats
        received = stats.bytes_received - self._received_before
        return received, time.monotonic() - self._began_s, dict(stats.requests - self._requests_before)


async def relocate_blob(transport: Transport, digest: BlobDigest, pages: Set[PageDigest]) -> Mapping[bytes, ChunkAt]:
    """Ask once more where the chunks of a blob lie."""
    page = await fetch_blob_page(transport, digest)
    return {chunk: at for (chunk, _), at in zip(page.layout.chunks, page.chunks, strict=True)}
