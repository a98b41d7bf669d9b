"""Import: an export enters a server by an ordinary push, and its snapshots are published where that is asked for.

Owns the order: the whole archive is read and held against its hashes and ids while what the server lacks is sent; only then is
anything committed, and only then published.  So an export that is cut short or damaged leaves nothing but packs that nobody
needs.  Nothing in the archive is trusted: objects are held against their ids here and by the server, files by the server, the
snapshots' place in their log by the trust file that whoever imports gives.

# ORDER: packs → commits of trees and blobs → snapshots, parents first.
# CRASH: what was sent stays without a name until it is collected; the same import again sends only what is missing.

Memory: one pack that is read, and that of :mod:`casstore_client.import_push`.

Source: docs/formats/export.md
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

from casstore.errors import (
    DamagedObject,
    LeaseLost,
    MalformedDocument,
    SnapshotIncomplete,
    TooLarge,
    VerificationError,
)
from casstore.formats.acts import SnapshotArgs
from casstore.formats.entry import decode_entry
from casstore.formats.export import (
    END_MAX_BYTES,
    ENTRY_SUFFIX,
    FIRST,
    LAST,
    PROOF_SUFFIX,
    ExportEnd,
    ExportManifest,
    Member,
    decode_end,
    document_name,
    proof_name,
)
from casstore.formats.pack import Frame, PackDecoder, open_frame
from casstore.formats.proof import PROOF_SIZE_MAX_BYTES, decode_proof, open_proof
from casstore.formats.snapshot import Snapshot, decode_snapshot, snapshot_digest
from casstore.formats.trust import TrustFile
from casstore.hashing import Blake3Hasher
from casstore.ids import SnapshotDigest
from casstore.limits import (
    ENTRY_SIZE_MAX_BYTES,
    MIB,
    PACK_SIZE_MAX_BYTES,
    SNAPSHOT_SIZE_MAX_BYTES,
)
from casstore.merkle import leaf_hash
from casstore.wire import (
    Artifact,
    CommitRequest,
    Label,
)
from casstore_client.archive import ArchiveReader, open_archive, read_blocks, read_small
from casstore_client.export import read_manifest
from casstore_client.import_push import ImportPush
from casstore_client.ledger_api import LedgerApi
from casstore_client.workers import Workers


class ProvenSnapshot(NamedTuple):
    """What an export proves about a snapshot."""

    digest: SnapshotDigest
    log: str
    entry: int
    size: int
    """Of the checkpoint that covers the entry."""
    published_at_ms: int
    """As the log says."""
    existed_by_ms: int | None
    """As the log's clock says that the checkpoint was there; None where it says nothing."""


class Imported(NamedTuple):
    """What an import did."""

    manifest: ExportManifest
    artifacts: list[Artifact]
    proven: list[ProvenSnapshot]
    published: list[SnapshotDigest]
    documents: dict[SnapshotDigest, Snapshot]
    objects: int
    """That were read and hold."""
    new_objects: int
    """Chunks and pages that the server lacked; roots and layouts come with what they describe and are not asked about."""
    sent_bytes: int
    seconds: float


async def import_file(
    api: LedgerApi, file: str, *, publish: bool = False, why: str = "", trust: TrustFile | None = None
) -> Imported:
    """Bring an export into a server.

    Args:
        api: the server; with a signing key where snapshots are to be published.
        file: the export, a ZIP or a directory.
        publish: publish its snapshots in the log of this server.
        why: stands in the log for ever.
        trust: of the log that the export comes from: each snapshot must be proven to lie in it.

    Raises:
        NotFound, InvalidInput: there is no such file, or it cannot be read.
        DamagedObject: it is cut short or damaged; the message names the member or object.  Nothing was committed.
        VerificationError: a snapshot is not proven to lie in the log that ``trust`` names.  Nothing was sent.
        SnapshotIncomplete: it lacks what its base has, and this server does too.  Nothing was published.
        TransportError, ProtocolError: no answer, or none that a casstore server gives.
    """
    began_s = time.monotonic()
    async with Workers() as workers:
        archive = await workers.run_light(open_archive, file)
        with closing(archive):
            job = _Import(api, archive, workers)
            await workers.run_light(job.read_head, trust)
            try:
                sender = await job.send()
                artifacts = await job.commit(sender)
            except LeaseLost:
                # Begin again, once, with a new id: what was sent is there.
                sender = await job.send()
                artifacts = await job.commit(sender)
            published = await job.publish(why) if publish else []
    return Imported(
        manifest=job.manifest,
        artifacts=artifacts,
        proven=job.proven,
        published=published,
        documents={digest: decode_snapshot(document) for digest, document in job.documents.items()},
        objects=job.objects,
        new_objects=sender.new_objects,
        sent_bytes=sender.sent_bytes,
        seconds=time.monotonic() - began_s,
    )


