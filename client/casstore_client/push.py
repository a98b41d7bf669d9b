"""Push: a directory, a file or a stream goes in, and is there, proven and durable, when the answer comes.

Owns the order of a push.  Three steps depend on each other and no more: ask what is missing, upload that, commit; reading,
cutting, hashing, asking, compressing and uploading overlap, within a budget of bytes.

A directory that was pushed before is first looked at: if nothing changed, its tree is known, and the first question and the
commit are all there is to it.  Else what did not change is taken from the stat cache, and read only if the server lacks it.

# ORDER: walk → read → assemble run in tree order; what follows does not care.  The root goes into the last pack, and the
commit waits until every pack is acknowledged.

Memory: ``HELD_MAX_BYTES`` of content, and ``UPLOADS_MAX`` + 1 packs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Literal, NamedTuple, TypeAlias

from casstore.chunking import ALGORITHM, DEFAULT_PARAMETERS, Parameters
from casstore.errors import (
    CasstoreError,
    Conflict,
    DigestMismatch,
    InvalidInput,
    LeaseLost,
    MalformedDocument,
    NotFound,
    Unsupported,
)
from casstore.formats.pack import ObjectKind
from casstore.ids import ArtifactName, BlobDigest, PushId, TreeDigest
from casstore.limits import CHUNK_MAX_BYTES, MIB
from casstore.wire import Artifact, Chunking, CommitRequest, Label, ServerConfig
from casstore_client.assemble import Assembled, BlobAssembler, Totals, TreeAssembler
from casstore_client.errors import local_fault
from casstore_client.memory import Memory
from casstore_client.progress_events import Phase, Progress, ProgressMeter
from casstore_client.push_api import commit
from casstore_client.reading import ReadingLine
from casstore_client.scan import Scanned
from casstore_client.source import WINDOW_BYTES, FileReader, StreamReader, Window, scan_file
from casstore_client.stat_cache import forget_cache
from casstore_client.transport import Transport
from casstore_client.unread import CacheContradicted
from casstore_client.upload import Sent, Uploader
from casstore_client.workers import Budget, Workers, first_fault

HELD_MAX_BYTES: Final = 64 * MIB
COUNT_AFTER_S: Final = 1.0  # looking twice at a tree that is pushed sooner would take longer than it tells
COMPRESSION: Final = "zstd"

log: Final = logging.getLogger(__name__)

Kind: TypeAlias = Literal["tree", "blob"]


class Pushed(NamedTuple):
    """What a push did."""

    digest: TreeDigest | BlobDigest
    kind: Kind
    artifact: Artifact
    files: int
    directories: int
    links: int
    size_bytes: int
    """Of content."""
    chunks: int
    """Distinct ones in the content."""
    chunk_bytes: int
    """Plain bytes of those."""
    new_chunks: int
    """Those that the server lacked."""
    new_bytes: int
    """Plain bytes of those."""
    sent_bytes: int
    """Bytes of the packs that were sent."""
    seconds: float
    requests: dict[str, int]
    """How many requests each step took."""


_CACHE_FAULTS: Final = (CacheContradicted, DigestMismatch, MalformedDocument)
"""What comes of a stat cache that is wrong: found here, or by the server's proof."""


class CommitInfo(NamedTuple):
    """What a commit says beside the digest."""

    name: str | None
    labels: list[Label]


class PushOptions(NamedTuple):
    """How a push goes about it."""

    exclude: Sequence[str] = ()
    """Patterns of what is left out, as in ``.casstoreignore``."""
    cache: bool = True
    """Whether the stat cache is used and written."""
    progress: Progress | None = None


class _OtherParameters(Exception):
    """The store cuts otherwise than was assumed while its answer was on the way."""

    def __init__(self, parameters: Parameters) -> None:
        super().__init__()
        self.parameters = parameters


