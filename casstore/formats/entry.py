"""Log entries: the bytes that are the leaves of the log.

Owns the entry's canonical JSON: who asked for what (``auth``), what the server resolved (``body``), where and when
(``log``, ``idx``, ``ts``), and the state that results (``state``, *after* the entry).  Must not know what is allowed:
:mod:`casstore.transitions` judges.

Invariants: ``encode_entry(decode_entry(b)) == b``; an entry is at most ``ENTRY_SIZE_MAX_BYTES``; what an act does
stands in the payload of ``auth`` alone, ``body`` only repeats it with what was resolved, and :func:`flips_of` refuses
a body that says otherwise.

Source: docs/formats/entry.md
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple

import msgspec

from casstore.errors import MalformedDocument, TooLarge, VerificationError
from casstore.formats.acts import ACTS, LATER_ACTS, OWN_ACTS, AnyArgs, Count, FlipArgs, HashHex, check_origin, parse_id
from casstore.formats.canonical import decode_b64, decode_canonical, encode_b64, encode_canonical
from casstore.formats.intent import Intent, intent_id, normalise_envelope, parse_intent
from casstore.ids import BlobDigest, IntentId, PointerName, PrincipalName, SnapshotDigest
from casstore.limits import ENTRY_SIZE_MAX_BYTES
from casstore.wire import Envelope

ENVELOPE_KEYS: Final = frozenset({"payloadType"})
"""DSSE's spelling: the one key of an entry that is not ``[a-z0-9_]+``."""


class TokenAuth(NamedTuple):
    """An act that no key signed, where the policy lets a bearer token speak for its principal."""

    payload: bytes
    token: str
    """The token's id, never its secret."""
    principal: str


class StateRoot(NamedTuple):
    """The state after an entry: how many leaves, and the root of the tree over them."""

    n: int
    root: bytes


class FlippedMember(NamedTuple):
    """What one member of a flip did, as the server recorded it."""

    from_: SnapshotDigest | None
    to: SnapshotDigest | None
    seq: int
    """How many flips this pointer has had, this one included."""


class Flipped(NamedTuple):
    """What a flip did to one pointer: payload and body side by side."""

    pointer: PointerName
    expect: int | None
    from_: SnapshotDigest | None
    to: SnapshotDigest | None
    seq: int


class Entry(NamedTuple):
    """One entry of the log."""

    type: str
    idx: int
    """Its position in the log, from 0."""
    ts: int
    """When the server wrote it, in ms; never less than the entry before."""
    log: str
    """The log's origin."""
    auth: Envelope | TokenAuth | None
    body: dict[str, Any]
    state: StateRoot

    @property
    def payload(self) -> bytes | None:
        """The intent's payload; None in the server's own entries."""
        if self.auth is None:
            return None
        return decode_b64(self.auth.payload) if isinstance(self.auth, Envelope) else self.auth.payload

    @property
    def intent_id(self) -> IntentId | None:
        """SHA-256 of the payload."""
        payload = self.payload
        return None if payload is None else intent_id(payload)

    def intent(self) -> tuple[Intent, AnyArgs]:
        """The intent that the entry carries out, and its typed arguments.

        Raises:
            VerificationError: the entry has none, or the payload is not well-formed or asks for something else.
        """
        payload = self.payload
        if payload is None:
            raise VerificationError(f"entry {self.idx} ({self.type}) carries no intent", index=self.idx)
        try:
            intent, args = parse_intent(payload)
        except (MalformedDocument, TooLarge) as error:
            raise VerificationError(
                f"the intent of entry {self.idx} is wrong: {error.detail}", index=self.idx
            ) from error
        if intent.act != self.type or intent.log != self.log:
            raise VerificationError(
                f"entry {self.idx} is a {self.type} of {self.log}, its intent a {intent.act} of {intent.log}",
                index=self.idx,
            )
        return intent, args


class _Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    principal: PrincipalName


class _TokenAuth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payload: str
    token: _Token


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    n: Count
    root: HashHex


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    auth: dict[str, Any] | None
    body: dict[str, Any]
    idx: Count
    log: str
    state: _State
    ts: Count
    type: str
    v: int


class _Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    from_: SnapshotDigest | None
    seq: Annotated[int, msgspec.Meta(ge=1)]
    to: SnapshotDigest | None


class _FlipBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    members: Annotated[list[_Member], msgspec.Meta(min_length=1)]


class GcCounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many objects a collection dropped at most, and how many stored bytes they take."""

    bytes: Count
    objects: Count


class GcBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a collection put on record before it dropped anything.

    ``digest`` is the BLAKE3 of the list of what is dropped: one line for each snapshot, tree and blob, such as
    ``tree blake3:<64 hex>``, each ended by a line feed, in the order in which they are dropped.
    """

    counts: GcCounts
    digest: BlobDigest
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


def encode_entry(entry: Entry) -> bytes:
    """The bytes of the leaf.

    Raises:
        TooLarge: more than ``ENTRY_SIZE_MAX_BYTES``.
        MalformedDocument: a value that has no canonical form.
    """
    data = encode_canonical(
        {
            "auth": _encode_auth(entry.auth),
            "body": entry.body,
            "idx": entry.idx,
            "log": entry.log,
            "state": {"n": entry.state.n, "root": entry.state.root.hex()},
            "ts": entry.ts,
            "type": entry.type,
            "v": 1,
        },
        also_keys=ENVELOPE_KEYS,
    )
    if len(data) > ENTRY_SIZE_MAX_BYTES:
        raise TooLarge(
            f"the log entry would have {len(data)} bytes, at most {ENTRY_SIZE_MAX_BYTES} are allowed",
            limit=ENTRY_SIZE_MAX_BYTES,
        )
    return data


