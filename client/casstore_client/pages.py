"""Gets a tree's pages, and lets nobody see one before all of them were verified.

Owns steps 1 and 2 of a pull: the root, then the pages with their layouts and the places of their chunks.  A tree that breaks a
rule on its last page is refused before anything of its first page is used.

Memory: small trees stay decoded; the pages of larger ones (more than ``DECODED_ENTRIES_MAX`` entries) lie in a temporary file
without a name and are decoded again when they are used.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence, Set
from contextlib import aclosing
from typing import IO, Final, NamedTuple, Self

from casstore.errors import MalformedDocument
from casstore.formats.layout import Layout, decode_layout, verify_layout_fits
from casstore.formats.tree import (
    EntryType,
    PageRef,
    TreeEntry,
    TreeVerifier,
    decode_page,
    page_digest,
    split_root_for_path,
)
from casstore.ids import BlobDigest, PageDigest, TreeDigest
from casstore.limits import PAGES_REQUEST_MAX, ROOT_SIZE_MAX_BYTES
from casstore.wire import (
    MEDIA_IDS,
    MEDIA_PAGES,
    MEDIA_TREE,
    ChunkAt,
    PageRecord,
    PageRecordDecoder,
    encode_page_record,
)
from casstore_client.errors import ProtocolError, TransportError
from casstore_client.page_cache import PageCache
from casstore_client.transport import Transport
from casstore_client.workers import Workers

DECODED_ENTRIES_MAX: Final = 150_000  # about 100 MiB with their layouts


class Page(NamedTuple):
    """A page, its layout, and where each chunk of the layout's table lies."""

    digest: PageDigest
    entries: list[TreeEntry]
    layout: Layout
    chunks: list[ChunkAt]


async def fetch_root(transport: Transport, digest: TreeDigest) -> TreeVerifier:
    """Get and verify the root of a tree.

    Raises:
        TreeNotFound: the server has no such tree.
        DigestMismatch, MalformedDocument: what it sends is not that tree's root.
    """
    reply = await transport.request(
        "GET", f"/v1/trees/{digest}", step="tree", media=MEDIA_TREE, max_bytes=ROOT_SIZE_MAX_BYTES
    )
    return TreeVerifier(reply.body, digest)


