"""Export: chosen snapshots, trees and blobs leave a server as an archive that another site can import.

Owns what goes into an export and in which order, which is that of the content and not of the packs where it lies: so two
exports of the same are the same, but for the proofs, whose checkpoints carry the time.

Everything is verified on the way out: documents, roots, pages and chunks against their ids, a snapshot's place in the log
against the trust file.  Frames pass as they are stored, without being compressed anew.

# ORDER: documents and proofs, then tree by tree: root, and for each page the page, its layout, and the chunks that were not
written before.

Memory: that of :mod:`casstore_client.export_content`; 100 bytes for each chunk that is left out.

Source: docs/formats/export.md
"""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import Final, Literal, NamedTuple

from casstore.errors import (
    ArtifactNotFound,
    BlobNotFound,
    DamagedObject,
    DigestMismatch,
    MalformedDocument,
    NotFound,
    SnapshotNotFound,
    TooLarge,
    TreeNotFound,
)
from casstore.formats.export import (
    ENTRY_SUFFIX,
    FIRST,
    LAST,
    MANIFEST_MAX_BYTES,
    PROOF_SUFFIX,
    ExportArtifact,
    ExportEnd,
    ExportManifest,
    ExportSnapshot,
    decode_manifest,
    document_name,
    encode_end,
    encode_manifest,
    proof_name,
)
from casstore.formats.layout import decode_layout
from casstore.formats.pack import (
    TRAILER_BYTES,
    ObjectKind,
    decode_footer,
    decode_trailer,
)
from casstore.formats.snapshot import Label, decode_snapshot, snapshot_digest
from casstore.formats.tree import page_digest
from casstore.ids import ArtifactName, BlobDigest, SnapshotDigest, TreeDigest
from casstore.limits import (
    LIST_LIMIT_MAX,
    PAGES_REQUEST_MAX,
    SNAPSHOT_SIZE_MAX_BYTES,
)
from casstore.wire import (
    MEDIA_SNAPSHOT,
    Artifact,
)
from casstore_client import content_api
from casstore_client.archive import ArchiveReader, ArchiveWriter, open_archive, read_small
from casstore_client.export_content import ContentExport, MemberWriter, fetch_blob_record, fetch_root_document
from casstore_client.ledger_api import LedgerApi
from casstore_client.pages import stream_records
from casstore_client.transport import Transport
from casstore_client.workers import Workers, finish_cleanup, first_fault

LISTED_MAX: Final = 100_000
"""LIMIT: artifacts and snapshots that are looked through for names and log indexes, newest first."""


class Exported(NamedTuple):
    """What an export holds."""

    file: str
    manifest: ExportManifest
    proven: int
    """How many of its snapshots carry a proof."""
    objects: Mapping[str, int]
    """By kind: how many were written."""
    left_out: int
    """Chunks and pages of the base that were needed and not written."""
    members: int
    size_bytes: int
    """Of all members."""


class _Selection(NamedTuple):
    documents: dict[SnapshotDigest, bytes]
    """Parents before those that follow them."""
    artifacts: tuple[ExportArtifact, ...]


async def export(
    api: LedgerApi,
    targets: Sequence[str],
    file: str,
    *,
    since: Sequence[str] = (),
    since_files: Sequence[str] = (),
    parents: bool = False,
    directory: bool = False,
) -> Exported:
    """Write an export.

    Args:
        api: the server; with a trust file the snapshots' places in the log are proven.
        targets: what to export: snapshots, trees, blobs, pointers, artifacts, as people name them.
        file: what it will be called; must not exist.
        since: what the other side has: snapshots, trees or blobs of this server.
        since_files: earlier exports, whose content the other side has.
        parents: also the snapshots that these follow, and those that those follow.
        directory: a directory instead of a ZIP.

    Raises:
        NotFound: a target is not there.
        DestinationExists, InvalidInput, CapacityError: the file cannot be written.
        DamagedObject, DigestMismatch, MalformedDocument: the server gave something else.
        TransportError, ProtocolError: no answer, or none that a casstore server gives.
    """
    try:
        async with Workers() as workers:
            job = _Export(api, workers)
            selected = await job.select(targets, parents=parents)
            await job.learn_base(since, since_files)
            archive = await workers.run_light(partial(ArchiveWriter, file, directory=directory))
            try:
                return await job.write(selected, archive, file)
            finally:
                await finish_cleanup(asyncio.to_thread(archive.close))
    except BaseExceptionGroup as group:
        raise first_fault(group) from None