def decode_entry(data: bytes) -> Entry:
    """Read an entry; the payload inside ``auth`` is checked to be base64, not parsed (see :meth:`Entry.intent`).

    Raises:
        MalformedDocument: not an entry in its one spelling, an unknown type, a body that this type does not have, or an
            envelope that is not in its normal form.
        InvalidDigest, InvalidName: a digest or a principal's name in it.
        TooLarge: more than ``ENTRY_SIZE_MAX_BYTES``.
    """
    document = decode_canonical(data, max_bytes=ENTRY_SIZE_MAX_BYTES, also_keys=ENVELOPE_KEYS)
    try:
        fields = msgspec.convert(document, _Entry)
        auth = _decode_auth(fields.auth)
    except msgspec.ValidationError as error:
        raise MalformedDocument(f"the log entry is not well-formed: {error}") from error
    if fields.v != 1:
        raise MalformedDocument(f"log entries of version {fields.v} are not known here")
    if fields.type not in ACTS and fields.type not in LATER_ACTS and fields.type not in OWN_ACTS:
        raise MalformedDocument(f"{fields.type[:100]!r} is not a type of log entry")
    check_origin(fields.log)
    entry = Entry(
        type=fields.type,
        idx=fields.idx,
        ts=fields.ts,
        log=fields.log,
        auth=auth,
        body=fields.body,
        state=StateRoot(fields.state.n, bytes.fromhex(fields.state.root)),
    )
    _check_body(entry)
    return entry


def flip_body(members: list[FlippedMember]) -> dict[str, Any]:
    """The body of a flip; ``members`` in the order of the payload's."""
    return {
        "members": [
            {
                "from": None if member.from_ is None else str(member.from_),
                "seq": member.seq,
                "to": None if member.to is None else str(member.to),
            }
            for member in members
        ]
    }


def members_of(entry: Entry) -> list[FlippedMember]:
    """The members in the body of a flip.

    Raises:
        MalformedDocument: the entry is not a flip, or its body is not one.
        InvalidDigest: a digest in it.
    """
    if entry.type != "flip":
        raise MalformedDocument(f"entry {entry.idx} is a {entry.type}, not a flip")
    try:
        body = msgspec.convert(entry.body, _FlipBody, dec_hook=parse_id)
    except msgspec.ValidationError as error:
        raise MalformedDocument(f"the body of entry {entry.idx} is not well-formed: {error}") from error
    return [FlippedMember(member.from_, member.to, member.seq) for member in body.members]


def flips_of(entry: Entry) -> list[Flipped]:
    """What a flip did to each of its pointers.

    Raises:
        VerificationError: the body does not say what the payload says: other members, or another target.
        MalformedDocument, InvalidDigest: the entry is not a flip.
    """
    members = members_of(entry)
    _, args = entry.intent()
    # TRUST: the signature covers the payload, not the body.  A body that disagrees is a server that lies.
    if not isinstance(args, FlipArgs) or [m.to for m in args.members] != [m.to for m in members]:
        raise VerificationError(f"the body of entry {entry.idx} is not what was signed", index=entry.idx)
    return [
        Flipped(asked.pointer, asked.expect, done.from_, done.to, done.seq)
        for asked, done in zip(args.members, members, strict=True)
    ]


def gc_body(body: GcBody) -> dict[str, Any]:
    """The body of a ``gc`` entry."""
    value = msgspec.to_builtins(body, enc_hook=str)
    assert isinstance(value, dict)
    return value


def gc_of(entry: Entry) -> GcBody:
    """What a collection put on record.

    Raises:
        MalformedDocument: the entry is no such record.
        InvalidDigest: a digest in it.
    """
    if entry.type != "gc":
        raise MalformedDocument(f"entry {entry.idx} is a {entry.type}, not a gc")
    try:
        return msgspec.convert(entry.body, GcBody, dec_hook=parse_id)
    except msgspec.ValidationError as error:
        raise MalformedDocument(f"the body of entry {entry.idx} is not well-formed: {error}") from error


def _check_body(entry: Entry) -> None:
    """A flip has members in its body, the server's own acts their record; the other acts have nothing in it, and later types
    are not looked into."""
    if entry.type in OWN_ACTS:
        if entry.auth is not None:
            raise MalformedDocument(f"entry {entry.idx} is the server's own {entry.type}, and carries an intent")
        gc_of(entry)
    elif entry.type == "flip":
        members_of(entry)
    elif entry.type in ACTS and entry.body:
        raise MalformedDocument(f"the body of a {entry.type} is empty, that of entry {entry.idx} is not")


def _encode_auth(auth: Envelope | TokenAuth | None) -> Any:
    if auth is None:
        return None
    if isinstance(auth, TokenAuth):
        return {"payload": encode_b64(auth.payload), "token": {"id": auth.token, "principal": auth.principal}}
    return {
        "payload": auth.payload,
        "payloadType": auth.payload_type,
        "signatures": [{"keyid": signature.keyid, "sig": signature.sig} for signature in auth.signatures],
    }


def _decode_auth(auth: dict[str, Any] | None) -> Envelope | TokenAuth | None:
    if auth is None:
        return None
    if "token" in auth:
        fields = msgspec.convert(auth, _TokenAuth, dec_hook=parse_id)
        return TokenAuth(decode_b64(fields.payload), fields.token.id, fields.token.principal)
    envelope = msgspec.convert(auth, Envelope)
    if normalise_envelope(envelope) != envelope:
        raise MalformedDocument("the envelope of the log entry is not in its normal form")
    return envelope
