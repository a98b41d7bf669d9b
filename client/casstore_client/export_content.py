"""The content of an export: from a server's packs into packs of the export, in the order of the content.

Owns the walk through a tree's pages and a blob's layout, the fetching of chunks, and the packs that are written.  Everything is
held against its id before it is written.  Frames of chunks pass as they are stored.

Memory: ``WINDOW_BYTES`` of chunks, one page with its layout, one pack; 100 bytes for each chunk that was written.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

from casstore.errors import DamagedObject, MalformedDocument, PackNotFound
from casstore.formats.export import Member, pack_id, pack_name
from casstore.formats.layout import Layout, decode_layout, verify_layout_fits
from casstore.formats.pack import (
    FRAME_HEADER_BYTES,
    Codec,
    ObjectKind,
    PackEncoder,
    decode_frame,
    open_frame,
    seal_frame,
)
from casstore.formats.tree import EMPTY_DIGEST, EntryType, TreeEntry, TreeVerifier
from casstore.hashing import Blake3Hasher
from casstore.ids import BlobDigest, PackId, PageDigest, TreeDigest
from casstore.limits import (
    CHUNK_MAX_BYTES,
    LAYOUT_SIZE_MAX_BYTES,
    MIB,
    PACK_SIZE_MAX_BYTES,
    PACK_TARGET_BYTES,
    PAGES_REQUEST_MAX,
    RANGE_COALESCE_GAP_BYTES,
    RANGE_REQUEST_MAX_BYTES,
    ROOT_SIZE_MAX_BYTES,
)
from casstore.wire import (
    LOCATIONS_MAX_BYTES,
    MEDIA_PACK,
    MEDIA_PAGES,
    MEDIA_TREE,
    ChunkAt,
    PageRecord,
    PageRecordDecoder,
)
from casstore_client.archive import ArchiveWriter
from casstore_client.errors import ProtocolError
from casstore_client.pages import stream_records
from casstore_client.transport import Transport
from casstore_client.workers import Workers

WINDOW_BYTES: Final = 16 * MIB
REQUESTS_MAX: Final = 4


async def fetch_root_document(transport: Transport, digest: TreeDigest) -> tuple[TreeVerifier, bytes]:
    """A tree's root: to verify its pages with, and its bytes.

    Raises:
        TreeNotFound: the server has no such tree.
        DigestMismatch, MalformedDocument: what it sends is not that tree's root.
    """
    reply = await transport.request(
        "GET", f"/v1/trees/{digest}", step="tree", media=MEDIA_TREE, max_bytes=ROOT_SIZE_MAX_BYTES
    )
    return TreeVerifier(reply.body, digest), reply.body


async def fetch_blob_record(transport: Transport, digest: BlobDigest) -> PageRecord:
    """A blob's layout and the places of its chunks.

    Raises:
        BlobNotFound: the server has no such blob.
        ProtocolError, MalformedDocument: not a blob's record.
    """
    limit = 64 + LAYOUT_SIZE_MAX_BYTES + LOCATIONS_MAX_BYTES
    reply = await transport.request(
        "GET", f"/v1/blobs/{digest}/layout", step="blob", media=MEDIA_PAGES, max_bytes=limit
    )
    decoder = PageRecordDecoder()
    records = decoder.feed(reply.body)
    decoder.finish()
    if len(records) != 1 or records[0].page:
        raise ProtocolError(f"the layout of the blob {digest} came as {len(records)} records, or with a page")
    return records[0]


class MemberWriter:
    """Writes members, and packs that it fills with objects.

    Args:
        archive: where they go.
        workers: one of whose threads writes.
        manifest: the bytes of the first member, by which the packs are named.
    """

    def __init__(self, archive: ArchiveWriter, workers: Workers, manifest: bytes) -> None:
        self.members: list[Member] = []
        self.objects: Counter[str] = Counter()
        self._archive = archive
        self._workers = workers
        self._manifest = manifest
        self._packs = 0
        self._encoder: PackEncoder | None = None
        self._parts: list[bytes] = []

    async def add(self, name: str, parts: Sequence[bytes]) -> None:
        """Write a member."""
        await self._workers.run_light(self._add, name, parts)

    def _add(self, name: str, parts: Sequence[bytes]) -> None:
        hasher = Blake3Hasher()
        for part in parts:
            hasher.update(part)
        self._archive.add(name, parts)
        self.members.append(Member(name, sum(map(len, parts)), hasher.digest()))

    async def put(self, kind: ObjectKind, id: bytes, codec: Codec, stored: bytes, plain_length: int) -> None:
        """Write an object into the pack that is being filled."""
        if self._encoder is not None and not self._encoder.fits(len(stored)):
            await self.finish()
        if self._encoder is None:
            self._encoder = PackEncoder(pack_id(self._manifest, self._packs))
            self._parts = [self._encoder.header()]
        self._parts.append(self._encoder.add(kind, id, codec, stored, plain_length))
        self.objects[kind.name.lower()] += 1
        if self._encoder.size >= PACK_TARGET_BYTES:
            await self.finish()

    async def finish(self) -> None:
        """Write the pack that is being filled, if there is one."""
        if self._encoder is not None:
            encoder, parts = self._encoder, self._parts
            self._encoder, self._parts = None, []
            parts.append(encoder.finish())
            await self.add(pack_name(self._packs), parts)
            self._packs += 1


class _Wanted(NamedTuple):
    """A chunk that is to be fetched."""

    id: bytes
    plain_length: int
    at: ChunkAt


class _Stored(NamedTuple):
    """A chunk as its frame stores it."""

    codec: Codec
    stored: bytes


class ContentExport:
    """Walks through trees and blobs, each object once.

    Args:
        transport: the server.
        workers: threads to decode and hash on.
        out: where objects go.
        had: pages and chunks that the other side has; what is written joins them.
    """

    def __init__(self, transport: Transport, workers: Workers, out: MemberWriter, had: set[bytes]) -> None:
        self._transport = transport
        self._workers = workers
        self._out = out
        self._known = had
        self._base = frozenset(had)
        self._window: list[_Wanted] = []
        self._window_bytes = 0
        self.left_out = 0
        """Pages and chunks of the base that were needed and not written."""

    async def tree(self, digest: TreeDigest) -> None:
        """Write a tree.

        Raises:
            As :func:`casstore_client.export.export`.
        """
        verifier, root = await fetch_root_document(self._transport, digest)
        await self._put_plain(ObjectKind.ROOT, digest, root)
        taken = 0

        async def rest() -> None:
            nonlocal taken
            wanted = [ref.digest for ref in verifier.pages[taken : taken + PAGES_REQUEST_MAX]]
            async with aclosing(stream_records(self._transport, digest, wanted)) as stream:
                async for records in stream:
                    for record in records:
                        entries = await self._workers.run_light(verifier.add_page, record.page)
                        page = verifier.pages[taken].digest
                        taken += 1
                        await self._page(digest, page, entries, record)

        while taken < len(verifier.pages):
            before = taken
            # After a broken connection the next request asks only for what has not come yet.
            await self._transport.repeat(rest, True)
            if taken == before:
                raise ProtocolError(f"the server sent none of the pages of {digest} that were asked for")
        verifier.finish()

    async def _page(self, tree: TreeDigest, page: PageDigest, entries: Sequence[TreeEntry], record: PageRecord) -> None:
        if page in self._known:
            self.left_out += page in self._base
            return
        self._known.add(page)
        layout = await self._layout(entries, record)
        await self._put_plain(ObjectKind.PAGE, page, record.page)
        await self._put_plain(ObjectKind.LAYOUT, page, record.layout)

        async def relocate() -> PageRecord:
            async with aclosing(stream_records(self._transport, tree, [page])) as stream:
                async for records in stream:
                    return records[0]
            raise ProtocolError(f"the server sent no page for {page}")

        await self._chunks(layout, record, relocate)

    async def blob(self, digest: BlobDigest) -> None:
        """Write a blob.

        Raises:
            As :func:`casstore_client.export.export`.
        """
        record = await fetch_blob_record(self._transport, digest)
        rows = (await self._workers.run_light(decode_layout, record.layout)).files
        size = sum(extent.length for extent in rows[0]) if rows else 0
        if not size and digest != EMPTY_DIGEST:
            raise MalformedDocument(f"the layout of {digest} says that it is empty, its digest says otherwise")
        layout = await self._layout([TreeEntry(b"", EntryType.FILE, 0o644, size, digest)], record)
        await self._put_plain(ObjectKind.LAYOUT, digest, record.layout)
        await self._chunks(layout, record, lambda: fetch_blob_record(self._transport, digest))

    async def _layout(self, entries: Sequence[TreeEntry], record: PageRecord) -> Layout:
        layout = await self._workers.run_light(decode_layout, record.layout)
        verify_layout_fits(layout, entries)
        if len(record.chunks) != len(layout.chunks):
            raise MalformedDocument(f"a layout of {len(layout.chunks)} chunks came with {len(record.chunks)} places")
        return layout

    async def _put_plain(self, kind: ObjectKind, id: bytes, plain: bytes) -> None:
        codec, stored = await self._workers.run(seal_frame, kind, id, plain)
        await self._out.put(kind, id, codec, bytes(stored), len(plain))

    # --- chunks --------------------------------------------------------------------------------------------------------

    async def _chunks(self, layout: Layout, record: PageRecord, relocate: Callable[[], Awaitable[PageRecord]]) -> None:
        for (chunk, length), at in zip(layout.chunks, record.chunks, strict=True):
            if chunk in self._known:
                self.left_out += chunk in self._base
                continue
            self._known.add(chunk)
            self._window.append(_Wanted(chunk, length, at))
            self._window_bytes += at.stored_length
            if self._window_bytes >= WINDOW_BYTES:
                await self._flush(relocate)
        # ORDER: before the next page, whose packs may lie elsewhere; and so the order of what is written does not depend on
        # where the server keeps it.
        await self._flush(relocate)

    async def _flush(self, relocate: Callable[[], Awaitable[PageRecord]]) -> None:
        window, self._window, self._window_bytes = self._window, [], 0
        if not window:
            return
        try:
            found = await self._fetch(window)
        except PackNotFound:
            # A pack was rewritten meanwhile: its chunks lie elsewhere.  A second time is once too often.
            record = await relocate()
            places: dict[bytes, ChunkAt] = dict(
                zip((id for id, _ in decode_layout(record.layout).chunks), record.chunks, strict=True)
            )
            found = await self._fetch([wanted._replace(at=places[wanted.id]) for wanted in window])
        for id, length, _ in window:
            await self._out.put(ObjectKind.CHUNK, id, *found[id], length)

    async def _fetch(self, window: Sequence[_Wanted]) -> Mapping[bytes, _Stored]:
        found: dict[bytes, _Stored] = {}
        slots = asyncio.Semaphore(REQUESTS_MAX)

        async def fetch(pack: PackId, part: Sequence[_Wanted]) -> None:
            start, end = part[0].at.offset, max(wanted.at.offset + wanted.at.stored_length for wanted in part)
            async with slots:
                data = await self._transport.read_range(
                    f"/v1/packs/{pack}", start, end, step="ranges", media=MEDIA_PACK
                )
            found.update(await self._workers.run(_open_chunks, data, start, part))

        # All of them end before the error goes on: what is asked again must not race with what was asked before.
        done = await asyncio.gather(*(fetch(pack, part) for pack, part in _ranges(window)), return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
        return found


def _ranges(window: Sequence[_Wanted]) -> list[tuple[PackId, list[_Wanted]]]:
    """Chunks that lie near each other in one pack come in one request."""
    ranges: list[tuple[PackId, list[_Wanted]]] = []
    end = start = 0
    for wanted in sorted(window, key=lambda wanted: wanted.at):
        pack, offset, length = wanted.at
        if not FRAME_HEADER_BYTES < length <= FRAME_HEADER_BYTES + CHUNK_MAX_BYTES:
            raise ProtocolError(f"the server says that {wanted.id.hex()} lies in {length} bytes: no chunk does")
        if offset + length > PACK_SIZE_MAX_BYTES:
            raise ProtocolError(f"the server says that {wanted.id.hex()} lies at {offset}: no pack is that large")
        near = ranges and ranges[-1][0] == pack and offset <= end + RANGE_COALESCE_GAP_BYTES
        if near and offset + length - start <= RANGE_REQUEST_MAX_BYTES:
            ranges[-1][1].append(wanted)
            end = max(end, offset + length)
        else:
            ranges.append((pack, [wanted]))
            start, end = offset, offset + length
    return ranges


def _open_chunks(data: bytes, start: int, wanted: Sequence[_Wanted]) -> dict[bytes, _Stored]:
    """Verify chunks out of a range of a pack, and keep them as they are stored."""
    view = memoryview(data)
    found: dict[bytes, _Stored] = {}
    for id, length, (pack, offset, stored_length) in wanted:
        try:
            frame = decode_frame(view[offset - start : offset - start + stored_length], offset)
            if frame.kind is not ObjectKind.CHUNK or frame.id != id or frame.plain_length != length:
                raise MalformedDocument(f"there is the {frame.kind.name} {frame.id.hex()} instead")
            open_frame(frame)
        except (DamagedObject, MalformedDocument) as error:
            raise DamagedObject(
                f"the chunk {id.hex()} did not arrive whole from pack {pack} at offset {offset}: {error.detail}",
                hint="run `casstore fsck --full` on the server",
                object=f"chunk blake3:{id.hex()}",
                where=f"pack {pack} offset {offset}",
                expected=id.hex(),
                found=error.fields.get("found"),
            ) from error
        found[id] = _Stored(frame.codec, bytes(frame.stored))
    return found
