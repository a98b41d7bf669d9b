"""Sends what a server lacks: asks which objects are missing, packs those, uploads the packs.

Owns the middle of a push.  Everything here overlaps: while one batch of ids is asked about, the answer to the one before is
being compressed, and packs before that are on their way.  Bounded by three numbers: the byte budget of plain content, the
objects that are gathered for one question, and the packs that are in flight.

# ORDER: nothing here depends on anything else here.  A page may arrive before its chunks: the server reports a page as
present, and commits a tree, only when all that it needs is there.

Chunks whose bytes were not read are asked about like the others; their bytes are read, within the budget, once they are missed.

A pack is kept until the server has acknowledged it, so a broken connection costs one more upload of the same pack, which
the server recognises by its id.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from casstore.formats.pack import ObjectKind, PackEncoder, seal_frame
from casstore.ids import PackId, PushId
from casstore.limits import MIB, PACK_TARGET_BYTES
from casstore.wire import (
    BundleRun,
    FileRun,
    Runs,
    encode_runs,
)
from casstore.wire.runs import LENGTH_MAX_BYTES
from casstore_client.assemble import NewChunk, SealedPage
from casstore_client.push_api import find_missing, send_pack
from casstore_client.transport import Transport
from casstore_client.workers import Budget, Workers

ASK_IDS: Final = 4096
ASK_BYTES: Final = 8 * MIB
ASK_PAGES: Final = 256
ASK_PAGES_BYTES: Final = 4 * MIB
SEAL_BYTES: Final = 2 * MIB  # plain bytes that one thread compresses at a time
UNREAD_FILES_MAX: Final = 32_768  # LIMIT: files behind unread chunks that are held at once, some 400 bytes each
ASK_UNREAD_FILES: Final = UNREAD_FILES_MAX // 4
UPLOADS_MAX: Final = 3

Object: TypeAlias = tuple[ObjectKind, bytes, bytes]
"""Kind, id, plain bytes."""


class Sealed(NamedTuple):
    """A pack that is ready to go."""

    pack: PackId
    parts: list[bytes]
    size: int
    frames: int
    runs: bytes
    """What the server is told in front of it: which pieces of its chunks are files."""


class _RunsBuilder:
    """Gathers the file runs of a pack."""

    def __init__(self) -> None:
        self._bundles: list[BundleRun] = []
        self._places: list[tuple[int, int, bool, bytes]] = []

    def add(self, chunk: NewChunk) -> None:
        if chunk.lengths and max(chunk.lengths) <= LENGTH_MAX_BYTES:
            self._bundles.append(BundleRun(chunk.id, chunk.lengths))
        elif chunk.place is not None:
            self._places.append((*chunk.place, chunk.id))

    def encode(self) -> bytes:
        files: list[FileRun] = []
        chunks: list[bytes] = []
        for file, ordinal, last, chunk in sorted(self._places):
            run = files[-1] if files else None
            if run is None or run.last or run.file != file or run.ordinal + len(chunks) != ordinal:
                chunks = []
                files.append(FileRun(file, ordinal, last, chunks))
            chunks.append(chunk)
            files[-1] = files[-1]._replace(last=last)
        return encode_runs(Runs(self._bundles, files))


class PackBuilder:
    """Compresses objects and gathers them into packs of about ``PACK_TARGET_BYTES``.

    Threads: any number at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._encoder: PackEncoder | None = None
        self._parts: list[bytes] = []
        self._runs = _RunsBuilder()
        self.objects = 0
        """How many objects were put in, over all packs."""

    def put(self, objects: Sequence[Object], chunks: Sequence[NewChunk] = ()) -> list[Sealed]:
        """Compress objects and put them into packs; returns the packs that became full.

        Args:
            objects: what goes in.
            chunks: those of them of which the server is told which files they hold.
        """
        runs: dict[bytes, NewChunk] = {chunk.id: chunk for chunk in chunks}
        squeezed = [
            (kind, object_id, *seal_frame(kind, object_id, plain), len(plain)) for kind, object_id, plain in objects
        ]
        full: list[Sealed] = []
        with self._lock:
            self.objects += len(squeezed)
            for kind, object_id, codec, stored, plain_length in squeezed:
                encoder = self._encoder
                if encoder is not None and not encoder.fits(len(stored)):
                    full.append(self._seal(encoder))
                    encoder = None
                if encoder is None:
                    encoder = self._encoder = PackEncoder(PackId(os.urandom(16)))
                    self._parts = [encoder.header()]
                self._parts.append(encoder.add(kind, object_id, codec, stored, plain_length))
                if kind is ObjectKind.CHUNK and object_id in runs:
                    self._runs.add(runs[object_id])
                if encoder.size >= PACK_TARGET_BYTES:
                    full.append(self._seal(encoder))
        return full

    def finish(self) -> list[Sealed]:
        """The last pack, if anything is left for one."""
        with self._lock:
            return [self._seal(self._encoder)] if self._encoder is not None else []

    def _seal(self, encoder: PackEncoder) -> Sealed:
        self._parts.append(encoder.finish())
        sealed = Sealed(encoder.pack, self._parts, encoder.size, len(encoder.frames), self._runs.encode())
        self._encoder, self._parts, self._runs = None, [], _RunsBuilder()
        return sealed