class _Export:
    def __init__(self, api: LedgerApi, workers: Workers) -> None:
        self._api = api
        self._transport: Transport = api.transport
        self._workers = workers
        self._had: set[bytes] = set()
        """Pages and chunks that the other side has."""
        self._base: set[str] = set()
        """What they belong to."""

    # --- what ----------------------------------------------------------------------------------------------------------

    async def select(self, targets: Sequence[str], *, parents: bool) -> _Selection:
        """Find out what was named; the order of the answer is that of digests, whatever that of the targets."""
        found: dict[SnapshotDigest, bytes] = {}
        wanted: dict[TreeDigest | BlobDigest, ExportArtifact] = {}
        for target in targets:
            digest = await self._snapshot_of(target)
            if digest is not None:
                await self._take_snapshot(digest, found, parents=parents)
            else:
                kind, text = await self._content_of(target)
                _want(wanted, "tree" if kind == "tree" else "blob", text)
        for document in found.values():
            for component in decode_snapshot(document).components:
                _want(wanted, component.kind, str(component.digest))
        return _Selection(_parents_first(found), await self._name(dict(sorted(wanted.items()))))

    async def _snapshot_of(self, target: str) -> SnapshotDigest | None:
        """The published snapshot that a target names, or None if it names content."""
        try:
            digest = SnapshotDigest.parse(await self._api.resolve(target))
            await self._document(digest)
        except (SnapshotNotFound, NotFound):
            return None
        return digest

    async def _content_of(self, target: str) -> tuple[str, str]:
        try:
            return await content_api.resolve_artifact(self._transport, target)
        except (TreeNotFound, BlobNotFound) as error:
            raise ArtifactNotFound(f"{target[:200]} is neither a snapshot nor content of this server") from error

    async def _take_snapshot(self, first: SnapshotDigest, found: dict[SnapshotDigest, bytes], *, parents: bool) -> None:
        waiting = [first]
        while waiting:
            digest = waiting.pop()
            if digest not in found:
                found[digest] = await self._document(digest)
                waiting.extend(decode_snapshot(found[digest]).parents if parents else ())

    async def _document(self, digest: SnapshotDigest) -> bytes:
        reply = await self._transport.request(
            "GET", f"/v1/snapshots/{digest}", step="snapshot", media=MEDIA_SNAPSHOT, max_bytes=SNAPSHOT_SIZE_MAX_BYTES
        )
        if (found := snapshot_digest(reply.body)) != digest:
            raise DigestMismatch(f"another document came for {digest}", expected=str(digest), found=str(found))
        return reply.body

    async def _name(self, wanted: Mapping[TreeDigest | BlobDigest, ExportArtifact]) -> tuple[ExportArtifact, ...]:
        """Give what is exported the name and labels of its newest push."""
        named: dict[str, Artifact] = {}
        looked, after = 0, None
        missing = {str(digest) for digest in wanted}
        while missing and looked < LISTED_MAX:
            page = await content_api.list_artifacts(
                self._transport, name=None, label=None, after=after, limit=LIST_LIMIT_MAX
            )
            for artifact in page.artifacts:
                if artifact.digest in missing:
                    missing.discard(artifact.digest)
                    named[artifact.digest] = artifact
            looked += len(page.artifacts)
            after = page.next
            if after is None:
                break
        return tuple(_with_name(artifact, named.get(str(digest))) for digest, artifact in wanted.items())

    # --- what the other side has ---------------------------------------------------------------------------------------

    async def learn_base(self, since: Sequence[str], files: Sequence[str]) -> None:
        """Note the pages and chunks of what the other side has."""
        for file in files:
            await self._workers.run_light(self._learn_file, file)
        for text in since:
            digest = await self._snapshot_of(text)
            if digest is None:
                kind, whole = await self._content_of(text)
                await self._learn(kind, whole)
                continue
            self._base.add(str(digest))
            for component in decode_snapshot(await self._document(digest)).components:
                await self._learn(component.kind, str(component.digest))

    async def _learn(self, kind: str, digest: str) -> None:
        self._base.add(digest)
        if kind == "blob":
            record = await fetch_blob_record(self._transport, BlobDigest.parse(digest))
            self._had.update(chunk for chunk, _ in decode_layout(record.layout).chunks)
            return
        tree = TreeDigest.parse(digest)
        verifier, _ = await fetch_root_document(self._transport, tree)
        for start in range(0, len(verifier.pages), PAGES_REQUEST_MAX):
            part = [ref.digest for ref in verifier.pages[start : start + PAGES_REQUEST_MAX]]
            async with aclosing(stream_records(self._transport, tree, part)) as stream:
                async for records in stream:
                    for record in records:
                        self._had.add(page_digest(record.page))
                        self._had.update(chunk for chunk, _ in decode_layout(record.layout).chunks)

    def _learn_file(self, path: str) -> None:
        with closing(open_archive(path)) as archive:
            manifest = read_manifest(archive)
            self._base.update(str(artifact.digest) for artifact in manifest.artifacts)
            self._base.update(str(snapshot.digest) for snapshot in manifest.snapshots)
            for name in archive.names():
                if name.startswith("packs/"):
                    rows = _read_footer(archive, name)
                    self._had.update(id for kind, id in rows if kind in (ObjectKind.PAGE, ObjectKind.CHUNK))

    # --- writing -------------------------------------------------------------------------------------------------------

    async def write(self, selected: _Selection, archive: ArchiveWriter, file: str) -> Exported:
        """Write all members."""
        entries = await self._entries(list(selected.documents))
        origin = (await content_api.get_config(self._transport)).log.origin
        manifest = ExportManifest(
            log=origin,
            snapshots=tuple(ExportSnapshot(digest, entries.get(digest)) for digest in selected.documents),
            artifacts=selected.artifacts,
            base=tuple(sorted(self._base)),
        )
        data = encode_manifest(manifest)
        out = MemberWriter(archive, self._workers, data)
        await out.add(FIRST, [data])
        for digest, document in selected.documents.items():
            await out.add(document_name(digest), [document])
            if (index := entries.get(digest)) is not None:
                # ORDER: the proof is asked for last: it is verified against the entry by the client.
                entry = (await self._api.entry(index)).data
                await out.add(proof_name(digest, ENTRY_SUFFIX), [entry])
                await out.add(proof_name(digest, PROOF_SUFFIX), [await self._api.inclusion_proof(index)])
        content = ContentExport(self._transport, self._workers, out, self._had)
        for artifact in selected.artifacts:
            if isinstance(artifact.digest, TreeDigest):
                await content.tree(artifact.digest)
            else:
                await content.blob(artifact.digest)
        await out.finish()
        await out.add(LAST, [encode_end(ExportEnd(tuple(out.members)))])
        await self._workers.run_light(archive.finish)
        sizes = sum(member.size for member in out.members)
        return Exported(file, manifest, len(entries), dict(out.objects), content.left_out, len(out.members), sizes)

    async def _entries(self, digests: Sequence[SnapshotDigest]) -> dict[SnapshotDigest, int]:
        """Which entries published these snapshots; nothing without a trust file, for nothing could be proven."""
        found: dict[SnapshotDigest, int] = {}
        if not self._api.verifies:
            return found
        missing, looked, after = {str(digest) for digest in digests}, 0, None
        while missing and looked < LISTED_MAX:
            page = await self._api.snapshots(after=after, limit=LIST_LIMIT_MAX)
            for info in page.snapshots:
                if info.digest in missing:
                    missing.discard(info.digest)
                    found[SnapshotDigest.parse(info.digest)] = info.entry
            looked += len(page.snapshots)
            after = page.next
            if after is None:
                break
        return found


