"""The ledger's half of the SDK: snapshots, pointers, flips, history, policy, proofs, tokens.

Every act is signed here, as an intent over what this client has verified, and every answer with a proof is checked before it is
returned.  Without a trust file reading works and proves nothing (:attr:`LedgerApi.verifies` says so), and signing does not.

Source: docs/formats/intent.md, docs/formats/wire.md
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from casstore.clock import Clock
from casstore.errors import ConfigurationError, Conflict, InvalidInput, PointerNotFound, PreconditionFailed, VerificationError
from casstore.formats.acts import AnyArgs, FlipKind, HoldArgs, MarkArgs, Member, PolicyArgs, ReleaseArgs, SnapshotArgs, args_of, flip_args
from casstore.formats.canonical import encode_b64
from casstore.formats.checkpoint import OpenedCheckpoint
from casstore.formats.intent import Intent, encode_intent, sign_intent
from casstore.formats.snapshot import Component, Label, Snapshot, decode_snapshot, encode_snapshot, snapshot_digest
from casstore.ids import ComponentName, PointerName, SnapshotDigest
from casstore.limits import SNAPSHOT_SIZE_MAX_BYTES
from casstore.signing import SigningKey
from casstore.wire import (
    MEDIA_SNAPSHOT,
    EntryList,
    FsckReport,
    History,
    IntentRequest,
    Pointer,
    PointerList,
    PolicyAnswer,
    RollbackCandidates,
    RollbackRequest,
    RollbackTarget,
    RollbackTo,
    SnapshotList,
    SnapshotPublish,
    Submitted,
    Token,
    TokenCreate,
    TokenList,
    WasLive,
)
from casstore_client.claims import check_pointer, check_submitted, check_was_live, snapshot_of
from casstore_client.facts import ProvenEntry
from casstore_client.transport import Transport, quote_segment
from casstore_client.trust_store import TrustStore
from casstore_client.verified_log import VerifiedLog

Expect = int | None | Literal["any"]
"""The flip that a pointer is at as the caller saw it; None for a new pointer; ``any`` to take what comes."""

INTENT_LIFE_MS: Final = 5 * 60 * 1000  # long enough for a retry, short enough that a stolen one is worthless soon
ANY_ATTEMPTS_MAX: Final = 3
_OPERATION_TIMEOUT_S: Final = 24 * 3600.0  # fsck of a large store says nothing until it is done


class LedgerApi:
    """Snapshots, pointers and the log of one server.

    Args:
        transport: how to reach it.
        trust: what to verify against; None verifies nothing.
        key: signs what this client asks for; None for reading only.
        clock: says when an intent was made.
    """

    def __init__(self, transport: Transport, trust: TrustStore | None, key: SigningKey | None, clock: Clock) -> None:
        self._transport = transport
        self._key = key
        self._clock = clock
        self.log = None if trust is None else VerifiedLog(transport, trust, clock)

    @property
    def verifies(self) -> bool:
        """Whether answers are checked against a trust file."""
        return self.log is not None

    # --- snapshots -----------------------------------------------------------------------------------------------------

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
        document = encode_snapshot(
            Snapshot(
                components=tuple(
                    Component(ComponentName.parse(name), kind, digest) for name, kind, digest in sorted(components)
                ),
                labels=tuple(Label(key, value) for key, value in sorted((labels or {}).items())),
                metadata=dict(metadata or {}),
                mutable=tuple(sorted(mutable)),
                parents=tuple(sorted(snapshot_of(parent) for parent in parents)),
            )
        )
        digest = snapshot_digest(document)
        args = SnapshotArgs(digest=digest, parents=sorted(snapshot_of(parent) for parent in parents), size=len(document))

        def body(request: IntentRequest) -> SnapshotPublish:
            return SnapshotPublish(document=encode_b64(document), intent=request.intent)

        return await self._act("snapshot", args, why, "/v1/snapshots", body), digest

    async def snapshot_document(self, digest: str) -> Snapshot:
        """A snapshot's document, held against its digest.

        Raises:
            SnapshotNotFound: the store has no such snapshot.
            VerificationError: what the server gave is not it.
        """
        wanted = snapshot_of(digest)
        reply = await self._transport.request(
            "GET", f"/v1/snapshots/{wanted}", step="snapshot", media=MEDIA_SNAPSHOT, max_bytes=SNAPSHOT_SIZE_MAX_BYTES
        )
        if snapshot_digest(reply.body) != wanted:
            raise VerificationError(f"the server gave another document for snapshot {wanted}")
        return decode_snapshot(reply.body)

    async def snapshots(self, *, after: str | None = None, limit: int = 100) -> SnapshotList:
        """Published snapshots, newest first."""
        return await self._transport.get_json("/v1/snapshots", SnapshotList, step="list", params=_params(after=after, limit=limit))

    # --- pointers: reading ---------------------------------------------------------------------------------------------

    async def pointer(self, name: str) -> Pointer:
        """What a pointer names now; verified.

        Raises:
            PointerNotFound: there never was one.
            VerificationError, Regression: the server's proof does not hold.
        """
        return (await self._read_pointer(name))[0]

    async def pointer_or_none(self, name: str) -> Pointer | None:
        """As :meth:`pointer`; None if there never was one."""
        try:
            return await self.pointer(name)
        except PointerNotFound:
            return None

    async def _read_pointer(self, name: str) -> tuple[Pointer, OpenedCheckpoint | None]:
        path = f"/v1/pointers/{PointerName.parse(name)}"
        if self.log is None:
            return await self._transport.get_json(path, Pointer, step="pointer"), None
        since = self.log.baseline()
        answer = await self._transport.get_json(path, Pointer, step="pointer", params={"proof": "1"})
        if answer.proof is None or answer.pointer != name:
            raise VerificationError(f"the server's answer about {name} carries no proof of it")
        facts = await self.log.take_bundle(answer.proof, since, {name: answer.flip})
        check_pointer(answer, facts)
        return answer, self.log.open_note(answer.proof.checkpoint.encode())

    async def pointers(self, prefix: str = "", *, after: str | None = None, limit: int = 1000) -> PointerList:
        """Pointers whose name begins with ``prefix``; a listing, without proofs."""
        params = _params(prefix=prefix or None, after=after, limit=limit)
        return await self._transport.get_json("/v1/pointers", PointerList, step="list", params=params)

    async def history(
        self,
        name: str,
        *,
        limit: int = 100,
        before: int | None = None,
        since: str | None = None,
        until: str | None = None,
        kind: str | None = None,
        by: str | None = None,
    ) -> History:
        """A pointer's flips, newest first; a listing, without proofs."""
        before_text = None if before is None else f"f{before}"
        params = _params(limit=limit, before=before_text, since=since, until=until, kind=kind, by=by)
        return await self._transport.get_json(f"/v1/pointers/{PointerName.parse(name)}/history", History, step="list", params=params)

    async def was_live(self, name: str, when: str) -> WasLive:
        """What a pointer named at a time (RFC 3339) or log index (``fN``); verified.

        Raises:
            PointerNotFound: there never was one.
            VerificationError, Regression: the server's proof does not hold.
        """
        path = f"/v1/pointers/{PointerName.parse(name)}"
        since = None if self.log is None else self.log.baseline()
        params = {"at": when} if self.log is None else {"at": when, "proof": "1"}
        answer = await self._transport.get_json(path, WasLive, step="pointer", params=params)
        if self.log is not None:
            if answer.proof is None or answer.pointer != name or answer.asked != when:
                raise VerificationError(f"the server's answer about {name} at {when} carries no proof of it")
            check_was_live(answer, await self.log.take_bundle(answer.proof, since))
        return answer

    async def rollback_target(self, name: str, to: Literal["previous"] | RollbackTo = "previous") -> RollbackTarget:
        """What a rollback would go to now.

        Raises:
            NoRollbackTarget: nothing qualifies; says what was skipped and why.
        """
        params = {"to": "previous"} if to == "previous" else _target_params(to)
        path = f"/v1/pointers/{PointerName.parse(name)}/rollback-target"
        return await self._transport.get_json(path, RollbackTarget, step="rollback-target", params=params)

    async def rollback_candidates(self, name: str) -> RollbackCandidates:
        """What a pointer may go back to, newest first."""
        path = f"/v1/pointers/{PointerName.parse(name)}/rollback-candidates"
        return await self._transport.get_json(path, RollbackCandidates, step="list")

    # --- pointers: acts ------------------------------------------------------------------------------------------------

    async def flip(
        self, name: str, snapshot: str, *, expect: Expect, reason: str = "", clear_bad: bool = False, clear_hold: bool = False
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
        """
        return await self._flip("deploy", name, snapshot, expect, reason, (clear_bad, clear_hold))

    async def promote(
        self, source: str, destination: str, *, expect: Expect, reason: str = "", clear_bad: bool = False, clear_hold: bool = False
    ) -> Submitted:
        """Flip ``destination`` to what ``source`` names, as verified.

        Raises:
            As :meth:`flip`; InvalidInput: ``source`` is retired.
        """
        snapshot = (await self.pointer(source)).snapshot
        if snapshot is None:
            raise InvalidInput(f"{source} is retired and names no snapshot")
        return await self._flip("promote", destination, snapshot, expect, reason, (clear_bad, clear_hold))

    async def retire(self, name: str, *, expect: Expect, reason: str = "") -> Submitted:
        """Make a pointer name nothing; its history stays."""
        return await self._flip("retire", name, None, expect, reason, (False, False))

    async def _flip(
        self, kind: FlipKind, name: str, snapshot: str | None, expect: Expect, reason: str, clear: tuple[bool, bool]
    ) -> Submitted:
        pointer = PointerName.parse(name)
        to = None if snapshot is None else snapshot_of(snapshot)

        async def once(expected: int | None) -> Submitted:
            used: FlipKind = "init" if expected is None and kind == "deploy" else kind
            args = flip_args(used, [Member(expect=expected, pointer=pointer, to=to)], clear=clear)
            return await self._act("flip", args, reason, "/v1/flips", pointer=pointer)

        return await self._expecting(pointer, expect, once)

    async def rollback(
        self,
        name: str,
        *,
        to: Literal["previous"] | RollbackTo = "previous",
        expect: Expect,
        reason: str = "",
        leave_bad: bool = True,
        leave_hold: bool = True,
    ) -> Submitted:
        """Take a pointer back to an earlier snapshot.

        Args:
            name: the pointer.
            to: ``previous``, or one of the ways of :class:`~casstore.wire.RollbackTo`.
            expect: the flip that the pointer is at.
            reason: stands in the log for ever.
            leave_bad: mark the snapshot that is left bad, so that a second rollback goes further back.
            leave_hold: put the pointer on hold, so that automation does not put it back.

        Raises:
            NoRollbackTarget: nothing qualifies.
            PreconditionFailed: somebody was faster; carries who and when.
        """
        pointer = PointerName.parse(name)

        async def once(expected: int | None) -> Submitted:
            target = await self.rollback_target(name, to)
            member = Member(expect=expected, pointer=pointer, to=snapshot_of(target.target))
            resolve: Literal["previous"] | None = "previous" if to == "previous" else None
            args = flip_args("rollback", [member], resolve=resolve, left=(leave_bad, leave_hold))
            path = f"/v1/pointers/{pointer}/rollback"
            answer = await self._act("flip", args, reason, path, lambda request: RollbackRequest(intent=request.intent), pointer)
            return _with_skipped(answer, target)

        return await self._expecting(pointer, expect, once)

    async def _expecting(self, pointer: PointerName, expect: Expect, once: Callable[[int | None], Any]) -> Submitted:
        """Act with what the caller expects; with ``any``, read and try again where somebody else was faster."""
        for attempt in range(ANY_ATTEMPTS_MAX):
            current = await self.pointer_or_none(pointer) if expect == "any" else None
            expected = expect if expect != "any" else None if current is None else current.flip
            try:
                answer = await once(expected)
                assert isinstance(answer, Submitted)
                return answer
            except PreconditionFailed:
                if expect != "any" or attempt == ANY_ATTEMPTS_MAX - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def hold(self, name: str, *, until_ms: int | None = None, reason: str = "") -> Submitted:
        """Block every flip of a pointer but rollbacks, until released or until a time (ms since the epoch)."""
        pointer = PointerName.parse(name)
        return await self._act("hold", HoldArgs(pointer=pointer, until=until_ms), reason, f"/v1/pointers/{pointer}/hold", pointer=pointer)

    async def release(self, name: str, *, reason: str = "") -> Submitted:
        """End a hold."""
        pointer = PointerName.parse(name)
        return await self._act("release", ReleaseArgs(pointer=pointer), reason, f"/v1/pointers/{pointer}/release", pointer=pointer)

    async def mark(self, name: str, snapshot: str, verdict: Literal["good", "bad"], *, reason: str = "") -> Submitted:
        """Mark a snapshot good or bad for a pointer."""
        pointer = PointerName.parse(name)
        args = MarkArgs(pointer=pointer, snapshot=snapshot_of(snapshot), verdict=verdict)
        return await self._act("mark", args, reason, f"/v1/pointers/{pointer}/marks", pointer=pointer)

    # --- policy and log ------------------------------------------------------------------------------------------------

    async def policy(self) -> PolicyAnswer:
        """The policy in force."""
        return await self._transport.get_json("/v1/policy", PolicyAnswer, step="policy")

    async def set_policy(self, document: Mapping[str, Any], *, reason: str = "") -> Submitted:
        """Replace the policy; its ``version`` must be the next one.

        Raises:
            InvalidInput: the document has no version, or is not fit to be a policy.
        """
        version = document.get("version")
        if not isinstance(version, int):
            raise InvalidInput("the policy has no version", hint="take `casstore policy show`, edit it, and raise the version by one")
        return await self._act("policy", PolicyArgs(policy=dict(document), version=version), reason, "/v1/policy")

    async def checkpoint(self) -> OpenedCheckpoint:
        """The newest checkpoint; verified and remembered.

        Raises:
            ConfigurationError: this client has no trust file.
        """
        log = self._verified_log()
        since = log.baseline()
        reply = await self._transport.request("GET", "/log/checkpoint", step="checkpoint", media="text/plain")
        return await log.take_note(reply.body, since)

    async def entry(self, index: int) -> ProvenEntry:
        """A log entry, its place in the log verified.

        Raises:
            EntryNotFound: the log has no such entry.
        """
        log = self._verified_log()
        since = log.baseline()
        answer = await self._transport.get_json(f"/v1/log/entries/{index}", EntryList, step="entry")
        (proven,) = await log.take_entries(answer, since) or [None]
        if proven is None or proven.index != index:
            raise VerificationError(f"the server's answer about entry {index} carries no proof of it", index=index)
        return proven

    async def entries(self, first: int, limit: int = 100) -> list[ProvenEntry]:
        """Log entries from ``first`` on, their places in the log verified."""
        log = self._verified_log()
        since = log.baseline()
        answer = await self._transport.get_json("/v1/log/entries", EntryList, step="entry", params=_params(**{"from": first}, limit=limit))
        return await log.take_entries(answer, since)

    async def inclusion_proof(self, index: int) -> bytes:
        """A proof file (``.tlog-proof``) for an entry, as other people's programs read it."""
        path, params = "/v1/log/proof/inclusion", {"index": str(index)}
        return (await self._transport.request("GET", path, step="proof", media="text/plain", params=params)).body

    # --- operating -----------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """What the server says about itself."""
        return await self._transport.get_json("/v1/status", dict[str, Any], step="status")

    async def token_create(self, name: str, permissions: Sequence[str], *, expires_in_s: int | None = None) -> Token:
        """Create a bearer token; the answer is the only one that carries its secret."""
        body = TokenCreate(name=name, permissions=list(permissions), expires_in_s=expires_in_s)
        return await self._transport.send_json("POST", "/v1/tokens", body, Token, step="token")

    async def token_list(self) -> TokenList:
        """The tokens, without their secrets."""
        return await self._transport.get_json("/v1/tokens", TokenList, step="token")

    async def token_revoke(self, token_id: str) -> None:
        """Revoke a token."""
        await self._transport.request("DELETE", f"/v1/tokens/{quote_segment(token_id)}", step="token")

    async def fsck(self, *, full: bool = False) -> FsckReport:
        """Have the server check its store; ``full`` re-hashes all content."""
        reply_params = "?full=1" if full else ""
        return await self._transport.send_json(
            "POST", f"/v1/fsck{reply_params}", {}, FsckReport, step="fsck", timeout_s=_OPERATION_TIMEOUT_S
        )

    # --- inside --------------------------------------------------------------------------------------------------------

    def _verified_log(self) -> VerifiedLog:
        if self.log is None:
            raise ConfigurationError(
                "this needs a trust file: where trust begins is for you to say", hint="casstore trust add FILE, with the file that `init` wrote"
            )
        return self.log

    async def _act(
        self,
        act: str,
        args: AnyArgs,
        why: str,
        path: str,
        body: Callable[[IntentRequest], Any] = lambda request: request,
        pointer: PointerName | None = None,
    ) -> Submitted:
        """Sign an act over what was verified just now, hand it in, and check the answer."""
        log = self._verified_log()
        if self._key is None:
            raise ConfigurationError("this client has no signing key", hint="pass a key, or set CASSTORE_KEY_FILE")
        seen = (await self.checkpoint()).checkpoint
        version = await log.policy_version()
        now = self._clock.now_ms()
        intent = Intent(
            act=act,
            args=args_of(args),
            exp=now + INTENT_LIFE_MS,
            iat=now,
            log=log.origin,
            nonce=secrets.token_hex(16),
            policy=version,
            seen_root=seen.root,
            seen_size=seen.size,
            why=why,
        )
        payload = encode_intent(intent)
        request = IntentRequest(intent=sign_intent(payload, [self._key]))
        since = log.baseline()
        # A signed intent is carried out once, however often it arrives: so it may be sent again when the connection breaks.
        answer = await self._transport.send_json("POST", path, body(request), Submitted, step=act, repeatable=True)
        if answer.proof is None and not answer.no_op:
            raise VerificationError("the server's answer carries no proof of what it did")
        if answer.proof is not None:
            flips = {p.pointer: p.flip for p in answer.pointers}
            check_submitted(answer, await log.take_bundle(answer.proof, since, flips), payload)
        if pointer is not None and not answer.no_op and pointer not in {p.pointer for p in answer.pointers}:
            raise VerificationError(f"the server's answer says nothing about {pointer}")
        return answer


def _with_skipped(answer: Submitted, target: RollbackTarget) -> Submitted:
    import msgspec

    return msgspec.structs.replace(answer, skipped=answer.skipped or target.skipped)


def _params(**values: object) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _target_params(to: RollbackTo) -> dict[str, str]:
    """``to=`` of a rollback-target request: ``fN``, ``seq:N``, ``before:TIME`` or a digest."""
    if to.previous:
        return {"to": "previous"}
    if to.snapshot is not None:
        return {"to": to.snapshot}
    if to.seq is not None:
        return {"to": f"seq:{to.seq}"}
    if to.flip is not None:
        return {"to": f"f{to.flip}"}
    if to.before is not None:
        return {"to": f"before:{to.before}"}
    raise Conflict("a rollback goes somewhere: say where")