class PageStore:
    """Pages that were verified, in order; iterate over it, as often as you like.

    Args:
        entries: how many entries the tree has.
    """

    def __init__(self, entries: int) -> None:
        self.directories: list[TreeEntry] = []
        """All directories, in tree order."""
        self.files = 0
        self.links = 0
        self.bytes = 0
        """Of content."""
        self._decoded: list[Page] = []
        self._file: IO[bytes] | None = None
        self._sizes: list[int] = []
        if entries > DECODED_ENTRIES_MAX:
            self._file = tempfile.TemporaryFile(prefix="casstore-")  # noqa: SIM115 (closed by close)

    def add(self, page: Page, record: PageRecord) -> None:
        """Keep a page that was verified."""
        for entry in page.entries:
            if entry.type is EntryType.FILE:
                self.files += 1
                self.bytes += entry.size
            elif entry.type is EntryType.DIRECTORY:
                self.directories.append(entry)
            else:
                self.links += 1
        if self._file is None:
            self._decoded.append(page)
        else:
            self._sizes.append(self._file.write(encode_page_record(record)))

    def __iter__(self) -> Iterator[Page]:
        if self._file is None:
            yield from self._decoded
            return
        position = 0
        for size in self._sizes:
            self._file.seek(position)
            position += size
            # TRUST: nobody else can open the file, so what comes back is what was verified.
            (record,) = PageRecordDecoder().feed(self._file.read(size))
            entries = decode_page(record.page)
            yield Page(page_digest(record.page), entries, decode_layout(record.layout), record.chunks)

    def close(self) -> None:
        """Let go of the temporary file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def fetch_all(
    transport: Transport, digest: TreeDigest, verifier: TreeVerifier, workers: Workers, cache: PageCache | None = None
) -> PageStore:
    """Get all pages of a tree and verify them.

    Args:
        transport: the server.
        digest: the tree.
        verifier: of its root.
        workers: where pages are decoded.
        cache: pages that are in it are not asked for, the others are put into it.

    Raises:
        HostileTree, MalformedDocument, DigestMismatch: the tree breaks a rule.
        TransportError, ProtocolError: as the transport says.
    """
    gathering = _Gathering(verifier, cache)
    try:
        await workers.run_light(gathering.look)

        async def rest() -> None:
            async with aclosing(stream_records(transport, digest, gathering.begin_request())) as stream:
                async for records in stream:
                    if not await workers.run_light(gathering.take_sent, records):
                        return

        while not await workers.run_light(gathering.take_held):
            before = gathering.progress
            # After a broken connection the next request asks only for what has not come yet.
            await transport.repeat(rest, True)
            if gathering.progress == before:
                raise ProtocolError(f"the server sent none of the pages of {digest} that were asked for")
        await workers.run_light(gathering.finish)
    except BaseException:
        gathering.store.close()
        raise
    return gathering.store


class _Gathering:
    """Puts pages that are held and pages that are sent into the one order of the tree."""

    def __init__(self, verifier: TreeVerifier, cache: PageCache | None) -> None:
        self.store = PageStore(sum(ref.entries for ref in verifier.pages))
        self._verifier = verifier
        self._cache = cache
        self._held: set[PageDigest] = set()
        self._taken = 0
        self._lost = 0
        self._wanted: list[PageDigest] = []
        self._sent = 0

    @property
    def progress(self) -> tuple[int, int]:
        """Changes whenever there was any."""
        return self._taken, self._lost

    def look(self) -> None:
        """See which pages are held."""
        if self._cache is not None:
            self._held = {ref.digest for ref in self._verifier.pages if self._cache.has(ref.digest)}

    def begin_request(self) -> list[PageDigest]:
        """The pages to ask for next."""
        rest = self._verifier.pages[self._taken :]
        self._wanted = [ref.digest for ref in rest if ref.digest not in self._held][:PAGES_REQUEST_MAX]
        self._sent = 0
        return self._wanted

    def take_held(self) -> bool:
        """Take pages as far as they are held; returns whether that was all."""
        pages = self._verifier.pages
        while self._taken < len(pages):
            digest = pages[self._taken].digest
            record = self._cache.get(digest) if self._cache is not None and digest in self._held else None
            if record is None:
                if digest in self._held:
                    self._held.discard(digest)
                    self._lost += 1
                return False
            self._take(record)
        return True

    def take_sent(self, records: Sequence[PageRecord]) -> bool:
        """Take what was sent; returns False if something that was held is lost, so that this answer comes out of turn."""
        fresh: list[tuple[PageDigest, PageRecord]] = []
        for record in records:
            self.take_held()
            turn = self._verifier.pages[self._taken].digest if self._taken < len(self._verifier.pages) else None
            if self._sent < len(self._wanted) and turn is not None and turn != self._wanted[self._sent]:
                return False
            self._take(record)
            self._sent += 1
            if turn is not None:
                fresh.append((turn, record))
        if self._cache is not None:
            self._cache.put(fresh)
        return True

    def finish(self) -> None:
        """Verify that the tree is whole."""
        self._verifier.finish()
        if self._cache is not None:
            self._cache.trim()

    def _take(self, record: PageRecord) -> None:
        entries = self._verifier.add_page(record.page)
        layout = decode_layout(record.layout)
        verify_layout_fits(layout, entries)
        _verify_places(layout, record)
        self.store.add(Page(self._verifier.pages[self._taken].digest, entries, layout, record.chunks), record)
        self._taken += 1


async def fetch_some(transport: Transport, digest: TreeDigest, refs: Sequence[PageRef]) -> AsyncGenerator[Page, None]:
    """Get some pages of a tree, in order.  Each is the one that was asked for and is right by itself; the rules that hold
    between pages are not checked.

    Raises:
        DigestMismatch, MalformedDocument: a page is not what the root says.
        TransportError, ProtocolError: as the transport says.
    """
    for start in range(0, len(refs), PAGES_REQUEST_MAX):
        part = refs[start : start + PAGES_REQUEST_MAX]
        position = 0
        async with aclosing(stream_records(transport, digest, [ref.digest for ref in part])) as stream:
            async for records in stream:
                for record in records:
                    ref = part[position] if position < len(part) else None
                    if ref is None or page_digest(record.page) != ref.digest:
                        raise ProtocolError(f"the server sent another page of {digest} than the one that was asked for")
                    entries = decode_page(record.page)
                    layout = decode_layout(record.layout)
                    verify_layout_fits(layout, entries)
                    _verify_places(layout, record)
                    position += 1
                    yield Page(ref.digest, entries, layout, record.chunks)
        if position < len(part):
            raise TransportError(f"the server sent {position} of {len(part)} pages of {digest}")


async def relocate_chunks(
    transport: Transport, digest: TreeDigest, refs: Sequence[PageRef], pages: Set[PageDigest]
) -> Mapping[bytes, ChunkAt]:
    """Ask once more where the chunks of some pages lie; ``refs`` are all pages of the tree.

    Raises:
        As :func:`fetch_some`.
    """
    wanted = [ref.digest for ref in refs if ref.digest in pages]
    found: dict[bytes, ChunkAt] = {}
    async with aclosing(stream_records(transport, digest, wanted)) as stream:
        async for records in stream:
            for record in records:
                layout = decode_layout(record.layout)
                _verify_places(layout, record)
                found.update(zip((chunk for chunk, _ in layout.chunks), record.chunks, strict=True))
    return found


async def stream_records(
    transport: Transport, digest: TreeDigest, pages: Sequence[PageDigest]
) -> AsyncGenerator[list[PageRecord], None]:
    """Get the records of pages as they come, unverified.

    Raises:
        TransportError, ProtocolError: as the transport says, or not such a stream.
    """
    decoder = PageRecordDecoder()
    async with transport.stream(
        "POST",
        f"/v1/trees/{digest}/pages",
        step="pages",
        media=MEDIA_PAGES,
        body=b"".join(pages),
        body_media=MEDIA_IDS,
    ) as pieces:
        async for piece in pieces:
            records = decoder.feed(piece)
            if records:
                yield records
    try:
        decoder.finish()
    except MalformedDocument as error:
        # A stream without a length may end early and look whole: then it is the connection that broke.
        raise TransportError(f"the pages of {digest} ended early: {error.detail}") from error


async def fetch_blob_page(transport: Transport, digest: BlobDigest) -> Page:
    """Get a blob's layout, as a page without entries.  The layout is a hint: only the digest says what the blob is.

    Raises:
        BlobNotFound: the server has no such blob.
        ProtocolError, MalformedDocument: not a blob's record.
    """
    reply = await transport.request(
        "GET", f"/v1/blobs/{digest}/layout", step="blob", media=MEDIA_PAGES, max_bytes=1 << 27
    )
    decoder = PageRecordDecoder()
    records = decoder.feed(reply.body)
    decoder.finish()
    if len(records) != 1 or records[0].page:
        raise ProtocolError(f"the layout of the blob {digest} came as {len(records)} records, or with a page")
    layout = decode_layout(records[0].layout)
    if len(layout.files) > 1:
        raise ProtocolError(f"the layout of the blob {digest} has {len(layout.files)} rows")
    _verify_places(layout, records[0])
    return Page(PageDigest(digest), [], layout, records[0].chunks)


def refs_below(pages: Sequence[PageRef], path: bytes) -> Sequence[PageRef]:
    """The pages that can hold ``path`` or anything that lies in it."""
    first = split_root_for_path(pages, path)
    # "0" follows "/": what lies in a directory d sorts below d + "0".
    last = split_root_for_path(pages, path + b"0") if path else len(pages) - 1
    return pages[first or 0 : (last or 0) + 1]


def _verify_places(layout: Layout, record: PageRecord) -> None:
    if len(record.chunks) != len(layout.chunks):
        raise MalformedDocument(f"a layout of {len(layout.chunks)} chunks came with {len(record.chunks)} places")