def _want(wanted: dict[TreeDigest | BlobDigest, ExportArtifact], kind: Literal["tree", "blob"], digest: str) -> None:
    content = TreeDigest.parse(digest) if kind == "tree" else BlobDigest.parse(digest)
    wanted.setdefault(content, ExportArtifact(kind, content))


def _parents_first(documents: Mapping[SnapshotDigest, bytes]) -> dict[SnapshotDigest, bytes]:
    """Sorted by digest, but none before one that it follows."""
    waiting = {digest: set(decode_snapshot(data).parents) & set(documents) for digest, data in documents.items()}
    ordered: dict[SnapshotDigest, bytes] = {}
    while waiting:
        # A snapshot names its parents by their hash, so there is no circle, and one of them waits for nothing.
        ready = min(digest for digest, parents in waiting.items() if parents <= ordered.keys())
        del waiting[ready]
        ordered[ready] = documents[ready]
    return ordered


def read_manifest(archive: ArchiveReader) -> ExportManifest:
    """The manifest of an export.

    Raises:
        DamagedObject: it has none, or it cannot be read.
    """
    data = read_small(archive, FIRST, MANIFEST_MAX_BYTES)
    try:
        return decode_manifest(data)
    except (MalformedDocument, TooLarge) as error:
        raise DamagedObject(
            f"{FIRST} of the export cannot be read: {error.detail}", object=FIRST, where=FIRST
        ) from error


def _with_name(artifact: ExportArtifact, pushed: Artifact | None) -> ExportArtifact:
    if pushed is None:
        return artifact
    name = None if pushed.name is None else ArtifactName.parse(pushed.name)
    labels = tuple(sorted(Label(label.k, label.v) for label in pushed.labels))
    return artifact._replace(name=name, labels=labels)


def _read_footer(archive: ArchiveReader, name: str) -> list[tuple[ObjectKind, bytes]]:
    """Kinds and ids of the objects of a pack.

    Raises:
        DamagedObject: its end is not that of a pack.
    """
    size = archive.size(name)
    try:
        with archive.open(name) as stream:
            stream.seek(max(0, size - TRAILER_BYTES))
            offset = decode_trailer(stream.read(TRAILER_BYTES), size)
            stream.seek(offset)
            summary = decode_footer(stream.read(size - offset), size)
    except (OSError, MalformedDocument, zipfile.BadZipFile) as error:
        raise DamagedObject(f"{name} is not a whole pack: {error}", object=name, where=name) from error
    return [(row.kind, row.id) for row in summary.rows]
