"""A push, from *what is missing* to an artifact.

Owns the three steps of a push and the order in which a commit becomes durable.  Knows no HTTP; what is where and what
may wait for what is said at each method, so that a server can place each part on the thread it belongs to.

    ORDER: frames before the pack's name, the pack before the index, the index before tree and layout, those before the
    snapshot entry.  *Acknowledged means proven*: every file of every page of the tree reassembles to its digest.

A commit is three calls, and the order is in their types: only :meth:`PushService.prove` makes a :class:`Proof`, only
:meth:`PushService.remember` turns it into a :class:`Remembered`, and only that can be given to
:meth:`PushService.record`.

Layouts: the index holds proven layouts and no others.  A layout that a push brings is known to that push alone; once
it is proven the store writes it into a pack of its own and records that, and the first that is recorded stays.  So
nobody can make a page that others will rely on point at the
wrong bytes: a page with an unproven layout is *missing* for everyone else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from typing import Final, NamedTuple

from casstore.clock import Clock
from casstore.engine.artifacts import ArtifactService, NewArtifact, check_labels
from casstore.engine.claims import Claim
from casstore.engine.commit_proof import CommitProof
from casstore.engine.ingest import PackIngest
from casstore.engine.packs import PackService, SealedPack
from casstore.engine.presence import Presence
from casstore.engine.proving import run_units
from casstore.engine.references import references_of
from casstore.engine.sessions import PushSessions
from casstore.engine.whole_trees import WholeTree, WholeTrees
from casstore.errors import DamagedObject, InvalidInput, LeaseLost, NotFound, SnapshotIncomplete, TooLarge
from casstore.formats.pack import ObjectKind
from casstore.ids import ArtifactName, BlobDigest, PackId, PushId, TreeDigest
from casstore.limits import MIB, MISSING_IDS_MAX, PUSH_LEASE_MS
from casstore.storage.roles import FileProof, Location
from casstore.wire import Artifact, CommitRequest, encode_bitmap

# LIMIT: proven layouts that are held until they are written, as one pack.
_SEAL_BYTES: Final = 8 * MIB
_ID: Final = 32


class Proof(NamedTuple):
    """A tree or blob that is whole and right, and what is to be remembered of that.  Made by
    :meth:`PushService.prove`.
    """

    push: PushId
    artifact: NewArtifact
    keys: list[bytes]
    """Memo keys of the pages, or of the blob, that were proven now."""
    files: list[FileProof]
    """Of those, what an earlier commit had not proven: a later release shares most of its files with this one."""
    tree_keys: list[bytes]
    """The memo key of the tree itself; none for a blob."""
    layouts: list[SealedPack]
    """The layouts that were proven now, in packs of their own that nobody knows yet."""
    read_bytes: int
    """Plain bytes that the proof took apart and hashed."""
    losses: int | None
    """The index's count of losses when the proof began; None if something that it found is condemned."""
    sealed_ms: int
    """When its layouts were written, on the clock of leases."""
    more: bool
    """Whether the push keeps its lease, because further commits of it follow."""


class Remembered(NamedTuple):
    """A proof that the index holds durably.  Made by :meth:`PushService.remember`."""

    proof: Proof
    revived_ms: int
    """When everything that it needs was seen live, on the clock of leases."""