async def push(
    transport: Transport,
    config: Callable[[], Awaitable[ServerConfig]],
    source: bytes | int,
    *,
    name: str | None = None,
    labels: Sequence[Label] = (),
    options: PushOptions = PushOptions(),  # noqa: B008  (immutable)
) -> Pushed:
    """Push a directory, a file or a stream.

    Args:
        transport: the server.
        config: gives the server's configuration.
        source: path of a directory or file, or the descriptor of a stream.
        name: the artifact's name.
        labels: the artifact's labels.
        options: how it goes about it.

    Raises:
        As :meth:`casstore_client.client.AsyncClient.push`.
    """
    if name is not None:
        ArtifactName.parse(name)
    parameters = DEFAULT_PARAMETERS
    attempts = 0
    forgotten = False
    while True:
        job = _Push(transport, config, parameters, options)
        try:
            return await job.run(source, CommitInfo(name, list(labels)))
        except BaseExceptionGroup as group:
            fault = first_fault(group)
        except CasstoreError as error:
            fault = error
        if not isinstance(source, bytes):
            raise fault  # a stream cannot be read twice
        if isinstance(fault, _OtherParameters):
            parameters = fault.parameters
        elif isinstance(fault, _CACHE_FAULTS) and job.used_cache:
            log.debug("the push begins again without the stat cache: %s", fault)
            await asyncio.to_thread(forget_cache, source, parameters)
            options = options._replace(cache=options.cache and not forgotten)
            forgotten = True
        elif isinstance(fault, LeaseLost) and attempts == 0:
            attempts += 1  # begin again, once, with a new id
        else:
            raise fault