class _Import:
    def __init__(self, api: LedgerApi, archive: ArchiveReader, workers: Workers) -> None:
        self._api = api
        self._archive = archive
        self._workers = workers
        self.manifest: ExportManifest
        self.proven: list[ProvenSnapshot] = []
        self.documents: dict[SnapshotDigest, bytes] = {}
        self.objects = 0
        self._packs: list[Member] = []
        self._done: list[Artifact] = []

    # --- the small members -------------------------------------------------------------------------------------------

    def read_head(self, trust: TrustFile | None) -> None:
        """Read and verify everything but the packs."""
        end = _read_end(self._archive)
        self.manifest = read_manifest(self._archive)
        for member in end.members:
            if member.name.startswith("packs/"):
                self._packs.append(member)
            else:
                # Small ones are read twice: here against the hash, below for what they say.
                for _ in _verified_blocks(self._archive, member, max_bytes=64 * MIB):
                    pass
        _check_snapshots(end, self.manifest)
        for snapshot in self.manifest.snapshots:
            name = document_name(snapshot.digest)
            document = read_small(self._archive, name, SNAPSHOT_SIZE_MAX_BYTES)
            if (found := snapshot_digest(document)) != snapshot.digest:
                raise DamagedObject(
                    f"{name} of the export is another document",
                    object=name,
                    expected=str(snapshot.digest),
                    found=str(found),
                )
            self.documents[snapshot.digest] = document
            if trust is not None:
                self.proven.append(self._prove(snapshot.digest, snapshot.entry, trust))

    def _prove(self, digest: SnapshotDigest, index: int | None, trust: TrustFile) -> ProvenSnapshot:
        """Hold a snapshot's entry and proof against the trust file.

        Raises:
            VerificationError: it has none, or they do not hold.
        """
        names = set(self._archive.names())
        wanted = [proof_name(digest, suffix) for suffix in (ENTRY_SUFFIX, PROOF_SUFFIX)]
        if index is None or not names.issuperset(wanted):
            raise VerificationError(
                f"the export carries no proof that the snapshot {digest} was published",
                hint="export it anew with a trust file, or import it without --trust",
            )
        data = read_small(self._archive, wanted[0], ENTRY_SIZE_MAX_BYTES)
        proof = read_small(self._archive, wanted[1], PROOF_SIZE_MAX_BYTES)
        try:
            opened = open_proof(proof, leaf_hash(data), trust.log_verifier, trust.origin, [trust.clock_verifier])
            entry = decode_entry(data)
            args = entry.intent()[1]
        except (MalformedDocument, TooLarge) as error:
            raise VerificationError(f"the proof of the snapshot {digest} cannot be read: {error.detail}") from error
        if not isinstance(args, SnapshotArgs) or args.digest != digest or decode_proof(proof).index != entry.idx:
            raise VerificationError(f"the proof of the snapshot {digest} is about something else", index=entry.idx)
        return ProvenSnapshot(
            digest,
            trust.origin,
            entry.idx,
            opened.checkpoint.size,
            entry.ts,
            min(opened.cosigned_at_ms.values(), default=None),
        )

    # --- the packs ---------------------------------------------------------------------------------------------------

    async def send(self) -> ImportPush:
        """Read all packs, verify all objects, send those that the server lacks."""
        sender = ImportPush(self._api.transport)
        self.objects = 0
        try:
            for member in self._packs:
                for frame in await self._workers.run(self._frames, member):
                    self.objects += 1
                    await sender.offer(frame)
            await sender.finish()
        finally:
            await sender.close()
        return sender

    def _frames(self, member: Member) -> list[Frame]:
        """The objects of a pack, verified; in memory, as a pack is."""
        decoder = PackDecoder()
        found: list[Frame] = []
        try:
            for block in _verified_blocks(self._archive, member, max_bytes=PACK_SIZE_MAX_BYTES):
                frames = decoder.feed(block)
                for frame in frames:
                    # TRUST: whatever the archive says, the bytes must be the object that they go by.
                    open_frame(frame)
                found += [frame._replace(stored=bytes(frame.stored)) for frame in frames]
            decoder.finish()
        except (MalformedDocument, TooLarge) as error:
            raise DamagedObject(
                f"{member.name} of the export is no pack: {error.detail}", object=member.name, where=member.name
            ) from error
        except DamagedObject as error:
            raise DamagedObject(
                f"{member.name} of the export: {error.detail}",
                object=error.object or member.name,
                where=f"{member.name} {error.where or ''}".strip(),
                expected=error.expected,
                found=error.found,
            ) from error
        return found

    # --- names -------------------------------------------------------------------------------------------------------

    async def commit(self, sender: ImportPush) -> list[Artifact]:
        """Have the server prove every tree and blob, and record it."""
        last = len(self.manifest.artifacts) - 1
        for number, artifact in enumerate(self.manifest.artifacts):
            if number < len(self._done):
                continue  # recorded before the push lost its lease
            labels = [Label(k, v) for k, v in artifact.labels]
            name = None if artifact.name is None else str(artifact.name)
            digest, more = str(artifact.digest), number < last
            request = CommitRequest(kind=artifact.kind, digest=digest, name=name, labels=labels, more=more)
            try:
                self._done.append(await sender.commit(request))
            except SnapshotIncomplete as error:
                if not self.manifest.base:
                    raise
                raise SnapshotIncomplete(
                    f"{error.detail}. This export leaves out what {', '.join(self.manifest.base[:3])} has",
                    hint="import that first, or export the whole",
                    missing=error.missing,
                    missing_count=error.missing_count,
                ) from error
        return list(self._done)

    async def publish(self, why: str) -> list[SnapshotDigest]:
        """Publish the snapshots, parents first."""
        for digest, document in self.documents.items():
            await self._api.snapshot_publish(document, why=why)
            assert snapshot_digest(document) == digest, "documents were verified"
        return list(self.documents)


