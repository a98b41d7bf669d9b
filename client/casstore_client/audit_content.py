"""Level 7 of an audit: what the published snapshots consist of is there, and with ``full`` every byte of it is what it must be.

Owns the walk from a snapshot to its documents, roots, pages and layouts.  Nothing stops at the first damage: what is damaged is a
finding, and the walk goes on with what is left.  Each distinct tree, blob and page is looked at once, each chunk is fetched once
where memory allows (:mod:`casstore_client.audit_chunks`).

Memory: about 200 bytes a page and 100 a chunk.  Pages lie in a temporary file without a name, because the next release shares most
of them: they are fetched once, and held against the rules of each tree that they are part of.

Source: docs/formats/tree.md, docs/formats/layout.md
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Final, Self

from casstore.errors import (
    AccessError,
    CasstoreError,
    DigestMismatch,
    MalformedDocument,
    SnapshotNotFound,
    Unavailable,
)
from casstore.formats.layout import decode_layout, verify_layout_fits
from casstore.formats.snapshot import Component, Snapshot, decode_snapshot, snapshot_digest
from casstore.formats.tree import EMPTY_DIGEST, EntryType, PageRef, TreeEntry, TreeVerifier, decode_page, page_digest
from casstore.ids import BlobDigest, PageDigest, SnapshotDigest, TreeDigest
from casstore.limits import LAYOUT_SIZE_MAX_BYTES, PAGE_SIZE_MAX_BYTES, PAGES_REQUEST_MAX, SNAPSHOT_SIZE_MAX_BYTES
from casstore.wire import LOCATIONS_MAX_BYTES, MEDIA_IDS, MEDIA_PAGES, MEDIA_SNAPSHOT, PageRecord, PageRecordDecoder
from casstore_client.audit_chunks import ChunkAudit, Needs
from casstore_client.audit_report import Affected, AuditFinding, Findings
from casstore_client.errors import ProtocolError, TransportError
from casstore_client.pages import Page, fetch_blob_page, fetch_root, stream_records
from casstore_client.planning import blob_job
from casstore_client.transport import Transport

LEVEL: Final = 7
_RECORD_MAX_BYTES: Final = 64 + PAGE_SIZE_MAX_BYTES + LAYOUT_SIZE_MAX_BYTES + LOCATIONS_MAX_BYTES


class _PageSpool:
    """The bytes of pages, by digest, in a temporary file."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="casstore-audit-")  # noqa: SIM115 (closed by close)
        self._places: dict[bytes, tuple[int, int]] = {}
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, digest: bytes, data: bytes) -> None:
        self._places[digest] = (self._end, len(data))
        self._file.seek(self._end)
        self._file.write(data)
        self._end += len(data)

    def read(self, digest: bytes) -> bytes:
        start, size = self._places[digest]
        self._file.seek(start)
        return self._file.read(size)


