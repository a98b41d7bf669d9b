"""The ledger's acting half of the SDK: publish snapshots, flip pointers, roll back, hold, mark, change the policy, audit.

Every act is signed here, as an intent over what this client has verified just before, and the answer is checked before it is
returned.  Without a trust file nothing is signed: a signature over what nobody verified would bind its signer to anything.

Source: docs/formats/intent.md, docs/formats/wire.md
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, NamedTuple

import msgspec

from casstore.clock import Clock
from casstore.errors import (
    ConfigurationError,
    InvalidInput,
    PreconditionFailed,
    SeenMismatch,
    Superseded,
    VerificationError,
)
from casstore.formats.acts import (
    ACTS,
    AnyArgs,
    FlipArgs,
    FlipKind,
    HoldArgs,
    MarkArgs,
    Member,
    PolicyArgs,
    ReleaseArgs,
    SnapshotArgs,
    Verdict,
    args_of,
    flip_args,
)
from casstore.formats.canonical import encode_b64
from casstore.formats.checkpoint import Checkpoint
from casstore.formats.intent import Intent, encode_intent, sign_intent
from casstore.formats.policy import Policy
from casstore.formats.snapshot import Component, Label, Snapshot, decode_snapshot, encode_snapshot, snapshot_digest
from casstore.ids import BlobDigest, ComponentName, PointerName, SnapshotDigest, TreeDigest
from casstore.signing import SigningKey
from casstore.wire import (
    IntentRequest,
    RollbackRequest,
    RollbackTo,
    SnapshotPublish,
    Submitted,
)
from casstore_client.audit import AuditProgress, AuditReport, run_audit
from casstore_client.claims import check_submitted, snapshot_of
from casstore_client.ledger_reading import LedgerReader
from casstore_client.transport import Transport
from casstore_client.trust_store import TrustStore

Expect = int | None | Literal["any"]
"""The flip that a pointer is at as the caller saw it; None for a new pointer; ``any`` to take what comes."""

INTENT_LIFE_MS: Final = 5 * 60 * 1000  # long enough for a retry, short enough that a stolen one is worthless soon
ANY_ATTEMPTS_MAX: Final = 3


_ACT_NAMES: Final = {kind: act for act, kind in ACTS.items()}
_COMPONENT_DIGESTS: Final[dict[str, type[TreeDigest] | type[BlobDigest]]] = {"tree": TreeDigest, "blob": BlobDigest}


class _Move(NamedTuple):
    """A flip of one pointer; ``clear`` are the bad mark and the hold that it overrides."""

    kind: FlipKind
    pointer: PointerName
    to: SnapshotDigest | None
    clear: tuple[bool, bool] = (False, False)


class _Asked(NamedTuple):
    """An act and where it is handed in."""

    args: AnyArgs
    why: str
    path: str
    body: Callable[[IntentRequest], object]


class LedgerApi(LedgerReader):
    """Snapshots, pointers and the log of one server.

    Args:
        transport: how to reach it.
        trust: what to verify against; None verifies nothing.
        key: signs what this client asks for; None for reading only.
        clock: says when an intent was made, and how old a checkpoint is.
    """

    def __init__(self, transport: Transport, trust: TrustStore | None, key: SigningKey | None, clock: Clock) -> None:
        super().__init__(transport, trust, clock)
        self._key = key
        self._clock = clock

    # --- snapshots ---------------------------------------------------------------------------------------------------

    async def snapshot_create(
        self,
        components: Sequence[tuple[str, Literal["tree", "blob"], str]],
        *,
        parents: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        mutable: Sequence[str] = (),
        why: str = "",
    ) -> tuple[Submitted, SnapshotDigest]:
        """Publish a snapshot.

        Args:
            components: name, kind and whole digest of each.
            parents: whole digests of the snapshots that it follows.
            labels: free for people.
            metadata: a JSON object that is stored with it.
            mutable: paths that programs may write to on a host.
            why: stands in the log for ever.

        Raises:
            SnapshotIncomplete: content that it needs is not in the store.
            InvalidInput: a name, digest or the metadata is not well-formed.
        """
        typed = [
            Component(ComponentName.parse(name), kind, _COMPONENT_DIGESTS[kind].parse(digest))
            for name, kind, digest in components
        ]
        followed = tuple(snapshot_of(parent) for parent in parents)
        document = encode_snapshot(
            Snapshot(
                components=tuple(typed),
                labels=tuple(Label(key, value) for key, value in (labels or {}).items()),
                metadata=dict(metadata or {}),
                mutable=tuple(mutable),
                parents=followed,
            )
        )
        return await self.snapshot_publish(document, why=why)

    async def snapshot_publish(self, document: bytes, *, why: str = "") -> tuple[Submitted, SnapshotDigest]:
        """Publish a snapshot whose document exists.

        Args:
            document: its bytes.
            why: stands in the log for ever.

        Raises:
            SnapshotIncomplete: content that it needs is not in the store.
            SnapshotNotFound: a snapshot that it follows was never published here.
            MalformedDocument, TooLarge: not such a document.
        """
        digest = snapshot_digest(document)
        parents = sorted(decode_snapshot(document).parents)
        args = SnapshotArgs(digest=digest, parents=parents, size=len(document))

        def body(request: IntentRequest) -> SnapshotPublish:
            return SnapshotPublish(document=encode_b64(document), intent=request.intent)

        return await self._act(args, why, "/v1/snapshots", body), digest

    # --- pointers ----------------------------------------------------------------------------------------------------

    async def flip(
        self,
        name: str,
        snapshot: str,
        *,
        expect: Expect,
        reason: str = "",
        clear_bad: bool = False,
        clear_hold: bool = False,
    ) -> Submitted:
        """Make a pointer name a snapshot: one atomic compare-and-swap, durable and logged before it is answered.

        Args:
            name: the pointer.
            snapshot: whole digest.
            expect: the flip that the pointer is at.
            reason: stands in the log for ever.
            clear_bad: the snapshot is marked bad: take the mark away.
            clear_hold: the pointer is held: end the hold.

        Raises:
            PreconditionFailed: the pointer is elsewhere; carries where.
            Held, SnapshotBad, SnapshotNotFound, SnapshotIncomplete, NotPermitted: as the server judged.
            ConfigurationError: this client has no trust file or no key.
            VerificationError, Regression: what the server answered does not hold.
        """
        move = _Move("deploy", PointerName.parse(name), snapshot_of(snapshot), (clear_bad, clear_hold))
        return await self._flip(move, expect, reason)

    async def promote(
        self,
        source: str,
        destination: str,
        *,
        expect: Expect,
        reason: str = "",
        clear_bad: bool = False,
        clear_hold: bool = False,
    ) -> Submitted:
        """Flip ``destination`` to what ``source`` names, as verified.

        Raises:
            InvalidInput: ``source`` is retired.
            And as :meth:`flip`.
        """
        snapshot = (await self.pointer(source)).snapshot
        if snapshot is None:
            raise InvalidInput(f"{source} is retired and names no snapshot")
        move = _Move("promote", PointerName.parse(destination), snapshot_of(snapshot), (clear_bad, clear_hold))
        return await self._flip(move, expect, reason)

    async def retire(self, name: str, *, expect: Expect, reason: str = "") -> Submitted:
        """Make a pointer name nothing; its history stays.

        Raises:
            As :meth:`flip`.
        """
        return await self._flip(_Move("retire", PointerName.parse(name), None), expect, reason)

    async def _flip(self, move: _Move, expect: Expect, reason: str) -> Submitted:
        async def once(expected: int | None) -> Submitted:
            kind: FlipKind = "init" if expected is None and move.kind == "deploy" else move.kind
            member = Member(expect=expected, pointer=move.pointer, to=move.to)
            return await self._act(flip_args(kind, [member], clear=move.clear), reason, "/v1/flips")

        return await self._expecting(move.pointer, expect, once)

    async def rollback(
        self,
        name: str,
        *,
        to: Literal["previous"] | RollbackTo = "previous",
        expect: Expect,
        reason: str = "",
        leave_bad: bool = True,
        leave_hold: bool = True,
        agreed: str | None = None,
    ) -> Submitted:
        """Take a pointer back to an earlier snapshot.

        Args:
            name: the pointer.
            to: ``previous``, or one of the ways of :class:`~casstore.wire.RollbackTo`.
            expect: the flip that the pointer is at.
            reason: stands in the log for ever.
            leave_bad: mark the snapshot that is left bad, so that a second rollback goes further back.
            leave_hold: put the pointer on hold, so that automation does not put it back.
            agreed: the snapshot (whole digest) that somebody agreed to go back to; no other one is signed.

        Raises:
            Superseded: it would go elsewhere than was agreed.
            NoRollbackTarget: nothing qualifies.
            PreconditionFailed: somebody was faster; carries who and when.
            And as :meth:`flip`.
        """
        pointer = PointerName.parse(name)

        async def once(expected: int | None) -> Submitted:
            target = await self.rollback_target(name, to)
            if agreed not in (None, target.target):
                raise Superseded(f"{name} would go back to {target.target} now, not to {agreed}. Nothing changed.")
            member = Member(expect=expected, pointer=pointer, to=snapshot_of(target.target))
            resolve: Literal["previous"] | None = "previous" if to == "previous" else None
            args = flip_args("rollback", [member], resolve=resolve, left=(leave_bad, leave_hold))
            answer = await self._act(args, reason, f"/v1/pointers/{pointer}/rollback", _rollback_request)
            return msgspec.structs.replace(answer, skipped=answer.skipped or target.skipped)

        return await self._expecting(pointer, expect, once)

    async def _expecting(
        self, pointer: PointerName, expect: Expect, once: Callable[[int | None], Awaitable[Submitted]]
    ) -> Submitted:
        """Act with what the caller expects; with ``any``, read and try again where somebody else was faster."""
        if expect != "any":
            return await once(expect)
        for _ in range(ANY_ATTEMPTS_MAX - 1):
            with suppress(PreconditionFailed):
                return await once(await self._flip_of(pointer))
        return await once(await self._flip_of(pointer))

    async def _flip_of(self, pointer: PointerName) -> int | None:
        current = await self.pointer_or_none(pointer)
        return None if current is None else current.flip

    async def hold(self, name: str, *, until_ms: int | None = None, reason: str = "") -> Submitted:
        """Block every flip of a pointer but rollbacks, until released or until a time (ms since the epoch).

        Raises:
            PointerNotFound: there never was one.
            And as :meth:`flip`.
        """
        pointer = PointerName.parse(name)
        return await self._act(HoldArgs(pointer=pointer, until=until_ms), reason, f"/v1/pointers/{pointer}/hold")

    async def release(self, name: str, *, reason: str = "") -> Submitted:
        """End a hold.

        Raises:
            PointerNotFound: there never was one.
            And as :meth:`flip`.
        """
        pointer = PointerName.parse(name)
        return await self._act(ReleaseArgs(pointer=pointer), reason, f"/v1/pointers/{pointer}/release")

    async def mark(self, name: str, snapshot: str, verdict: Verdict, *, reason: str = "") -> Submitted:
        """Mark a snapshot (whole digest) good or bad for a pointer.

        Raises:
            PointerNotFound, SnapshotNotFound: there never was one.
            And as :meth:`flip`.
        """
        pointer = PointerName.parse(name)
        args = MarkArgs(pointer=pointer, snapshot=snapshot_of(snapshot), verdict=verdict)
        return await self._act(args, reason, f"/v1/pointers/{pointer}/marks")

    # --- policy and audit --------------------------------------------------------------------------------------------

    async def set_policy(self, document: Mapping[str, Any], *, reason: str = "") -> Submitted:
        """Replace the policy; its ``version`` must be the next one.

        Raises:
            InvalidInput: the document has no version, or is not fit to be a policy.
            And as :meth:`flip`.
        """
        version = document.get("version")
        if not isinstance(version, int) or isinstance(version, bool):
            raise InvalidInput(
                "the policy has no version",
                hint="take that of `casstore policy show`, edit it, and raise the version by one",
            )
        Policy(dict(document))
        return await self._act(PolicyArgs(policy=dict(document), version=version), reason, "/v1/policy")

    async def audit(self, full: bool = False, progress: Callable[[AuditProgress], None] | None = None) -> AuditReport:
        """Verify the whole log level by level, and that its content is there; with ``full`` all of its content.

        Args:
            full: fetch and hash every chunk, and put every file together.
            progress: told how far it is, on the loop's thread.

        Returns:
            what was checked and what was found; ``ok`` says whether everything holds.

        Raises:
            ConfigurationError: this client has no trust file.
            TransportError, ProtocolError, Unavailable: the server stopped answering; nothing is said of its log.

        Memory: about 300 bytes an entry and 200 a page, beside 64 MiB.
        """
        return await run_audit(self.transport, self.verified_log(), full=full, progress=progress)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _act(
        self, args: AnyArgs, why: str, path: str, body: Callable[[IntentRequest], object] = lambda request: request
    ) -> Submitted:
        """Sign an act over what was verified, hand it in, and check the answer."""
        log = self.verified_log()
        if self._key is None:
            raise ConfigurationError("this client has no signing key", hint="pass a key, or set CASSTORE_KEY_FILE")
        asked = _Asked(args, why, path, body)
        seen = await self._seen(args)
        version = await log.known_policy_version()
        try:
            return await self._hand_in(asked, self._key, seen, version)
        except Superseded:
            newest = await log.policy_version()
            if newest == version:
                raise
            # The policy was replaced since this client last looked: what was asked for is judged by the new one.
            return await self._hand_in(asked, self._key, seen, newest)
        except SeenMismatch:
            # TRUST: the server denies what it once signed.  Let it prove that its log continues that: this raises the
            # alarm and keeps both notes, unless it does.
            await self.checkpoint()
            raise

    async def _seen(self, args: AnyArgs) -> Checkpoint:
        """What the signer has verified.  It must hold the flips that are replaced, and need not be the newest: so a client
        that has just read the pointer asks for nothing more."""
        log = self.verified_log()
        known = await log.baseline()
        seen = None if known is None else log.open_note(known.note).checkpoint
        if seen is None or not _covers(seen, args):
            seen = (await self.checkpoint()).checkpoint
        _check_expectations(args, seen)
        return seen

    async def _hand_in(self, asked: _Asked, key: SigningKey, seen: Checkpoint, version: int) -> Submitted:
        log = self.verified_log()
        act = _ACT_NAMES[type(asked.args)]
        now = self._clock.now_ms()
        intent = Intent(
            act=act,
            args=args_of(asked.args),
            exp=now + INTENT_LIFE_MS,
            iat=now,
            log=seen.origin,
            nonce=secrets.token_hex(16),
            policy=version,
            seen_root=seen.root,
            seen_size=seen.size,
            why=asked.why,
        )
        payload = encode_intent(intent)
        request = asked.body(IntentRequest(intent=sign_intent(payload, [key])))
        since = await log.baseline()
        # A signed intent is carried out once, however often it arrives: so it may be sent again on a broken connection.
        answer = await self.transport.send_json("POST", asked.path, request, Submitted, step=act, repeatable=True)
        if answer.proof is None:
            raise VerificationError("the server's answer carries no proof of what it did")
        check_submitted(answer, await log.take_bundle(answer.proof, since), payload)
        return answer


def _covers(seen: Checkpoint, args: AnyArgs) -> bool:
    """Whether every flip that the act expects lies in the log that was seen."""
    members = args.members if isinstance(args, FlipArgs) else ()
    return all(member.expect is None or member.expect < seen.size for member in members)


def _check_expectations(args: AnyArgs, seen: Checkpoint) -> None:
    """An expected flip must be in the log that was verified: nobody can have seen it elsewhere.

    Raises:
        PreconditionFailed: it is not.
    """
    for member in args.members if isinstance(args, FlipArgs) else ():
        if member.expect is not None and member.expect >= seen.size:
            raise PreconditionFailed(
                f"{member.pointer} cannot be at f{member.expect}: the log has {seen.size} entries. Nothing changed.",
                expected=f"f{member.expect}",
            )


def _rollback_request(request: IntentRequest) -> RollbackRequest:
    return RollbackRequest(intent=request.intent)