def _read_end(archive: ArchiveReader) -> ExportEnd:
    """The last member, which must list exactly the others.

    Raises:
        DamagedObject: it is not there, or the archive holds something else.
    """
    try:
        end = decode_end(read_small(archive, LAST, END_MAX_BYTES))
    except (MalformedDocument, TooLarge) as error:
        raise DamagedObject(f"{LAST} of the export cannot be read: {error.detail}", object=LAST, where=LAST) from error
    listed, there = {member.name for member in end.members}, set(archive.names()) - {LAST}
    if listed != there:
        name = min(listed ^ there)
        said = "is missing" if name in listed else "does not belong there"
        raise DamagedObject(f"{name} {said} in the export", object=name, where=name)
    return end


def _check_snapshots(end: ExportEnd, manifest: ExportManifest) -> None:
    """Documents and proofs belong to snapshots that the manifest names; those it names without a document fail when read.

    Raises:
        DamagedObject: a document or proof of a snapshot that the export is not about.
    """
    allowed = set[str]()
    for snapshot in manifest.snapshots:
        allowed.add(document_name(snapshot.digest))
        allowed.update(proof_name(snapshot.digest, suffix) for suffix in (ENTRY_SUFFIX, PROOF_SUFFIX))
    for member in end.members:
        if member.name.startswith(("snapshots/", "proofs/")) and member.name not in allowed:
            raise DamagedObject(
                f"{member.name} does not belong there: {FIRST} of the export names no such snapshot",
                object=member.name,
                where=member.name,
            )


def _verified_blocks(archive: ArchiveReader, member: Member, *, max_bytes: int) -> Iterator[bytes]:
    """A member in blocks; the last one is followed by an error if they were not what the end says."""
    if member.size > max_bytes or archive.size(member.name) != member.size:
        raise DamagedObject(
            f"{member.name} of the export has {archive.size(member.name)} bytes, {member.size} are listed",
            object=member.name,
            where=member.name,
            expected=str(member.size),
            found=str(archive.size(member.name)),
        )
    hasher = Blake3Hasher()

    def each(block: bytes) -> None:
        hasher.update(block)

    yield from read_blocks(archive, member.name, member.size, each)
    if hasher.digest() != member.blake3:
        raise DamagedObject(
            f"{member.name} of the export is damaged",
            object=member.name,
            where=member.name,
            expected=member.blake3.hex(),
            found=hasher.hexdigest(),
        )
