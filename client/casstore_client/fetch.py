"""Fetches chunks: a plan of byte ranges, several requests at a time, every chunk verified before anyone sees it.

Owns which bytes of which packs are asked for.  Chunks that lie near each other in one pack come in one request.  A chunk that
is wanted while it is on its way, or still held by someone, is not fetched again; once nobody holds it, it is forgotten.

A pack may be rewritten while a pull goes on, or since the page was kept.  Then it is gone, and its chunks lie elsewhere: the pages are
asked once more.

Threads: everything but the decoding runs on the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence, Set
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

from casstore.errors import CasstoreError, DamagedObject, MalformedDocument, NotFound, PackNotFound, TooLarge
from casstore.formats.pack import FRAME_HEADER_BYTES, ObjectKind, decode_frame, open_frame
from casstore.ids import ChunkId, PackId, PageDigest
from casstore.limits import (
    CHUNK_MAX_BYTES,
    MIB,
    PACK_SIZE_MAX_BYTES,
    RANGE_COALESCE_GAP_BYTES,
    RANGE_REQUEST_MAX_BYTES,
)
from casstore.wire import MEDIA_PACK, ChunkAt
from casstore_client.errors import ProtocolError
from casstore_client.transport import Transport
from casstore_client.workers import Workers

REQUESTS_MAX: Final = 8
_DECODE_BYTES: Final = MIB  # stored bytes that one thread decodes at a time

Relocate: TypeAlias = Callable[[Set[PageDigest]], Awaitable[Mapping[bytes, ChunkAt]]]
"""Asks again where the chunks of these pages lie."""


class LayoutsReplaced(Exception):
    """The server puts the files of a page together from other chunks than those that its layout named before.

    Never leaves a pull.

    Args:
        fault: what led to asking.
    """

    def __init__(self, fault: CasstoreError) -> None:
        super().__init__(str(fault))
        self.fault = fault


class Chunk:
    """A chunk on its way.  Wait for ``arrival``, then read ``plain``."""

    __slots__ = ("__weakref__", "arrival", "at", "hint", "id", "length", "page", "plain")

    def __init__(self, id: ChunkId, length: int, at: ChunkAt, page: PageDigest) -> None:
        self.id = id
        self.length = length
        """Plain length in bytes."""
        self.at = at
        self.page = page
        """The page (or blob) whose record said where it lies."""
        self.plain = b""
        self.hint: tuple[bytes, int] | None = None
        """A path and an offset at which a seed may have it."""
        self.arrival: asyncio.Task[None] | None = None


FindLocally: TypeAlias = Callable[[Sequence[Chunk]], list[Chunk]]
"""Sets ``plain`` of those chunks that lie where their hints say, verified; returns the others.  Called on a worker."""


class _Range(NamedTuple):
    pack: PackId
    start: int
    end: int
    chunks: list[Chunk]


def plan_ranges(chunks: Iterable[Chunk]) -> list[_Range]:
    """Gather chunks into requests: of one pack, gaps at most ``RANGE_COALESCE_GAP_BYTES``, at most
    ``RANGE_REQUEST_MAX_BYTES`` in all."""
    ranges: list[_Range] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.at):
        pack, start, length = chunk.at
        end = start + length
        last = ranges[-1] if ranges else None
        if (
            last is not None
            and last.pack == pack
            and start <= last.end + RANGE_COALESCE_GAP_BYTES
            and end - last.start <= RANGE_REQUEST_MAX_BYTES
        ):
            last.chunks.append(chunk)
            ranges[-1] = last._replace(end=max(end, last.end))
        else:
            ranges.append(_Range(pack, start, end, [chunk]))
    return ranges


class Fetcher:
    """Fetches chunks for one pull.

    Args:
        transport: the server.
        workers: threads to decompress and hash on.
        tasks: runs the requests; a failure ends the pull.
        relocate: asked when a pack is gone.
        find_locally: looks for chunks that have a hint; None where there is nowhere to look.
    """

    def __init__(
        self,
        transport: Transport,
        workers: Workers,
        tasks: asyncio.TaskGroup,
        relocate: Relocate,
        find_locally: FindLocally | None = None,
    ) -> None:
        self._transport = transport
        self._workers = workers
        self._tasks = tasks
        self._relocate = relocate
        self._find_locally = find_locally
        self.found_bytes = 0
        """Plain bytes of the chunks that were not fetched because they were found by their hints."""
        self._live: WeakValueDictionary[bytes, Chunk] = WeakValueDictionary()
        self._wanted: list[Chunk] = []
        self._slots = asyncio.Semaphore(REQUESTS_MAX)
        self.wanted_bytes = 0
        """Plain bytes of the chunks that were wanted since :meth:`start`."""

    def want(
        self, id: ChunkId, length: int, at: ChunkAt, page: PageDigest, hint: tuple[bytes, int] | None = None
    ) -> Chunk:
        """Note that a chunk is needed; it is fetched at the next :meth:`start`.

        Args:
            id: the chunk.
            length: its plain length, as its layout says.
            at: where it lies.
            page: the page or blob whose record says so.
            hint: path and offset at which a seed may have it.
        """
        chunk = self._live.get(id)
        if chunk is None:
            chunk = self._live[id] = Chunk(id, length, at, page)
            chunk.hint = hint if self._find_locally is not None else None
            self._wanted.append(chunk)
            self.wanted_bytes += length
        elif chunk.length != length:
            raise MalformedDocument(f"two layouts disagree on the length of {id}: {chunk.length} and {length}")
        return chunk

    def start(self) -> None:
        """Begin to fetch all that was wanted."""
        wanted, self._wanted, self.wanted_bytes = self._wanted, [], 0
        for group in _group(chunk for chunk in wanted if chunk.hint is not None):
            self._expect(group, self._find_or_fetch(group))
        for part in plan_ranges(chunk for chunk in wanted if chunk.hint is None):
            self._expect(part.chunks, self._fetch(part))

    def _expect(self, chunks: Sequence[Chunk], work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.create_task(work)
        for chunk in chunks:
            chunk.arrival = task

    async def _find_or_fetch(self, chunks: Sequence[Chunk]) -> None:
        assert self._find_locally is not None, "only then there are hints"
        missing = await self._workers.run(self._find_locally, chunks)
        self.found_bytes += sum(chunk.length for chunk in chunks) - sum(chunk.length for chunk in missing)
        await asyncio.gather(*(self._fetch(part) for part in plan_ranges(missing)))

    async def _fetch(self, part: _Range) -> None:
        async with self._slots:
            try:
                await self._fetch_range(part)
            except (PackNotFound, DamagedObject) as fault:
                await self._find_again(part, fault)

    async def _find_again(self, part: _Range, fault: CasstoreError) -> None:
        """Ask where the chunks lie now: packs are rewritten, and what is damaged may have been stored anew elsewhere."""
        try:
            found = await self._relocate({chunk.page for chunk in part.chunks})
        except NotFound:
            raise fault from None
        before = [chunk.at for chunk in part.chunks]
        for chunk in part.chunks:
            if chunk.id not in found:
                raise LayoutsReplaced(fault) from None
            chunk.at = found[chunk.id]
        if [chunk.at for chunk in part.chunks] == before:
            raise fault
        # A second time is once too often: then it is not that the pack was rewritten.
        for moved in plan_ranges(part.chunks):
            await self._fetch_range(moved)

    async def _fetch_range(self, part: _Range) -> None:
        for chunk in part.chunks:
            _verify_place(chunk)
        data = await self._transport.read_range(
            f"/v1/packs/{part.pack}", part.start, part.end, step="ranges", media=MEDIA_PACK
        )
        await asyncio.gather(
            *(self._workers.run(_open_chunks, data, part.start, group) for group in _group(part.chunks))
        )


def _group(chunks: Iterable[Chunk]) -> list[list[Chunk]]:
    """Cut into what one thread does at a time."""
    groups: list[list[Chunk]] = []
    size = _DECODE_BYTES
    for chunk in chunks:
        if size >= _DECODE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(chunk)
        size += chunk.at.stored_length
    return groups


def _verify_place(chunk: Chunk) -> None:
    _, offset, stored_length = chunk.at
    if not FRAME_HEADER_BYTES < stored_length <= FRAME_HEADER_BYTES + CHUNK_MAX_BYTES:
        raise ProtocolError(f"the server says that {chunk.id} lies in {stored_length} bytes: no chunk does")
    if offset + stored_length > PACK_SIZE_MAX_BYTES:
        raise ProtocolError(f"the server says that {chunk.id} lies at {offset}: no pack is that large")


def _open_chunks(data: bytes, start: int, chunks: Sequence[Chunk]) -> None:
    """Decode and verify chunks out of the bytes of a range that begins at ``start``."""
    view = memoryview(data)
    for chunk in chunks:
        pack, offset, stored_length = chunk.at
        try:
            frame = decode_frame(view[offset - start : offset - start + stored_length], offset)
            if frame.kind is not ObjectKind.CHUNK or frame.id != chunk.id:
                raise MalformedDocument(f"there is the {frame.kind.name} {frame.id.hex()} instead")
            if frame.plain_length != chunk.length:
                raise MalformedDocument(f"it has {frame.plain_length} bytes, its layout says {chunk.length}")
            chunk.plain = open_frame(frame)
        except (DamagedObject, MalformedDocument, TooLarge) as error:
            raise DamagedObject(
                f"the chunk {chunk.id} did not arrive whole from pack {pack} at offset {offset}: {error.detail}",
                hint="the server was told; push what needs it again, or have its operator run `casstore repair`",
                object=str(chunk.id),
                where=f"pack {pack} offset {offset}",
                expected=str(chunk.id),
                found=error.fields.get("found"),
            ) from error