class PushService:
    """Pushes under way.

    Args:
        packs: where objects are read and packs go.
        presence: what is there.
        artifacts: where a commit is recorded.
        clock: leases run on it.
    """

    def __init__(self, packs: PackService, presence: Presence, artifacts: ArtifactService, clock: Clock) -> None:
        self._packs = packs
        self._presence = presence
        self._artifacts = artifacts
        self._clock = clock
        self.sessions = PushSessions(clock)
        self._whole = WholeTrees()

    # --- step 1 ------------------------------------------------------------------------------------------------------

    def missing(self, push: PushId, kind: ObjectKind, ids: bytes, *, by: str = "") -> bytes:
        """Say which objects the store lacks; begins the push or renews its lease.

        Args:
            push: the client's choice, 128 random bits.
            kind: ``CHUNK`` or ``PAGE``; a page is present only with a proven layout and all chunks.
            ids: 32 bytes each, at most ``MISSING_IDS_MAX`` of them.
            by: the principal who pushes.

        Returns:
            A bitmap (:func:`casstore.wire.encode_bitmap`), a set bit for each missing id.

        Raises:
            InvalidInput: another kind, or not a multiple of 32 bytes.
            TooLarge: too many ids.
            Overloaded: too many pushes are under way.
        """
        if len(ids) % _ID:
            raise InvalidInput(f"ids are {_ID} bytes each; {len(ids)} bytes are not a whole number of them")
        if len(ids) > MISSING_IDS_MAX * _ID:
            raise TooLarge(f"a request asks for at most {MISSING_IDS_MAX} ids", limit=MISSING_IDS_MAX)
        if kind not in (ObjectKind.CHUNK, ObjectKind.PAGE):
            raise InvalidInput("a push asks for chunks or pages")
        self.sessions.begin(push, asked=True, by=by)
        digests = [ids[at : at + _ID] for at in range(0, len(ids), _ID)]
        look = self._presence.chunks if kind is ObjectKind.CHUNK else self._presence.pages
        return encode_bitmap([not present for present in look(digests)])

    # --- step 2 ------------------------------------------------------------------------------------------------------

    def begin_pack(self, push: PushId, pack: PackId, *, by: str = "", runs_size: int = 0) -> PackIngest:
        """Begin to receive a pack; begins the push or renews its lease.  ``abort`` must be called at the end in any
        case.

        Args:
            push: the push that brings it.
            pack: its name.
            by: the principal who pushes.
            runs_size: how many bytes of file runs come in front of it.

        Raises:
            TooLarge: more than ``RUNS_SIZE_MAX_BYTES`` of runs.
            RequestInProgress: the same pack is being received.
            Overloaded: too many packs of this push, or too many pushes.
            StoreFull: no space is left.
        """
        self.sessions.begin_pack(push, pack, by=by)
        begun = False
        try:
            ingest = PackIngest(
                self._packs,
                pack,
                learned=lambda layouts: self.sessions.learn_layouts(push, layouts),
                ended=lambda recorded: self.sessions.end_pack(push, pack, recorded=recorded),
                runs=self.sessions.begin_runs(push) if runs_size else None,
                runs_size=runs_size,
            )
            begun = True
        finally:
            if not begun:
                self.sessions.end_pack(push, pack, recorded=False)
        return ingest

    # --- step 3 ------------------------------------------------------------------------------------------------------

    def prove(
        self, push: PushId, request: CommitRequest, *, pool: Executor | None = None, width: int = 1
    ) -> Proof | Artifact:
        """Hold a tree or blob against everything that it promises.

        For a tree: the root and every page are well-formed together (no hostile path, cut where the rule says), every
        page has a layout that fits it, every chunk is present, and every file of a page that was not proven before
        reassembles to its digest.

        Args:
            push: the push that brought it, or found it present.
            request: what to commit.
            pool: threads that help; the calling thread works as well, and may be one of them.
            width: how many threads work on this proof at most.

        Returns:
            The proof, or the artifact if this push has committed the same thing before (a retry).

        Raises:
            LeaseLost: the push is not known (lease run out, restart): it begins again.
            SnapshotIncomplete: objects are missing; up to 20 are named.
            HostileTree: a path that no honest tree has.
            MalformedDocument: a page, root or layout breaks its format, or a layout does not fit.
            DigestMismatch: a file is not what its digest says.
            TooLarge: more repeated bytes than ``PROOF_REPEATED_MAX_BYTES``.
            Overloaded: other large layouts or roots are being worked on.
            InvalidInput: name, labels or digest are not such.
            DamagedObject: a stored object cannot be read.
            StoreFull, OutcomeUnknown: the layouts cannot be written.

        Durability: the proven layouts are durable, and not yet known to anyone.
        """
        name = None if request.name is None else ArtifactName.parse(request.name)
        check_labels(request.labels)
        if (done := self._artifacts.committed(push, request)) is not None:
            return done
        brought = self.sessions.layouts(push)
        if (known := self._find_whole(push, name, request)) is not None:
            return known
        commit = CommitProof(self._packs, brought, self.sessions.runs(push))
        digest: TreeDigest | BlobDigest
        if request.kind == "tree":
            digest = TreeDigest.parse(request.digest)
            units = commit.tree_units(digest)
        else:
            digest = BlobDigest.parse(request.digest)
            units = commit.blob_units(digest)
        try:
            # The generator holds room for what is large: it is closed here, and not when someone forgets the error.
            with closing(units):
                run_units(units, commit.prove, pool=pool, width=width)
        except SnapshotIncomplete as error:
            # Without having asked, a push cannot know what the store lacks: it lost its memory, not its content.
            if not self.sessions.asked(push):
                raise LeaseLost(
                    f"push {push} has not asked what is missing: {error.detail}", hint="begin again"
                ) from error
            raise
        artifact = NewArtifact(push, name, request.kind, digest, tuple(request.labels), commit.size_bytes, commit.files)
        sealed_ms = self._clock.boottime_ms()
        layouts = list(self._seal_layouts(commit.proven))
        losses = None if commit.asleep else commit.losses
        return Proof(
            push=push,
            artifact=artifact,
            keys=commit.keys,
            files=commit.files_proven,
            tree_keys=commit.tree_keys,
            layouts=layouts,
            read_bytes=sum(commit.read),
            losses=losses,
            sealed_ms=sealed_ms,
            more=request.more,
        )

    def _find_whole(self, push: PushId, name: ArtifactName | None, request: CommitRequest) -> Proof | None:
        """The proof of a tree that was whole when it was committed last, if nothing was lost since."""
        if request.kind != "tree":
            return None
        digest = TreeDigest.parse(request.digest)
        tree = self._whole.find(digest, self._packs.index.losses)
        if tree is None:
            return None
        artifact = NewArtifact(push, name, "tree", digest, tuple(request.labels), tree.size_bytes, tree.files)
        return Proof(push, artifact, [], [], [], [], 0, tree.losses, self._clock.boottime_ms(), request.more)

    def _seal_layouts(self, proven: Sequence[tuple[bytes, Location]]) -> Iterator[SealedPack]:
        """Write layouts that have been proven into packs of the store's own."""
        batch: list[tuple[ObjectKind, bytes, bytes]] = []
        size = 0
        waiting = sorted(proven, key=lambda item: item[1][:2])
        for (digest, _), data in zip(waiting, self._packs.read_located(ObjectKind.LAYOUT, waiting), strict=True):
            batch.append((ObjectKind.LAYOUT, digest, data))
            size += len(data)
            if size >= _SEAL_BYTES:
                yield self._packs.seal_objects(batch)
                batch, size = [], 0
        if batch:
            yield self._packs.seal_objects(batch)

    def remember(self, proof: Proof) -> Remembered:
        """Make a proof durable: from here on everyone finds the pages present.

        Durability: memo and layouts are durable when this returns.
        Threads: index writer.

        Raises:
            LeaseLost: something that the proof found was collected since; the push begins again.
            StoreFull, OutcomeUnknown: as the index says.
        """
        index = self._packs.index
        # CRASH: packs that the index does not know are removed after a grace that is longer than a lease.
        self._refuse_stale(proof.sealed_ms)
        for sealed in proof.layouts:
            # Somebody took the pack in since it was written, without the layouts: who could tell that they are proven?
            if index.pack(sealed.record.pack) is not None:
                raise _collected(proof.artifact)
        now_ms = self._clock.boottime_ms()
        # ORDER: everything that the artifact needs is live, in one transaction, before the ledger learns of it: from then on
        # each mark finds it.  What was live when the proof began, and nothing was lost since, needs no second look.
        whole = proof.losses == index.losses
        # ORDER: memo and layouts together: a layout that the index knows is a proven one.  The tree's own key not before all that
        # the tree needs is live: a tree that the memo knows lacks nothing.
        memo = [*proof.keys, *proof.tree_keys] if whole else proof.keys
        index.remember([(sealed.record, sealed.frames) for sealed in proof.layouts], memo=memo, files=proof.files)
        if not whole:
            self._revive(proof.artifact)
            index.memo_add(proof.tree_keys)
        made = proof.artifact
        if isinstance(made.digest, TreeDigest):
            self._whole.note(made.digest, WholeTree(index.losses, made.size_bytes, made.files))
        self.sessions.forget_layouts(proof.push, [row.id for sealed in proof.layouts for row in sealed.frames])
        self.sessions.forget_runs(proof.push)
        return Remembered(proof, now_ms)

    def _refuse_stale(self, since_ms: int) -> None:
        if self._clock.boottime_ms() - since_ms > PUSH_LEASE_MS:
            raise LeaseLost("the commit took longer than a lease: some of it may be gone", hint="begin again")

    def _revive(self, artifact: NewArtifact) -> None:
        try:
            absent = self._packs.index.revive(references_of(self._packs, artifact.kind, artifact.digest))
        except (NotFound, DamagedObject) as error:
            raise _collected(artifact) from error
        if absent:
            raise _collected(artifact)

    def record(self, remembered: Remembered, *, by: str) -> Artifact:
        """Record the artifact: the push is done.

        Args:
            remembered: what :meth:`remember` returned.
            by: the principal who pushed.

        Durability: the artifact is durable when this returns, and everything that it needs was before.
        Threads: ledger writer.

        Raises:
            LeaseLost: too much time went by since it was remembered.
            StoreFull, OutcomeUnknown: as the ledger says.
        """
        artifact = remembered.proof.artifact
        claims = self._presence.claims
        # ORDER: claimed, then held against the lease.  What was live then could be condemned then at the earliest, and dropped
        # a grace later, which is longer than a lease: so nothing was dropped before the claim, and nothing is behind it.
        with claims.scope():
            claims.claim(Claim(artifact.kind, artifact.digest))
            self._refuse_stale(remembered.revived_ms)
            added = self._artifacts.add(artifact, by=by)
        # A retry finds the artifact; nobody waits for the lease of a push that is done.
        if not remembered.proof.more:
            self.sessions.end(remembered.proof.push)
        return added

    def commit(
        self, push: PushId, request: CommitRequest, *, by: str, pool: Executor | None = None, width: int = 1
    ) -> Artifact:
        """The three steps of a commit in one thread.

        Threads: the one that writes index and ledger.

        Raises:
            CasstoreError: as :meth:`prove`, :meth:`remember` and :meth:`record`.
        """
        proof = self.prove(push, request, pool=pool, width=width)
        return proof if isinstance(proof, Artifact) else self.record(self.remember(proof), by=by)


def _collected(artifact: NewArtifact) -> LeaseLost:
    return LeaseLost(
        f"some of what {artifact.digest} needs was collected, or found damaged, while it was being proven",
        hint="begin again; what is still there is not sent twice",
    )