class Sent:
    """What a push had to send, counted as it goes."""

    def __init__(self) -> None:
        self.chunks = 0
        self.chunk_bytes = 0
        """Plain bytes of the chunks that the server lacked."""
        self.pages = 0
        self.packs = 0
        self.pack_bytes = 0


class Uploader:
    """The sending side of one push.

    Args:
        transport: the server.
        push: the push's random id.
        workers: threads to compress on.
        budget: from which the offered chunks' bytes were taken; given back once they are not held plain any more.
        work: runs the tasks that ask and compress.
        uploads: runs the tasks that upload; outlives ``work``.
    """

    def __init__(
        self,
        transport: Transport,
        push: PushId,
        *,
        workers: Workers,
        budget: Budget,
        work: asyncio.TaskGroup,
        uploads: asyncio.TaskGroup,
    ) -> None:
        self.sent = Sent()
        self.builder = PackBuilder()
        self._transport = transport
        self._push = push
        self._workers = workers
        self._budget = budget
        self._work = work
        self._uploads = uploads
        self._asked = False
        self._held_back: list[Sealed] = []
        self._slots = asyncio.Semaphore(UPLOADS_MAX)
        self._page_turn = asyncio.Semaphore(2)
        self._broken: set[int] = set()  # large files of which a chunk is not sent
        self._unread = Budget(UNREAD_FILES_MAX)
        self._unread_files = 0  # among the gathered chunks
        self._chunks: list[NewChunk] = []
        self._chunk_bytes = 0
        self._pages: list[SealedPage] = []
        self._page_bytes = 0

    async def offer_chunks(self, chunks: Sequence[NewChunk]) -> None:
        """Take chunks to send if they are missing; waits while too many are held unread."""
        for chunk in chunks:
            if isinstance(chunk.data, bytes):
                self._chunk_bytes += len(chunk.data)
            else:
                if not self._unread.has(chunk.data.files):
                    self._ask_chunks()  # ORDER: nothing that this waits for may wait for it
                await self._unread.acquire(chunk.data.files)
                self._unread_files += chunk.data.files
            self._chunks.append(chunk)
            if self._chunk_bytes >= ASK_BYTES or len(self._chunks) >= ASK_IDS or self._unread_files >= ASK_UNREAD_FILES:
                self._ask_chunks()

    async def offer_pages(self, pages: Sequence[SealedPage]) -> None:
        """Take pages to send if they are missing; waits while too many are held."""
        for page in pages:
            self._pages.append(page)
            self._page_bytes += len(page.data) + len(page.layout)
            if self._page_bytes >= ASK_PAGES_BYTES or len(self._pages) >= ASK_PAGES:
                await self._ask_pages()

    async def flush(self) -> None:
        """Ask about what was gathered and is not enough for a question of its own."""
        self._ask_chunks()
        await self._ask_pages()

    async def finish(self, last: Sequence[Object]) -> None:
        """Send what is left, and ``last`` with it: root or layout.  Only after everything else was packed.

        If nothing at all was missing, ``last`` is held back: see :attr:`held_back`.
        """
        nothing_missing = self._asked and self.builder.objects == 0
        sealed = [*await self._workers.run(self.builder.put, last, ()), *self.builder.finish()]
        if nothing_missing:
            self._held_back = sealed
            return
        for pack in sealed:
            await self._start_upload(pack)

    @property
    def held_back(self) -> bool:
        """Whether the server said that it had everything, so that the last pack may not be needed either."""
        return bool(self._held_back)

    async def send_held_back(self) -> None:
        """It is needed: send it, and wait for the answer."""
        for pack in self._held_back:
            await self._slots.acquire()
            await self._upload(pack)
        self._held_back = []

    async def missing(self, kind: Literal["chunk", "page"], ids: Sequence[bytes]) -> list[bool]:
        """For each id whether the server lacks it.

        Raises:
            As :meth:`Transport.request`.
        """
        self._asked = True
        return await find_missing(self._transport, self._push, kind, ids)

    def _ask_chunks(self) -> None:
        if self._chunks:
            chunks, self._chunks, self._chunk_bytes, self._unread_files = self._chunks, [], 0, 0
            self._work.create_task(self._send_chunks(chunks))

    async def _ask_pages(self) -> None:
        if self._pages:
            # LIMIT: pages have no budget; at most two batches of them are held beside the one that is gathered.
            await self._page_turn.acquire()
            pages, self._pages, self._page_bytes = self._pages, [], 0
            self._work.create_task(self._send_pages(pages))

    async def _send_chunks(self, chunks: list[NewChunk]) -> None:
        flags = await self.missing("chunk", [chunk.id for chunk in chunks])
        self._broken.update(
            chunk.place.file for chunk, flag in zip(chunks, flags, strict=True) if not flag and chunk.place is not None
        )
        group: list[NewChunk] = []
        size = 0
        for chunk, flag in zip(chunks, flags, strict=True):
            if not flag:
                self._let_go(chunk)
                continue
            length = len(chunk.data) if isinstance(chunk.data, bytes) else chunk.data.length
            group.append(chunk)
            size += length
            self.sent.chunks += 1
            self.sent.chunk_bytes += length
            if size >= SEAL_BYTES:
                self._work.create_task(self._pack_chunks(group, size))
                group, size = [], 0
        if group:
            self._work.create_task(self._pack_chunks(group, size))

    def _let_go(self, chunk: NewChunk) -> None:
        if isinstance(chunk.data, bytes):
            self._budget.release(len(chunk.data))
        else:
            self._unread.release(chunk.data.files)

    async def _pack_chunks(self, chunks: Sequence[NewChunk], size: int) -> None:
        told = [chunk for chunk in chunks if chunk.place is None or chunk.place.file not in self._broken]
        unread = sum([chunk.data.length for chunk in chunks if not isinstance(chunk.data, bytes)])
        if unread:
            # ORDER: what holds bytes meanwhile (a batch, an open bundle, one gathered question) is far below the whole budget
            # and gets rid of them without taking more.  So this waits, and never for ever.
            await self._budget.acquire(unread)
            objects = await self._workers.run(_read_unread, chunks)
        else:
            objects = _read_unread(chunks)
        for chunk in chunks:
            if not isinstance(chunk.data, bytes):
                self._unread.release(chunk.data.files)
        await self._pack(objects, told)
        self._budget.release(size)

    async def _send_pages(self, pages: list[SealedPage]) -> None:
        try:
            flags = await self.missing("page", [page.digest for page in pages])
            objects: list[Object] = []
            for page, flag in zip(pages, flags, strict=True):
                if flag:
                    self.sent.pages += 1
                    objects.append((ObjectKind.PAGE, page.digest, page.data))
                    objects.append((ObjectKind.LAYOUT, page.digest, page.layout))
            if objects:
                await self._pack(objects)
        finally:
            self._page_turn.release()

    async def _pack(self, objects: Sequence[Object], chunks: Sequence[NewChunk] = ()) -> None:
        for sealed in await self._workers.run(self.builder.put, objects, chunks):
            await self._start_upload(sealed)

    async def _start_upload(self, sealed: Sealed) -> None:
        """Wait for a free slot, then upload a pack beside what goes on."""
        await self._slots.acquire()
        self._uploads.create_task(self._upload(sealed))

    async def _upload(self, sealed: Sealed) -> None:
        try:
            await send_pack(
                self._transport, self._push, sealed.pack, sealed.parts, frames=sealed.frames, runs=sealed.runs
            )
            self.sent.packs += 1
            self.sent.pack_bytes += sealed.size
        finally:
            self._slots.release()


def _read_unread(chunks: Sequence[NewChunk]) -> list[Object]:
    return [
        (ObjectKind.CHUNK, chunk.id, chunk.data if isinstance(chunk.data, bytes) else chunk.data.read())
        for chunk in chunks
    ]
