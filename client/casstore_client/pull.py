"""Pull: what a digest names comes out, verified and whole, or nothing does.

Owns the order of a pull.  Three steps depend on each other and no more: the root, the pages, the ranges of packs.

# ORDER: every page is verified before the first file is written; every file before it is finished; all of it before the
rename.  On any fault, Ctrl-C included, the destination is as it was and the temporary sibling is removed, with one exception: where
the server went away it stays, as after a ``kill -9``, and the next pull to the same place takes from it what is whole.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import aclosing, suppress
from functools import partial
from typing import Literal, NamedTuple

from casstore.errors import TreeNotFound, Unavailable
from casstore.ids import BlobDigest, PageDigest, TreeDigest
from casstore.wire import ChunkAt
from casstore_client.destination import Destination
from casstore_client.errors import TransportError, local_fault, show_path
from casstore_client.fetch import Fetcher, LayoutsReplaced, Relocate
from casstore_client.page_cache import PageCache
from casstore_client.pages import PageStore, fetch_all, fetch_blob_page, fetch_root, relocate_chunks
from casstore_client.planning import Restorer, blob_job
from casstore_client.progress_events import Phase, Progress, ProgressMeter
from casstore_client.restore import TreeWriter
from casstore_client.seeding import Seeder
from casstore_client.seeds import Seed, SeedReader, open_seed
from casstore_client.transport import Transport
from casstore_client.workers import Workers, finish_cleanup, first_fault
from casstore_client.write_behind import WriteBehind


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
    reused_files: int = 0
    """Of the files, those that were taken from seeds."""
    reused_bytes: int = 0
    """Of content in them, and in parts of other files that were taken from seeds."""


class Options(NamedTuple):
    """How a pull behaves."""

    replace: bool = False
    sync: bool = True
    progress: Progress | None = None
    seeds: tuple[bytes, ...] = ()
    """Directories to take files from."""
    link: bool = False
    """Whether what is taken from them may be a hard link."""
    cache: PageCache | None = None
    """Where pages are kept from one pull to the next."""


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
    destination = await asyncio.to_thread(partial(Destination, path, replace=options.replace))
    try:
        if not isinstance(digest, BlobDigest):
            tree = digest if isinstance(digest, TreeDigest) else TreeDigest.parse(digest)
            try:
                return await _pull_tree(transport, tree, destination, options)
            except TreeNotFound:
                if isinstance(digest, TreeDigest):
                    raise
        return await _Pull(transport, options, destination).blob(BlobDigest.parse(str(digest)))
    finally:
        await finish_cleanup(asyncio.to_thread(destination.close))


async def _pull_tree(transport: Transport, digest: TreeDigest, destination: Destination, options: Options) -> Pulled:
    try:
        return await _Pull(transport, options, destination).tree(digest)
    except LayoutsReplaced as error:
        if options.cache is None:
            raise error.fault from None
    # The layouts that were kept are of no use any more: once more, as if there were none.
    return await _Pull(transport, options._replace(cache=None), destination).tree(digest)


class _PullMeter(ProgressMeter):
    """Also has what was written put on the disk, now and then."""

    def __init__(self, callback: Progress | None, transferred: Callable[[], int], behind: WriteBehind) -> None:
        super().__init__(callback, transferred)
        self._behind = behind

    def add(self, files: int, count: int) -> None:
        try:
            self._behind.add(count)
        except OSError as error:
            raise local_fault("put on the disk", b"what was pulled", error) from error
        super().add(files, count)


class _Pull:
    def __init__(self, transport: Transport, options: Options, destination: Destination) -> None:
        self._transport = transport
        self._options = options
        self._restorer: Restorer | None = None
        self._began_s = time.monotonic()
        self._requests_before = transport.stats.requests.copy()
        self._received_before = transport.stats.bytes_received
        transferred_before = transport.stats.transferred
        self._destination = destination
        self._behind = WriteBehind(destination.parent_fd, enabled=options.sync)
        self._meter = _PullMeter(
            options.progress, lambda: transport.stats.transferred - transferred_before, self._behind
        )

    async def tree(self, digest: TreeDigest) -> Pulled:
        destination = self._destination
        self._meter.enter(Phase.LIST)
        verifier = await fetch_root(self._transport, digest)
        self._meter.total_bytes = sum(ref.content_bytes for ref in verifier.pages)
        seeds = await asyncio.to_thread(self._open_seeds, destination)
        root_fd = -1
        try:
            async with Workers() as workers:
                with await fetch_all(self._transport, digest, verifier, workers, self._options.cache) as store:
                    self._meter.total_files = store.files
                    self._meter.enter(Phase.PULL)
                    root_fd = await workers.run_light(destination.make_directory)
                    relocate = partial(relocate_chunks, self._transport, digest, verifier.pages)
                    reused = await self._restore(store, root_fd, seeds, relocate, workers)
                await self._publish(workers)
        except (TransportError, Unavailable) as error:
            if root_fd >= 0:
                kept = show_path(destination.keep())
                error.hint = f"pull to the same place again: what has arrived is kept in {kept} and need not come twice"
            raise
        finally:
            await finish_cleanup(self._clean_up())
            # ORDER: the lock goes after the directory, or another pull would take it for a leftover.
            if root_fd >= 0:
                os.close(root_fd)
            for seed in seeds:
                seed.close()
        counts = (store.files, len(store.directories), store.links, store.bytes)
        return Pulled(digest, "tree", *counts, *self._costs(), *reused)

    def _open_seeds(self, destination: Destination) -> list[Seed]:
        """In the order in which they are asked: what was interrupted, what is replaced, what the user named."""
        seeds: list[Seed] = []
        try:
            # Leftovers are removed in the end, so nothing stays shared: link whatever the user says about links.
            seeds += [Seed(os.dup(fd), link=True) for fd in destination.claim_leftovers()]
            replaced_fd = destination.open_replaced()
            if replaced_fd is not None:
                seeds.append(Seed(replaced_fd, link=self._options.link))
            seeds += [open_seed(path, link=self._options.link) for path in self._options.seeds]
        except BaseException:
            for seed in seeds:
                seed.close()
            raise
        return seeds

    async def _restore(
        self, store: PageStore, root_fd: int, seeds: Sequence[Seed], relocate: Relocate, workers: Workers
    ) -> tuple[int, int]:
        """Make everything that the pages list; returns files and bytes that came from seeds."""
        writer = TreeWriter(root_fd)
        await workers.run_light(writer.make_directories, store.directories)
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = SeedReader(seeds, root_fd) if seeds else None
                find_locally = reader.find_chunks if reader is not None else None
                fetcher = Fetcher(self._transport, workers, tasks, relocate, find_locally)
                self._restorer = Restorer(fetcher, writer, workers=workers, tasks=tasks, meter=self._meter)
                seeder = Seeder(reader, workers=workers, tasks=tasks, meter=self._meter)
                async with aclosing(seeder.run(iter(store))) as pages:
                    async for page, taken in pages:
                        await self._restorer.add_page(page, taken)
                await self._restorer.finish()
        except BaseExceptionGroup as group:
            raise first_fault(group) from None
        await workers.run_light(writer.set_directory_modes, store.directories)
        return seeder.files, seeder.bytes + fetcher.found_bytes

    async def blob(self, digest: BlobDigest) -> Pulled:
        destination = self._destination
        self._meter.enter(Phase.LIST)
        page = await fetch_blob_page(self._transport, digest)
        job, extents = blob_job(destination.temporary, None, digest, page)
        self._meter.total_files, self._meter.total_bytes = 1, job.size
        self._meter.enter(Phase.PULL)
        try:
            async with Workers() as workers:
                async with asyncio.TaskGroup() as tasks:
                    relocate = partial(relocate_blob, self._transport, digest)
                    fetcher = Fetcher(self._transport, workers, tasks, relocate)
                    writer = TreeWriter(destination.parent_fd)
                    self._restorer = Restorer(fetcher, writer, workers=workers, tasks=tasks, meter=self._meter)
                    await self._restorer.add_file(job, extents, page)
                    await self._restorer.finish()
                await self._publish(workers)
        except BaseExceptionGroup as group:
            raise first_fault(group) from None
        finally:
            await finish_cleanup(self._clean_up())
        return Pulled(digest, "blob", 1, 0, 0, job.size, *self._costs())

    async def _clean_up(self) -> None:
        """Close what is open and remove what is not wanted; no worker runs any more."""
        with suppress(OSError):  # where it matters, the pull has failed of it already
            await self._behind.finish()
        if self._restorer is not None:
            self._restorer.close()
        await asyncio.to_thread(self._destination.discard)

    async def _publish(self, workers: Workers) -> None:
        self._meter.enter(Phase.SYNC)
        try:
            await self._behind.finish()
        except OSError as error:
            raise local_fault("put on the disk", b"what was pulled", error) from error
        await workers.run(partial(self._destination.publish, sync=self._options.sync))
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
