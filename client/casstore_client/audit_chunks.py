"""The chunks and files of an audit: in the quick form their places, in the full form every byte.

Owns what becomes of the layouts that level 7 meets.  Full: every chunk is fetched, decompressed and hashed, every file is put
together and hashed.  A damaged chunk is a finding that names the chunk, its pack and offset and somebody who needs it; the files
that it breaks are not named again, and everything else goes on.

# ORDER: a window's chunks are fetched while the window before is hashed; windows are hashed one after the other, so a large file
that spans windows is hashed in order.

Memory: ``WINDOWS_MAX`` windows of ``WINDOW_BYTES``; a set of chunk ids and one of files (at most ``FILES_KNOWN_MAX``).
A chunk that two distant files share is fetched once for each; a file that another release has in the same place is not hashed twice.

Threads: decoding and hashing run on threads, which release the interpreter's lock; the rest on the loop's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from casstore.errors import AccessError, CasstoreError, DamagedObject, InvalidInput, MalformedDocument, Unavailable
from casstore.formats.layout import Extent
from casstore.formats.pack import (
    FRAME_HEADER_BYTES,
    PACK_HEADER_BYTES,
    PACK_MAGIC,
    ObjectKind,
    decode_frame,
    open_frame,
)
from casstore.formats.tree import EMPTY_DIGEST, EntryType, TreeEntry
from casstore.hashing import Blake3Hasher
from casstore.ids import ChunkId, PackId, SnapshotDigest
from casstore.limits import CHUNK_MAX_BYTES, MIB, PACK_SIZE_MAX_BYTES
from casstore.wire import MEDIA_PACK, ChunkAt
from casstore_client.audit_report import AFFECTED_MAX, Affected, AuditFinding, Findings, affected
from casstore_client.errors import ProtocolError, TransportError
from casstore_client.fetch import REQUESTS_MAX, Chunk, plan_ranges
from casstore_client.pages import Page
from casstore_client.transport import Transport
from casstore_client.workers import Workers

LEVEL: Final = 7
WINDOW_BYTES: Final = 16 * MIB
WINDOWS_MAX: Final = 3
FILES_KNOWN_MAX: Final = 2_000_000  # LIMIT: beyond it files are hashed again for each page that they are on


class Needs(NamedTuple):
    """Who needs what is being looked at."""

    snapshot: SnapshotDigest
    component: str
    entry: int
    """The log index that published the snapshot."""

    def affected(self, paths: Sequence[bytes]) -> list[Affected]:
        """As a finding names it."""
        return affected(str(self.snapshot), self.component, paths)


class _Wanted(Chunk):
    """A chunk on its way, and for whom."""

    __slots__ = ("bad", "needs", "needy")

    def __init__(self, id: ChunkId, length: int, at: ChunkAt, needs: Needs, needy: Page) -> None:
        super().__init__(id, length, at, needy.digest)
        self.needs = needs
        self.needy = needy
        self.bad = False


class _File:
    """A file that is being hashed."""

    def __init__(self, entry: TreeEntry, needs: Needs) -> None:
        self.entry = entry
        self.needs = needs
        self.hasher = Blake3Hasher()
        self.broken = False


class _Run(NamedTuple):
    """Part of a file, in order."""

    file: _File
    parts: list[tuple[_Wanted, int, int]]
    final: bool


class ChunkAudit:
    """Looks at the chunks and files of pages.

    Args:
        transport: the server.
        workers: threads to decode and hash on.
        tasks: runs the work; ends when all of it is done.
        findings: gets what does not hold.
        full: fetch and hash everything.
    """

    def __init__(
        self, transport: Transport, workers: Workers, tasks: asyncio.TaskGroup, findings: Findings, *, full: bool
    ) -> None:
        self._transport = transport
        self._workers = workers
        self._tasks = tasks
        self._findings = findings
        self._full = full
        self._slots = asyncio.Semaphore(WINDOWS_MAX)
        self._requests = asyncio.Semaphore(REQUESTS_MAX)
        self._live: WeakValueDictionary[bytes, _Wanted] = WeakValueDictionary()
        self._previous: asyncio.Task[None] | None = None
        self._window: list[_Run] = []
        self._wanted: list[_Wanted] = []
        self._wanted_bytes = 0
        self._packs: set[PackId] = set()
        self._known: set[int] = set()
        self._reported: set[bytes] = set()
        self.chunks: set[bytes] = set()
        """The distinct chunks that were looked at."""
        self.files = 0
        """Files that were put together."""
        self.bytes = 0
        """Plain bytes of chunks that were fetched."""

    async def take(self, needs: Needs, page: Page) -> None:
        """Look at a page, or at the one file that a blob is; waits while too much is under way."""
        self._check_places(needs, page)
        if not self._full:
            await self._check_packs(needs, page)
            return
        rows = iter(page.layout.files)
        for entry in page.entries:
            if entry.type is not EntryType.FILE:
                continue
            if entry.size:
                await self._take_file(needs, page, entry, next(rows))
            elif entry.digest != EMPTY_DIGEST:
                self._report_file(_File(entry, needs), str(EMPTY_DIGEST))

    async def finish(self) -> None:
        """Say that no more pages come; what is under way goes on in the task group."""
        await self._begin_window()

    # --- places ------------------------------------------------------------------------------------------------------

    def _check_places(self, needs: Needs, page: Page) -> None:
        for (id, _), (pack, offset, length) in zip(page.layout.chunks, page.chunks, strict=True):
            self.chunks.add(id)
            fits = FRAME_HEADER_BYTES < length <= FRAME_HEADER_BYTES + CHUNK_MAX_BYTES
            if not fits or offset < PACK_HEADER_BYTES or offset + length > PACK_SIZE_MAX_BYTES:
                error = ProtocolError(f"it is said to have {length} bytes there: no frame has")
                self._report_chunk(_Wanted(id, 0, ChunkAt(pack, offset, length), needs, page), error)

    async def _check_packs(self, needs: Needs, page: Page) -> None:
        """Ask for the first bytes of every pack that is named: whether it is there at all."""
        for (id, _), at in zip(page.layout.chunks, page.chunks, strict=True):
            if at.pack in self._packs:
                continue
            self._packs.add(at.pack)
            try:
                head = await self._read(at.pack, 0, PACK_HEADER_BYTES)
                if head != PACK_MAGIC + at.pack:
                    raise DamagedObject("it does not begin as that pack does", found=head.hex())
            except CasstoreError as error:
                _raise_if_away(error)
                self._findings.add(
                    AuditFinding(
                        level=LEVEL,
                        code=error.code,
                        object=f"pack {at.pack}",
                        where=f"holds chunk {id} and others",
                        expected=f"pack {at.pack}",
                        found=error.fields.get("found") or error.detail,
                        affects=needs.affected(_paths(page, id)),
                    ),
                    needs.entry,
                )

    # --- every byte --------------------------------------------------------------------------------------------------

    async def _take_file(self, needs: Needs, page: Page, entry: TreeEntry, row: Sequence[Extent]) -> None:
        table = page.layout.chunks
        key = hash((entry.digest, *((table[extent.chunk][0], extent.offset, extent.length) for extent in row)))
        if key in self._known:
            return
        if len(self._known) < FILES_KNOWN_MAX:
            self._known.add(key)  # whatever becomes of it, it need not be found out twice
        file = _File(entry, needs)
        parts: list[tuple[_Wanted, int, int]] = []
        for ordinal, offset, length in row:
            parts.append((self._want(needs, page, ordinal), offset, length))
            if self._wanted_bytes >= WINDOW_BYTES:
                self._window.append(_Run(file, parts, False))
                parts = []
                await self._begin_window()
        self._window.append(_Run(file, parts, True))

    def _want(self, needs: Needs, page: Page, ordinal: int) -> _Wanted:
        id, length = page.layout.chunks[ordinal]
        chunk = self._live.get(id)
        if chunk is None:
            chunk = self._live[id] = _Wanted(id, length, page.chunks[ordinal], needs, page)
            chunk.bad = id in self._reported
            if not chunk.bad:
                self._wanted.append(chunk)
                self._wanted_bytes += length
        return chunk

    async def _begin_window(self) -> None:
        window, self._window = self._window, []
        wanted, self._wanted, self._wanted_bytes = self._wanted, [], 0
        if not window:
            return
        await self._slots.acquire()
        for part in plan_ranges(wanted):
            chunks = [chunk for chunk in part.chunks if isinstance(chunk, _Wanted)]
            task = self._tasks.create_task(self._fetch(chunks, part.start, part.end))
            for chunk in chunks:
                chunk.arrival = task
        self._previous = self._tasks.create_task(self._hash_window(window, self._previous))

    async def _fetch(self, chunks: Sequence[_Wanted], start: int, end: int) -> None:
        """Fetch chunks that lie side by side; what is wrong with one of them is found out one by one."""
        try:
            data = await self._read(chunks[0].at.pack, start, end)
        except CasstoreError as error:
            _raise_if_away(error)
            if len(chunks) == 1:
                self._report_chunk(chunks[0], error)
                return
            for chunk in chunks:
                await self._fetch([chunk], chunk.at.offset, chunk.at.offset + chunk.at.stored_length)
            return
        for chunk, fault in await self._workers.run(_open_chunks, data, start, chunks):
            self._report_chunk(chunk, fault)
        self.bytes += sum(len(chunk.plain) for chunk in chunks)
        self._findings.tell(LEVEL, self.bytes, None)

    async def _read(self, pack: PackId, start: int, end: int) -> bytes:
        async with self._requests:
            return await self._transport.read_range(f"/v1/packs/{pack}", start, end, step="ranges", media=MEDIA_PACK)

    async def _hash_window(self, window: list[_Run], previous: asyncio.Task[None] | None) -> None:
        try:
            arrivals = {chunk.arrival for run in window for chunk, _, _ in run.parts if chunk.arrival is not None}
            for task in (*arrivals, *([previous] if previous is not None else [])):
                await task
            for file, found in await self._workers.run(_hash_runs, window):
                self._report_file(file, found)
            for run in window:
                if run.final and not run.file.broken:
                    self.files += 1
        finally:
            self._slots.release()

    # --- findings ----------------------------------------------------------------------------------------------------

    def _report_chunk(self, chunk: _Wanted, error: CasstoreError) -> None:
        chunk.bad = True
        if chunk.id in self._reported:
            return
        self._reported.add(chunk.id)
        self._findings.add(
            AuditFinding(
                level=LEVEL,
                code=error.code,
                object=f"chunk {chunk.id}",
                where=f"pack {chunk.at.pack} offset {chunk.at.offset}",
                expected=str(chunk.id),
                found=error.fields.get("found") or error.detail,
                affects=chunk.needs.affected(_paths(chunk.needy, chunk.id)),
            ),
            chunk.needs.entry,
        )

    def _report_file(self, file: _File, found: str) -> None:
        self._findings.add(
            AuditFinding(
                level=LEVEL,
                code="damaged-object",
                object=f"file {file.entry.digest}",
                where="put together from its chunks, each of which is in order",
                expected=str(file.entry.digest),
                found=found,
                affects=file.needs.affected([file.entry.path]),
            ),
            file.needs.entry,
        )


def _raise_if_away(error: CasstoreError) -> None:
    """A server that does not answer, or not to us, says nothing about its content."""
    if isinstance(error, TransportError | Unavailable | AccessError):
        raise error


def _paths(page: Page, id: ChunkId) -> list[bytes]:
    """The first paths of a page that need a chunk."""
    ordinal = next(number for number, (chunk, _) in enumerate(page.layout.chunks) if chunk == id)

    def search() -> Iterator[bytes]:
        sized = (entry for entry in page.entries if entry.type is EntryType.FILE and entry.size)
        for entry, row in zip(sized, page.layout.files, strict=True):
            if any(extent.chunk == ordinal for extent in row):
                yield entry.path

    return [path for path, _ in zip(search(), range(AFFECTED_MAX), strict=False)]


def _open_chunks(data: bytes, start: int, chunks: Sequence[_Wanted]) -> list[tuple[_Wanted, CasstoreError]]:
    """Decode and verify chunks out of the bytes of a range that begins at ``start``; gives those that are damaged."""
    view = memoryview(data)
    damaged: list[tuple[_Wanted, CasstoreError]] = []
    for chunk in chunks:
        _, offset, length = chunk.at
        try:
            frame = decode_frame(view[offset - start : offset - start + length], offset)
            if frame.kind is not ObjectKind.CHUNK or frame.id != chunk.id or frame.plain_length != chunk.length:
                raise MalformedDocument(
                    f"there is the {frame.kind.name} {frame.id.hex()} of {frame.plain_length} bytes"
                )
            chunk.plain = open_frame(frame)
        except (DamagedObject, InvalidInput) as error:
            damaged.append((chunk, error))
    return damaged


def _hash_runs(runs: Sequence[_Run]) -> list[tuple[_File, str]]:
    """Hash the files of a window; gives those whose chunks are in order and whose whole is not, with what they hash to."""
    wrong: list[tuple[_File, str]] = []
    for file, parts, final in runs:
        for chunk, offset, length in parts:
            if chunk.bad:
                file.broken = True
            if file.broken:
                break
            file.hasher.update(memoryview(chunk.plain)[offset : offset + length])
        if final and not file.broken and file.hasher.digest() != file.entry.digest:
            file.broken = True
            wrong.append((file, "blake3:" + file.hasher.digest().hex()))
    return wrong
