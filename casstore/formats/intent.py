"""Intents: the one signable form of everything that a principal does.

Owns the payload (canonical JSON), its id, and the DSSE envelope around it.  Must not know who is allowed what: that
is the policy's.

An intent says what is to happen, in which log, under which policy, until when, and what the signer had verified when
signing (``seen``).  Its id, SHA-256 of the payload, is also the idempotency key of the request.

Invariants: what is verified is what is parsed, the same bytes; ``encode_intent(decode_intent(b)) == b``; an envelope
has one normal form, and only that form is logged.

Source: docs/formats/intent.md, https://github.com/secure-systems-lab/dsse
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from casstore.errors import MalformedDocument, SignatureInvalid, TooLarge
from casstore.formats.acts import AnyArgs, Count, FlipArgs, HashHex, check_origin, parse_args
from casstore.formats.canonical import decode_b64, decode_canonical, encode_b64, encode_canonical
from casstore.ids import IntentId
from casstore.limits import ENTRY_SIZE_MAX_BYTES
from casstore.signing import SIGNATURE_BYTES, SigningKey, Verifier, keyid_hex
from casstore.wire import Envelope, EnvelopeSignature

PAYLOAD_TYPE: Final = "application/vnd.casstore.intent+json"
SIGNATURES_MAX: Final = 64  # an envelope with more would be a way to make the server verify for free
WHY_MAX_CHARS: Final = 4096

_KEYID: Final = re.compile(r"[0-9a-f]{64}\Z")


class Intent(NamedTuple):
    """What a principal wants done.

    Times are milliseconds since the epoch.  ``args`` is JSON as :func:`~casstore.formats.acts.args_of` gives it.
    """

    act: str
    args: dict[str, Any]
    exp: int
    iat: int
    log: str
    """The log's origin."""
    nonce: str
    """32 hex digits, fresh for each intent."""
    policy: int
    """The version of the policy that the signer saw; 0 for the genesis."""
    seen_root: bytes
    """The root of the first ``seen_size`` entries, as the signer verified it."""
    seen_size: int
    why: str


class VerifiedEnvelope(NamedTuple):
    """An envelope whose every signature verified."""

    envelope: Envelope
    """In its normal form."""
    payload: bytes
    intent: Intent
    args: AnyArgs
    keys: frozenset[bytes]
    """The 32-byte public keys that signed."""

    @property
    def id(self) -> IntentId:
        """SHA-256 of the payload."""
        return intent_id(self.payload)


class OpenedEnvelope(NamedTuple):
    """An envelope whose signatures by known keys verified; ``unknown`` are the key ids of the others."""

    envelope: Envelope
    payload: bytes
    keys: frozenset[bytes]
    unknown: tuple[str, ...]


class _Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    root: HashHex
    size: Count


class _Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    act: str
    args: dict[str, Any]
    exp: Count
    iat: Count
    log: str
    nonce: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    policy: Count
    seen: _Seen
    v: int
    why: str


def encode_intent(intent: Intent) -> bytes:
    """The payload: canonical JSON.

    Raises:
        MalformedDocument: a field that :func:`decode_intent` would refuse.
        InvalidName, InvalidDigest: the same, in the arguments.
        Unsupported: the same, for an act of a later version.
        TooLarge: the payload is beyond what an entry holds.
    """
    payload = encode_canonical(
        {
            "act": intent.act,
            "args": intent.args,
            "exp": intent.exp,
            "iat": intent.iat,
            "log": intent.log,
            "nonce": intent.nonce,
            "policy": intent.policy,
            "seen": {"root": intent.seen_root.hex(), "size": intent.seen_size},
            "v": 1,
            "why": intent.why,
        }
    )
    decode_intent(payload)
    return payload


def decode_intent(payload: bytes) -> Intent:
    """Read a payload, its arguments included.

    Raises:
        MalformedDocument: not an intent in its one spelling, or fields that contradict each other.
        InvalidName, InvalidDigest: a name or digest in the arguments.
        Unsupported: an act, or a field of one, that this version does not act on.
        TooLarge: more bytes or members than there may be.
    """
    return parse_intent(payload)[0]


def parse_intent(payload: bytes) -> tuple[Intent, AnyArgs]:
    """As :func:`decode_intent`, with the arguments as typed values beside it."""
    document = decode_canonical(payload, max_bytes=ENTRY_SIZE_MAX_BYTES)
    try:
        fields = msgspec.convert(document, _Payload)
    except msgspec.ValidationError as error:
        raise MalformedDocument(f"the intent is not well-formed: {error}") from error
    if fields.v != 1:
        raise MalformedDocument(f"intents of version {fields.v} are not known here")
    check_origin(fields.log)
    if len(fields.why) > WHY_MAX_CHARS:
        raise TooLarge(f"the reason has {len(fields.why)} characters, at most {WHY_MAX_CHARS}", limit=WHY_MAX_CHARS)
    if fields.exp < fields.iat:
        raise MalformedDocument("the intent expires before it was issued")
    args = parse_args(fields.act, fields.args)
    if isinstance(args, FlipArgs):
        for member in args.members:
            # TRUST: the signer verified the flip that is to be replaced, so what they saw reaches beyond it.
            if member.expect is not None and member.expect >= fields.seen.size:
                saw = f"the signer saw only {fields.seen.size} entries"
                raise MalformedDocument(f"{member.pointer}: expects flip f{member.expect}, but {saw}")
    root = bytes.fromhex(fields.seen.root)
    intent = Intent(
        fields.act, fields.args, fields.exp, fields.iat, fields.log, fields.nonce, fields.policy, root,
        fields.seen.size, fields.why,
    )  # fmt: skip
    return intent, args


