"""The ledger's reading half of the SDK: snapshots, pointers, history, policy, proofs, tokens.

With a trust file every answer that can carry a proof is checked before it is returned.  Without one reading works and proves
nothing (:attr:`LedgerReader.verifies` says so).  Listings (``pointers``, ``history``, ``snapshots``, ``artifacts``) carry no
proofs: they help to find what one then asks about.

Source: docs/formats/wire.md
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Literal

from casstore.clock import Clock
from casstore.errors import (
    ArtifactNotFound,
    ConfigurationError,
    DigestMismatch,
    InvalidDigest,
    InvalidInput,
    InvalidName,
    NotFound,
    NotPermitted,
    PointerNotFound,
    SnapshotNotFound,
    VerificationError,
)
from casstore.formats.canonical import decode_b64
from casstore.formats.checkpoint import OpenedCheckpoint
from casstore.formats.entry import decode_entry
from casstore.formats.proof import decode_proof, open_proof
from casstore.formats.snapshot import Snapshot, decode_snapshot, snapshot_digest
from casstore.formats.trust import VerifiedState
from casstore.ids import PointerName, SnapshotDigest
from casstore.limits import SNAPSHOT_SIZE_MAX_BYTES
from casstore.merkle import leaf_hash
from casstore.wire import (
    MEDIA_SNAPSHOT,
    EntryList,
    FsckReport,
    History,
    Pointer,
    PointerList,
    PolicyAnswer,
    RollbackCandidates,
    RollbackTarget,
    RollbackTo,
    SnapshotList,
    Token,
    TokenCreate,
    TokenList,
    WasLive,
    format_time,
    parse_time,
)
from casstore_client import content_api
from casstore_client.claims import check_pointer, check_rollback_target, check_was_live, snapshot_of
from casstore_client.errors import ProtocolError
from casstore_client.facts import ProvenEntry
from casstore_client.transport import Transport, quote_segment
from casstore_client.trust_store import TrustStore
from casstore_client.verified_log import VerifiedLog, fetch_note, refuse_absence

_OPERATION_TIMEOUT_S: Final = 24 * 3600.0  # fsck of a large store says nothing until it is done
_TEXT: Final = "text/plain"


class LedgerReader:
    """Snapshots, pointers and the log of one server, to be read.

    Args:
        transport: how to reach it.
        trust: what to verify against; None verifies nothing.
        clock: judges the age of checkpoints.
    """

    def __init__(self, transport: Transport, trust: TrustStore | None, clock: Clock) -> None:
        self.transport = transport
        self.log = None if trust is None else VerifiedLog(transport, trust, clock)

    @property
    def verifies(self) -> bool:
        """Whether answers are checked against a trust file."""
        return self.log is not None

    # --- snapshots ---------------------------------------------------------------------------------------------------

    async def snapshot_document(self, digest: str) -> Snapshot:
        """A snapshot's document, held against its digest.

        Raises:
            SnapshotNotFound: the store has no such snapshot.
            DigestMismatch: what the server gave is not it.
        """
        wanted = snapshot_of(digest)
        reply = await self.transport.request(
            "GET", f"/v1/snapshots/{wanted}", step="snapshot", media=MEDIA_SNAPSHOT, max_bytes=SNAPSHOT_SIZE_MAX_BYTES
        )
        found = snapshot_digest(reply.body)
        if found != wanted:
            raise DigestMismatch(
                f"the server gave another document for snapshot {wanted}", expected=str(wanted), found=str(found)
            )
        return decode_snapshot(reply.body)

    async def snapshots(self, *, after: str | None = None, limit: int = 100) -> SnapshotList:
        """Published snapshots, newest first."""
        params = query(after=after, limit=limit)
        return await self.transport.get_json("/v1/snapshots", SnapshotList, step="list", params=params)

    async def resolve(self, text: str, kind: Literal["snapshot"] | None = None) -> str:
        """The whole digest of what a person names: a digest, a shortened one, a pointer, or an artifact (its newest push).

        Args:
            text: at least 4 hex digits of a digest, with or without ``blake3:``; or a name.
            kind: ``snapshot`` where nothing else will do.

        Raises:
            NotFound: there is no such thing.
            InvalidDigest: a shortened digest that may mean several; the message lists them.
            VerificationError, Regression: a pointer, and the server's proof does not hold.
        """
        if text.startswith(SnapshotDigest.PREFIX) and len(text) == len(SnapshotDigest.PREFIX) + 2 * SnapshotDigest.SIZE:
            return str(SnapshotDigest.parse(text))
        found: list[str] = []
        with suppress(InvalidDigest):
            found = await content_api.find_digests(self.transport, text)
        if kind == "snapshot":
            found = [digest for digest in found if await self._is_snapshot(digest)]
        if len(found) > 1:
            raise InvalidDigest(f"{text} may mean {', '.join(found[:5])}", hint="give more digits")
        if found:
            # TRUST: a pointer's name may be hex digits too, and who may publish can make a snapshot whose digest begins so.
            with suppress(InvalidName, PointerNotFound, NotPermitted):
                if (named := (await self.pointer(PointerName.parse(text))).snapshot) != found[0]:
                    raise InvalidDigest(f"{text} may mean {found[0]} or the pointer, which names {named or 'nothing'}")
            return found[0]
        with suppress(InvalidName, PointerNotFound):
            snapshot = (await self.pointer(PointerName.parse(text))).snapshot
            if snapshot is None:
                raise InvalidInput(f"{text} is retired and names no snapshot")
            return snapshot
        if kind == "snapshot":
            raise SnapshotNotFound(f"{text[:200]!r} is neither a snapshot's digest nor a pointer")
        with suppress(ArtifactNotFound):
            return (await content_api.resolve_artifact(self.transport, text))[1]
        raise NotFound(f"{text[:200]!r} is neither a digest nor the name of a pointer or artifact")

    async def _is_snapshot(self, digest: str) -> bool:
        try:
            await self.snapshot_document(digest)
        except SnapshotNotFound:
            return False
        return True

    # --- pointers ----------------------------------------------------------------------------------------------------

    async def pointer(self, name: str) -> Pointer:
        """What a pointer names now; verified.

        Raises:
            PointerNotFound: there never was one.
            VerificationError, Regression: the server's proof does not hold.
        """
        path = f"/v1/pointers/{PointerName.parse(name)}"
        if self.log is None:
            return await self.transport.get_json(path, Pointer, step="pointer")
        since = await self.log.baseline()
        try:
            answer = await self.transport.get_json(path, Pointer, step="pointer", params=log_params(self.log, since))
        except PointerNotFound:
            # TRUST: that a pointer never was is the server's word alone, except where this user has seen it.
            refuse_absence(name, since)
            raise
        if answer.proof is None or answer.pointer != name:
            raise VerificationError(f"the server's answer about {name} carries no proof of it")
        check_pointer(answer, await self.log.take_bundle(answer.proof, since))
        return answer

    async def pointer_or_none(self, name: str) -> Pointer | None:
        """As :meth:`pointer`; None if there never was one, as the server says."""
        try:
            return await self.pointer(name)
        except PointerNotFound:
            return None

    async def pointers(self, prefix: str = "", *, after: str | None = None, limit: int = 1000) -> PointerList:
        """Pointers whose name begins with ``prefix``; a listing, without proofs."""
        params = query(prefix=prefix or None, after=after, limit=limit)
        return await self.transport.get_json("/v1/pointers", PointerList, step="list", params=params)

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
        """A pointer's flips, newest first; a listing, without proofs.

        Args:
            name: the pointer.
            limit: 1 to ``LIST_LIMIT_MAX``.
            before: only flips before this one.
            since: only flips at or after this time, RFC 3339.
            until: only flips before this time.
            kind: only flips of this kind.
            by: only flips by this principal.

        Raises:
            PointerNotFound: there never was one.
        """
        before_text = None if before is None else f"f{before}"
        params = query(limit=limit, before=before_text, since=since, until=until, kind=kind, by=by)
        path = f"/v1/pointers/{PointerName.parse(name)}/history"
        return await self.transport.get_json(path, History, step="list", params=params)

    async def was_live(self, name: str, when: str) -> WasLive:
        """What a pointer named at a time (RFC 3339) or log index (``fN``); verified.

        Raises:
            PointerNotFound: there never was one.
            VerificationError, Regression: the server's proof does not hold.
        """
        path = f"/v1/pointers/{PointerName.parse(name)}"
        if self.log is None:
            return await self.transport.get_json(path, WasLive, step="pointer", params={"at": when})
        since = await self.log.baseline()
        params = {"at": when, **log_params(self.log, since)}
        try:
            answer = await self.transport.get_json(path, WasLive, step="pointer", params=params)
        except PointerNotFound:
            refuse_absence(name, since)
            raise
        if answer.proof is None or answer.pointer != name or answer.asked != when:
            raise VerificationError(f"the server's answer about {name} at {when} carries no proof of it")
        check_was_live(answer, await self.log.take_bundle(answer.proof, since))
        return answer

    async def rollback_target(self, name: str, to: Literal["previous"] | RollbackTo = "previous") -> RollbackTarget:
        """What a rollback would go to now; with a trust file it is verified to have been live there.

        # KNOWN HOLE: which of the pointer's own earlier snapshots ``previous`` means is the server's word until an audit
        replays the log.  Whoever is asked before signing sees the target.

        Raises:
            NoRollbackTarget: nothing qualifies; says what was skipped and why.
            VerificationError, Regression: the target never was live there, or is not what was asked for.
        """
        path = f"/v1/pointers/{PointerName.parse(name)}/rollback-target"
        params = {"to": "previous" if to == "previous" else _target(to)}
        answer = await self.transport.get_json(path, RollbackTarget, step="rollback-target", params=params)
        if self.log is not None:
            # TRUST: this is going to be signed.
            moment = f"f{answer.target_flip}"
            if to != "previous" and to.before is not None:
                moment = format_time(parse_time(to.before) - 1)
            check_rollback_target(answer, to, await self.was_live(name, moment))
        return answer

    async def rollback_candidates(self, name: str) -> RollbackCandidates:
        """What a pointer may go back to, newest first."""
        path = f"/v1/pointers/{PointerName.parse(name)}/rollback-candidates"
        return await self.transport.get_json(path, RollbackCandidates, step="list")

    # --- policy and log ----------------------------------------------------------------------------------------------

    async def policy(self) -> PolicyAnswer:
        """The policy in force, as the server says.

        Raises:
            VerificationError: with a trust file: it is not the one that the walk from the pinned genesis leads to.
        """
        answer = await self.transport.get_json("/v1/policy", PolicyAnswer, step="policy")
        if self.log is not None:
            await self.log.check_policy(answer.entry, answer.policy)
        return answer

    async def checkpoint(self) -> OpenedCheckpoint:
        """The newest checkpoint; verified and remembered.

        Raises:
            ConfigurationError: this client has no trust file.
            VerificationError, Regression: it does not hold.
        """
        log = self.verified_log()
        since = await log.baseline()
        return await log.take_note(await fetch_note(self.transport), since)

    async def entry(self, index: int) -> ProvenEntry:
        """A log entry; its place in the log is verified where there is a trust file.

        Raises:
            EntryNotFound: the log has no such entry.
            VerificationError, Regression: the server's proof does not hold.
        """
        found = await self._entries(f"/v1/log/entries/{index}", {})
        if [proven.idx for proven in found] != [index]:
            raise VerificationError(f"the server's answer about entry {index} carries no proof of it", index=index)
        return found[0]

    async def entries(self, first: int = 0, limit: int = 100) -> list[ProvenEntry]:
        """Log entries from ``first`` on, at most ``limit`` of them, as :meth:`entry`."""
        found = await self._entries("/v1/log/entries", query(**{"from": first}, limit=limit))
        if [proven.idx for proven in found] != list(range(first, first + len(found))):
            raise VerificationError(f"the server gave other entries than those from {first} on", index=first)
        return found

    async def _entries(self, path: str, params: dict[str, str]) -> list[ProvenEntry]:
        since = None if self.log is None else await self.log.baseline()
        answer = await self.transport.get_json(path, EntryList, step="entry", params=params)
        if self.log is not None:
            return await self.log.take_entries(answer, since)
        try:
            raw = [(proof.index, decode_b64(proof.entry)) for proof in answer.entries]
            return [ProvenEntry(index, data, decode_entry(data)) for index, data in raw]
        except InvalidInput as error:
            raise ProtocolError(f"the server's answer holds something that is no entry: {error.detail}") from error

    async def inclusion_proof(self, index: int) -> bytes:
        """A proof file (``.tlog-proof``) for an entry, as other people's programs read it; verified.

        Raises:
            ConfigurationError: this client has no trust file.
            EntryNotFound: the log has no such entry.
            VerificationError, Regression: the entry or the file does not hold.
        """
        log = self.verified_log()
        proven = await self.entry(index)
        params = {"index": str(index)}
        reply = await self.transport.request("GET", "/v1/log/proof/inclusion", step="proof", media=_TEXT, params=params)
        trust = log.trust
        try:
            at = decode_proof(reply.body).index
            open_proof(reply.body, leaf_hash(proven.data), trust.log_verifier, trust.origin, [trust.clock_verifier])
        except InvalidInput as error:
            raise VerificationError(f"the server's proof file is none: {error.detail}", index=index) from error
        if at != index:
            raise VerificationError(f"the server's proof file is for entry {at}", index=index)
        return reply.body

    def verified_log(self) -> VerifiedLog:
        """What answers are checked by.

        Raises:
            ConfigurationError: this client has no trust file.
        """
        if self.log is None:
            raise ConfigurationError(
                "this needs a trust file: where trust begins is for you to say",
                hint="casstore trust add FILE, with the file that `casstore init` wrote",
            )
        return self.log

    # --- operating ---------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """What the server says about itself."""
        return await self.transport.get_json("/v1/status", dict[str, Any], step="status")

    async def token_create(self, name: str, permissions: Sequence[str], *, expires_in_s: int | None = None) -> Token:
        """Create a bearer token; the answer is the only one that carries its secret."""
        body = TokenCreate(name=name, permissions=list(permissions), expires_in_s=expires_in_s)
        return await self.transport.send_json("POST", "/v1/tokens", body, Token, step="token")

    async def token_list(self) -> TokenList:
        """The tokens, without their secrets."""
        return await self.transport.get_json("/v1/tokens", TokenList, step="token")

    async def token_revoke(self, token_id: str) -> None:
        """Revoke a token.

        Raises:
            TokenNotFound: there is none of this id.
        """
        await self.transport.request("DELETE", f"/v1/tokens/{quote_segment(token_id)}", step="token")

    async def fsck(self, *, full: bool = False) -> FsckReport:
        """Have the server check its store; ``full`` re-hashes all content."""
        path = "/v1/fsck?full=1" if full else "/v1/fsck"
        return await self.transport.send_json("POST", path, {}, FsckReport, step="fsck", timeout_s=_OPERATION_TIMEOUT_S)


def query(**values: object) -> dict[str, str]:
    """Parameters of a request; those that are None are left out."""
    return {name: str(value) for name, value in values.items() if value is not None}


def _target(to: RollbackTo) -> str:
    """``to=`` of a rollback-target request: ``fN``, ``seq:N``, ``before:TIME`` or a digest.

    Raises:
        InvalidInput: it says nothing, or several things.
    """
    ways = {
        "previous": "previous" if to.previous else None,
        "snapshot": to.snapshot,
        "seq": None if to.seq is None else f"seq:{to.seq}",
        "flip": None if to.flip is None else f"f{to.flip}",
        "before": None if to.before is None else f"before:{to.before}",
    }
    given = [way for way in ways.values() if way is not None]
    if len(given) != 1:
        raise InvalidInput("a rollback goes to one place: say which")
    return given[0]


def log_params(log: VerifiedLog, since: VerifiedState | None) -> dict[str, str]:
    """Ask for proofs, and for the one that the log continues what was verified before."""
    return {"proof": "1", "since": str(log.held(since).size)}