class _Push:
    """One attempt."""

    def __init__(
        self,
        transport: Transport,
        config: Callable[[], Awaitable[ServerConfig]],
        parameters: Parameters,
        options: PushOptions,
    ) -> None:
        self._transport = transport
        self._config = config
        self._parameters = parameters
        self._push = PushId(os.urandom(16))
        self._began_s = time.monotonic()
        self._before = transport.stats.requests.copy()
        transferred_before = transport.stats.transferred
        self._options = options
        self._meter = ProgressMeter(options.progress, lambda: transport.stats.transferred - transferred_before)
        self._budget = Budget(HELD_MAX_BYTES)
        self._seen: set[bytes] = set()
        self.used_cache = False
        """Whether anything was taken from the stat cache."""

    async def run(self, source: bytes | int, info: CommitInfo) -> Pushed:
        self._meter.enter(Phase.PUSH)
        if isinstance(source, int):
            self._refuse_patterns("a stream")
            # A stream cannot be read twice, so how to cut it is asked first.
            self._parameters = parameters_of((await self._config()).chunking)
            return await self._push_blob(StreamReader(lambda: os.dup(source), self._parameters, self._seen), info)
        fd, scanned = await asyncio.to_thread(open_source, source)
        try:
            if scanned is None:
                return await self._push_directory(fd, source, info)
            self._refuse_patterns("a file")
            return await self._push_blob(StreamReader(lambda: os.dup(fd), self._parameters, self._seen, scanned), info)
        finally:
            os.close(fd)

    def _refuse_patterns(self, what: str) -> None:
        if self._options.exclude:
            raise InvalidInput(f"patterns leave something out of a directory; this is {what}")

    async def _push_directory(self, root_fd: int, path: bytes, info: CommitInfo) -> Pushed:
        memory = Memory(root_fd, path, self._parameters, exclude=self._options.exclude, cached=self._options.cache)
        try:
            pushed = await self._push_unchanged(memory, info)
            return pushed or await self._push_tree(root_fd, memory, info)
        finally:
            memory.close()

    async def _push_unchanged(self, memory: Memory, info: CommitInfo) -> Pushed | None:
        """Push a directory by looking at it; None if it changed, or the server lacks something of it."""
        async with Workers() as workers, asyncio.TaskGroup() as group:
            await workers.run_light(memory.open)
            last = memory.last
            self.used_cache = memory.cache is not None
            if last is None:
                return None
            # Asked while the walk goes on: the answer is worth nothing only if something changed.
            uploader = self._uploader(workers, group, group)
            question = group.create_task(uploader.missing("page", last.pages))
            unchanged = await workers.run_light(memory.is_unchanged)
            if not unchanged or any(await question):
                return None
            await uploader.finish([(ObjectKind.ROOT, bytes(last.digest), last.root)])
        self._meter.add(last.totals.files, last.totals.bytes)
        artifact = await self._commit("tree", last.digest, uploader, info)
        return self._describe("tree", last.digest, artifact, last.totals, uploader.sent)

    async def _push_tree(self, root_fd: int, memory: Memory, info: CommitInfo) -> Pushed:
        line: ReadingLine | None = None
        try:
            async with Workers() as workers:
                async with asyncio.TaskGroup() as uploads:
                    async with asyncio.TaskGroup() as work:
                        uploader = self._uploader(workers, work, uploads)
                        found = await workers.run_light(memory.walk)
                        assembler = TreeAssembler(self._parameters, self._seen, root_fd, memory.cache, memory.writer)
                        reader = FileReader(root_fd, self._parameters, self._seen)
                        line = ReadingLine(found, reader, workers, self._budget, work.create_task)
                        work.create_task(self._check_parameters())
                        work.create_task(line.run())
                        counting = work.create_task(self._count(memory, workers))
                        await self._assemble(line, assembler, uploader, workers)
                        out, root, digest = await workers.run_light(assembler.finish)
                        await self._offer(out, uploader)
                        await uploader.flush()
                        counting.cancel()
                    await uploader.finish([(ObjectKind.ROOT, bytes(digest), root)])
                artifact = await self._commit("tree", digest, uploader, info)
                await workers.run_light(memory.keep, root, assembler.totals)
            return self._describe("tree", digest, artifact, assembler.totals, uploader.sent)
        finally:
            if line is not None:
                line.close()

    async def _count(self, memory: Memory, workers: Workers) -> None:
        """Find out how much there is, for whoever watches a push that takes its time."""
        if self._options.progress is not None:
            await asyncio.sleep(COUNT_AFTER_S)
            self._meter.total_files, self._meter.total_bytes = await workers.run(memory.count)

    def _uploader(self, workers: Workers, work: asyncio.TaskGroup, uploads: asyncio.TaskGroup) -> Uploader:
        return Uploader(self._transport, self._push, workers=workers, budget=self._budget, work=work, uploads=uploads)

    async def _assemble(
        self, line: ReadingLine, assembler: TreeAssembler, uploader: Uploader, workers: Workers
    ) -> None:
        async for batch, result in line:
            if isinstance(result, Window):
                assert isinstance(batch.items[0], Scanned), "what is known has no windows"
                out = await workers.run_light(assembler.add_window, batch.items[0], result)
                self._meter.add(1 if result.digest is not None else 0, result.bytes)
            else:
                out = await workers.run_light(assembler.add_batch, result)
                self._meter.add(batch.files + batch.known_files, batch.bytes + batch.known_bytes)
            await self._offer(out, uploader)

    async def _push_blob(self, reader: StreamReader, info: CommitInfo) -> Pushed:
        assembler = BlobAssembler(self._seen)
        digest: BlobDigest | None = None
        try:
            async with Workers() as workers:
                async with asyncio.TaskGroup() as uploads:
                    async with asyncio.TaskGroup() as work:
                        uploader = self._uploader(workers, work, uploads)
                        work.create_task(self._check_parameters())
                        while digest is None:
                            await self._budget.acquire(WINDOW_BYTES)
                            window = await workers.run(reader.read_window)
                            digest = window.digest
                            self._budget.release(WINDOW_BYTES - window.bytes)
                            await self._offer(assembler.add_window(window), uploader)
                            self._meter.add(0 if digest is None else 1, window.bytes)
                        await uploader.flush()
                    await uploader.finish([(ObjectKind.LAYOUT, bytes(digest), assembler.finish())])
                artifact = await self._commit("blob", digest, uploader, info)
            return self._describe("blob", digest, artifact, assembler.totals, uploader.sent)
        finally:
            reader.close()

    async def _offer(self, out: Assembled, uploader: Uploader) -> None:
        self._budget.release(out.spent)
        await uploader.offer_chunks(out.chunks)
        await uploader.offer_pages(out.pages)

    async def _check_parameters(self) -> None:
        """Cutting began on the assumption that the store cuts as we do; here its answer comes."""
        parameters = parameters_of((await self._config()).chunking)
        if parameters != self._parameters:
            raise _OtherParameters(parameters)

    async def _commit(
        self, kind: Kind, digest: TreeDigest | BlobDigest, uploader: Uploader, info: CommitInfo
    ) -> Artifact:
        self._meter.enter(Phase.COMMIT)
        request = CommitRequest(kind=kind, digest=str(digest), name=info.name, labels=info.labels)
        artifact: Artifact | None = None
        if uploader.held_back:
            # Everything was there, so most likely the root is too: a pack for it alone would be litter.
            with suppress(NotFound, Conflict):
                artifact = await commit(self._transport, self._push, request)
            if artifact is None:
                await uploader.send_held_back()
        if artifact is None:
            artifact = await commit(self._transport, self._push, request)
        self._meter.enter(Phase.DONE)
        return artifact

    def _describe(
        self, kind: Kind, digest: TreeDigest | BlobDigest, artifact: Artifact, totals: Totals, sent: Sent
    ) -> Pushed:
        return Pushed(
            digest=digest,
            kind=kind,
            artifact=artifact,
            files=totals.files,
            directories=totals.directories,
            links=totals.links,
            size_bytes=totals.bytes,
            chunks=totals.chunks,
            chunk_bytes=totals.chunk_bytes,
            new_chunks=sent.chunks,
            new_bytes=sent.chunk_bytes,
            sent_bytes=sent.pack_bytes,
            seconds=time.monotonic() - self._began_s,
            requests=dict(self._transport.stats.requests - self._before),
        )