def intent_id(payload: bytes) -> IntentId:
    """SHA-256 of the payload: what approvers sign, and the idempotency key."""
    return IntentId(hashlib.sha256(payload).digest())


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what a signature covers.

    >>> pae("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_intent(payload: bytes, keys: Sequence[SigningKey]) -> Envelope:
    """Put a payload into an envelope, signed by each of ``keys``.

    Args:
        payload: what :func:`encode_intent` gave; signed as it is.
        keys: at least one, distinct.
    """
    message = pae(PAYLOAD_TYPE, payload)
    signatures = [
        EnvelopeSignature(keyid=keyid_hex(key.verifier.public), sig=encode_b64(key.sign(message))) for key in keys
    ]
    return normalise_envelope(Envelope(payload=encode_b64(payload), payload_type=PAYLOAD_TYPE, signatures=signatures))


def add_signatures(envelope: Envelope, keys: Sequence[SigningKey]) -> Envelope:
    """Approve: sign the payload of an envelope that others have signed; a key that had signed signs anew."""
    added = sign_intent(_decode_either_b64(envelope.payload), keys)
    fresh = {signature.keyid for signature in added.signatures}
    kept = [signature for signature in envelope.signatures if signature.keyid not in fresh]
    return normalise_envelope(msgspec.structs.replace(added, signatures=[*kept, *added.signatures]))


def normalise_envelope(envelope: Envelope) -> Envelope:
    """The one form of an envelope: standard base64, signatures sorted by key id, each key once.

    Raises:
        MalformedDocument: another payload type, a key id that is not 64 hex digits, a signature that is not 64 bytes, a
            key id twice, or no signature.
        TooLarge: more than ``SIGNATURES_MAX`` signatures.
    """
    if envelope.payload_type != PAYLOAD_TYPE:
        raise MalformedDocument(f"the envelope holds a {envelope.payload_type[:100]!r}, not a {PAYLOAD_TYPE}")
    if not envelope.signatures:
        raise MalformedDocument("the envelope is not signed")
    if len(envelope.signatures) > SIGNATURES_MAX:
        raise TooLarge(f"an envelope has at most {SIGNATURES_MAX} signatures", limit=SIGNATURES_MAX)
    signatures: dict[str, EnvelopeSignature] = {}
    for signature in envelope.signatures:
        raw = _decode_either_b64(signature.sig)
        if not _KEYID.match(signature.keyid) or len(raw) != SIGNATURE_BYTES:
            raise MalformedDocument(
                "a signature of the envelope is not 64 bytes under a key id of 64 lower-case hex digits"
            )
        if signature.keyid in signatures:
            raise MalformedDocument(f"the envelope is signed twice by key {signature.keyid[:12]}")
        signatures[signature.keyid] = EnvelopeSignature(keyid=signature.keyid, sig=encode_b64(raw))
    return Envelope(
        payload=encode_b64(_decode_either_b64(envelope.payload)),
        payload_type=PAYLOAD_TYPE,
        signatures=[signatures[keyid] for keyid in sorted(signatures)],
    )


def keys_by_id(verifiers: Iterable[Verifier]) -> dict[str, Verifier]:
    """Verifiers by the ``keyid`` that envelopes name them with."""
    return {keyid_hex(verifier.public): verifier for verifier in verifiers}


def open_envelope(envelope: Envelope, keys: Mapping[str, Verifier]) -> OpenedEnvelope:
    """Verify the signatures that are by ``keys``; the payload is not parsed.

    Args:
        envelope: in any spelling that :func:`normalise_envelope` takes.
        keys: candidates, as :func:`keys_by_id` or a policy gives them.

    Raises:
        SignatureInvalid: a signature under a known key's id that is not that key's: one bad signature spoils the
        envelope. MalformedDocument, TooLarge: as :func:`normalise_envelope`.
    """
    normal = normalise_envelope(envelope)
    payload = decode_b64(normal.payload)
    message = pae(PAYLOAD_TYPE, payload)
    verified: set[bytes] = set()
    unknown: list[str] = []
    for signature in normal.signatures:
        verifier = keys.get(signature.keyid)
        if verifier is None:
            unknown.append(signature.keyid)
            continue
        try:
            verifier.verify(message, decode_b64(signature.sig))
        except SignatureInvalid as error:
            raise SignatureInvalid(f"the signature by key {verifier.name!r} does not verify") from error
        verified.add(verifier.public)
    return OpenedEnvelope(normal, payload, frozenset(verified), tuple(unknown))


def verify_envelope(envelope: Envelope, keys: Mapping[str, Verifier]) -> VerifiedEnvelope:
    """Verify every signature, then parse the very bytes that were verified.

    Args:
        envelope: in any spelling that :func:`normalise_envelope` takes.
        keys: candidates, as :func:`keys_by_id` or a policy gives them.

    Raises:
        SignatureInvalid: a signature that does not verify, or by a key that is not a candidate.
        MalformedDocument, InvalidName, InvalidDigest, TooLarge, Unsupported: as :func:`decode_intent`.
    """
    opened = open_envelope(envelope, keys)
    if opened.unknown:
        raise SignatureInvalid(f"the intent is signed by key {opened.unknown[0][:12]}, which the policy does not know")
    intent, args = parse_intent(opened.payload)
    return VerifiedEnvelope(opened.envelope, opened.payload, intent, args, opened.keys)


def _decode_either_b64(text: str) -> bytes:
    """DSSE lets a signer write either alphabet; each of them has one spelling here."""
    return decode_b64(text.translate(_URLSAFE) if "-" in text or "_" in text else text)


_URLSAFE: Final = str.maketrans("-_", "+/")