class ContentAudit:
    """Looks at the content of snapshots.

    Args:
        transport: the server.
        chunks: looks at what the pages say of chunks.
        findings: gets what does not hold.
    """

    def __init__(self, transport: Transport, chunks: ChunkAudit, findings: Findings) -> None:
        self._transport = transport
        self._chunks = chunks
        self._findings = findings
        self._spool = _PageSpool()
        self._seen: set[bytes] = set()
        self._bad_pages: set[bytes] = set()
        self.trees = 0
        self.blobs = 0
        self.collected = 0
        """Snapshots that were collected."""

    @property
    def pages(self) -> int:
        """Distinct pages that are in order."""
        return len(self._spool)

    async def run(
        self, snapshots: Mapping[SnapshotDigest, int], collectable: Collection[SnapshotDigest] = frozenset()
    ) -> None:
        """Look at all of them.

        # TRUST: that a snapshot was collected is the server's word, given in the log before it was done.  What a pointer names
        # now can not be excused so.

        Args:
            snapshots: with the index of the entry that published each.
            collectable: those of them that may be gone, because a later entry says that content was collected.

        Raises:
            TransportError, Unavailable, AccessError: the server does not answer, or not to us.
        """
        with self._spool:
            for number, (digest, index) in enumerate(snapshots.items()):
                self._findings.tell(LEVEL, number, len(snapshots))
                if digest in collectable and await self._is_collected(digest):
                    self.collected += 1
                    continue
                snapshot = await self._document(digest, index)
                for component in () if snapshot is None else snapshot.components:
                    if component.digest not in self._seen:
                        self._seen.add(component.digest)
                        await self._component(Needs(digest, component.name, index), component)

    async def _is_collected(self, digest: SnapshotDigest) -> bool:
        """Whether the server says that it does not have the document: collection drops it before what it names."""
        try:
            await self._transport.request(
                "GET",
                f"/v1/snapshots/{digest}",
                step="snapshot",
                media=MEDIA_SNAPSHOT,
                max_bytes=SNAPSHOT_SIZE_MAX_BYTES,
            )
        except SnapshotNotFound:
            return True
        except (TransportError, Unavailable, AccessError):
            raise
        except CasstoreError:
            return False  # damage is told by whoever looks at it in full
        return False

    async def _document(self, digest: SnapshotDigest, index: int) -> Snapshot | None:
        try:
            reply = await self._transport.request(
                "GET",
                f"/v1/snapshots/{digest}",
                step="snapshot",
                media=MEDIA_SNAPSHOT,
                max_bytes=SNAPSHOT_SIZE_MAX_BYTES,
            )
            found = snapshot_digest(reply.body)
            if found != digest:
                raise DigestMismatch("another document came", expected=str(digest), found=str(found))
            return decode_snapshot(reply.body)
        except (TransportError, Unavailable, AccessError):
            raise
        except CasstoreError as error:
            needy = [Affected(snapshot=str(digest))]
            self._report(f"snapshot {digest}", f"published by entry {index}", error, index, needy)
            return None

    async def _component(self, needs: Needs, component: Component) -> None:
        try:
            if isinstance(component.digest, TreeDigest):
                self.trees += 1
                await self._tree(needs, component.digest)
            else:
                self.blobs += 1
                await self._blob(needs, component.digest)
        except (TransportError, Unavailable, AccessError):
            raise
        except CasstoreError as error:
            what = f"{component.kind} {component.digest}"
            self._report(what, f"component {component.name}", error, needs.entry, needs.affected([]))

    async def _blob(self, needs: Needs, digest: BlobDigest) -> None:
        page = await fetch_blob_page(self._transport, digest)
        job, extents = blob_job(b"", None, digest, page)
        entry = TreeEntry(b"", EntryType.FILE, 0o644, job.size, digest)
        verify_layout_fits(page.layout, [entry])
        if not extents and digest != EMPTY_DIGEST:
            raise MalformedDocument("its layout says that it is empty, its digest says otherwise")
        await self._chunks.take(needs, Page(page.digest, [entry], page.layout, page.chunks))

    async def _tree(self, needs: Needs, digest: TreeDigest) -> None:
        verifier = await fetch_root(self._transport, digest)
        refs = verifier.pages
        wanted = [ref for ref in refs if ref.digest not in self._spool and ref.digest not in self._bad_pages]
        async with aclosing(self._records(digest, wanted)) as records:
            async for ref, record in records:
                page = await asyncio.to_thread(self._open, needs, ref, record)
                if page is None:
                    self._bad_pages.add(ref.digest)
                else:
                    await self._chunks.take(needs, page)
        # What holds between pages can only be said of a tree all of whose pages are there.
        if self._bad_pages.isdisjoint(ref.digest for ref in refs):
            await asyncio.to_thread(self._hold_together, verifier)

    def _hold_together(self, verifier: TreeVerifier) -> None:
        for ref in verifier.pages:
            verifier.add_page(self._spool.read(ref.digest))
        verifier.finish()

    def _open(self, needs: Needs, ref: PageRef, record: PageRecord | CasstoreError) -> Page | None:
        """Hold one page by itself against what the root says, and its layout against it."""
        try:
            if isinstance(record, CasstoreError):
                raise record
            found = page_digest(record.page)
            if found != ref.digest:
                raise DigestMismatch("another page came", expected=str(ref.digest), found=str(found))
            entries = decode_page(record.page)
            layout = decode_layout(record.layout)
            verify_layout_fits(layout, entries)
            if len(record.chunks) != len(layout.chunks):
                raise ProtocolError(f"it has {len(layout.chunks)} chunks and {len(record.chunks)} places of chunks")
        except CasstoreError as error:
            what = f"page {ref.digest}"
            self._report(what, "its page, layout or places", error, needs.entry, needs.affected([ref.first_path]))
            return None
        self._spool.add(ref.digest, record.page)
        return Page(ref.digest, entries, layout, record.chunks)

    async def _records(
        self, tree: TreeDigest, refs: Sequence[PageRef]
    ) -> AsyncGenerator[tuple[PageRef, PageRecord | CasstoreError], None]:
        """The records of pages, in order; for one that cannot be had the reason, and the others still come."""
        at = 0
        while at < len(refs):
            part = [ref.digest for ref in refs[at : at + PAGES_REQUEST_MAX]]
            try:
                async with aclosing(stream_records(self._transport, tree, part)) as stream:
                    async for records in stream:
                        for record in records[: len(refs) - at]:
                            yield refs[at], record
                            at += 1
            except (Unavailable, AccessError):
                raise
            except CasstoreError:
                pass  # the server cuts a stream where it meets damage; asked for one page, it says what it is
            if at < len(refs):
                yield refs[at], await self._record_alone(tree, refs[at].digest)
                at += 1

    async def _record_alone(self, tree: TreeDigest, page: PageDigest) -> PageRecord | CasstoreError:
        try:
            reply = await self._transport.request(
                "POST",
                f"/v1/trees/{tree}/pages",
                step="pages",
                media=MEDIA_PAGES,
                body=page,
                body_media=MEDIA_IDS,
                max_bytes=_RECORD_MAX_BYTES,
                repeatable=True,
            )
            decoder = PageRecordDecoder()
            records = decoder.feed(reply.body)
            decoder.finish()
        except (TransportError, Unavailable, AccessError):
            raise
        except CasstoreError as error:
            return error
        return records[0] if len(records) == 1 else ProtocolError(f"{len(records)} pages came for one")

    def _report(
        self, what: str, where: str, error: CasstoreError, index: int, affects: Sequence[Affected] = ()
    ) -> None:
        self._findings.add(
            AuditFinding(
                level=LEVEL,
                code=error.code,
                object=what,
                where=error.fields.get("where") or where,
                expected=error.fields.get("expected") or what,
                found=error.fields.get("found") or error.detail,
                affects=list(affects),
            ),
            index,
        )