def open_source(path: bytes) -> tuple[int, Scanned | None]:
    """Open what is to be pushed.  A link given by name is followed: whoever names it means what it points to.

    Returns:
        The descriptor, which is the caller's, and the file as it was; None for a directory.

    Raises:
        InvalidInput: it cannot be opened, or is neither directory nor regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise local_fault("read", path, error) from error
    try:
        scanned = None if stat.S_ISDIR(os.fstat(fd).st_mode) else scan_file(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd, scanned


def parameters_of(chunking: Chunking) -> Parameters:
    """How a store wants content cut.

    Raises:
        Unsupported: in a way that this client does not know, or beyond the format's bound of a chunk.
    """
    parameters = Parameters(
        chunking.min_bytes,
        chunking.avg_bytes,
        chunking.max_bytes,
        chunking.seed,
        chunking.normalization,
        chunking.small_file_bytes,
        chunking.bundle_cut_min_bytes,
        chunking.bundle_cut_divisor_bytes,
    )
    ordered = 0 < parameters.min_bytes <= parameters.avg_bytes <= parameters.max_bytes <= CHUNK_MAX_BYTES
    bundles = 0 < parameters.small_file_bytes <= parameters.max_bytes and parameters.bundle_cut_divisor_bytes > 0
    if chunking.algorithm != ALGORITHM or chunking.compression != COMPRESSION or not ordered or not bundles:
        raise Unsupported(
            f"this store wants content cut by {chunking.algorithm[:40]} and compressed by {chunking.compression[:40]}",
            hint="use a newer client",
        )
    return parameters
