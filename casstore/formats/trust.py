"""What a verifier starts from, and what it remembers: the trust file and the verified state.

Owns two JSON documents.  The **trust file** is handed to a verifier by a person, once: which log, which keys, which
first entry.  The **verified state** is what the verifier has checked since; it only ever grows, and whoever shows
something older or different is refused.  Must not know files: the client reads and writes them.

Both are for one machine's own use and for people to look at, so white space and key order are free; fields are not.

Invariant: ``decode(encode(x)) == x``.

Source: docs/formats/trust.md
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec

from casstore.errors import InvalidInput, MalformedDocument, TooLarge, VerificationError
from casstore.formats.acts import Count, HashHex, check_origin, check_sorted, parse_id
from casstore.formats.policy import Policy, witness_keys
from casstore.ids import PointerName
from casstore.limits import CHECKPOINT_MAX_AGE_MS, ENTRY_SIZE_MAX_BYTES, NOTE_SIZE_MAX_BYTES
from casstore.merkle import EMPTY_ROOT
from casstore.signing import SignatureType, Verifier

TRUST_SIZE_MAX_BYTES: Final = 64 * 1024
# A note, a policy and 10,000 pointers of at most 255 characters each.
VERIFIED_SIZE_MAX_BYTES: Final = 2 * NOTE_SIZE_MAX_BYTES + 2 * ENTRY_SIZE_MAX_BYTES + 10_000 * 320


class TrustFile(NamedTuple):
    """Where trust begins; :func:`encode_trust` and :func:`decode_trust` check the values."""

    origin: str
    log_vkey: str
    clock_vkey: str
    """Of the key by which the server says how old a checkpoint is."""
    genesis_sha256: bytes
    """SHA-256 of the bytes of entry 0."""
    minimum_size: int
    """Every checkpoint must cover this many entries, which hash to ``minimum_root``."""
    minimum_root: bytes
    witnesses: str = ""
    """A witness policy; empty for none."""
    max_age_s: int = CHECKPOINT_MAX_AGE_MS // 1000
    """A checkpoint older than this is not believed to be the newest."""

    @property
    def log_verifier(self) -> Verifier:
        """The log's key."""
        return Verifier.parse(self.log_vkey)

    @property
    def clock_verifier(self) -> Verifier:
        """The clock's key."""
        return Verifier.parse(self.clock_vkey)

    def check_genesis(self, entry: bytes) -> None:
        """Hold the bytes of entry 0 against the pin.

        Raises:
            VerificationError: it is another log's.
        """
        if hashlib.sha256(entry).digest() != self.genesis_sha256:
            raise VerificationError("the log's first entry is not the one that the trust file names", index=0)


class VerifiedState(NamedTuple):
    """What a verifier has checked, as of one checkpoint."""

    note: bytes
    """The newest checkpoint that was verified, as it was signed."""
    policy_idx: int
    """Index of the newest policy entry (or the genesis) that the walk has reached."""
    policy: dict[str, Any]
    """The policy that it carries."""
    log_keys: tuple[str, ...]
    """The log's verifier keys that the walk has come to, oldest first."""
    flips: dict[str, int]
    """The highest flip seen of each pointer: an answer with a lower one is a regression."""


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    root: HashHex
    size: Count


class _Trust(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    clock_vkey: str
    genesis_sha256: HashHex
    log_vkey: str
    max_age_s: Annotated[int, msgspec.Meta(ge=1, le=366 * 24 * 3600)]
    minimum: _Head
    origin: str
    v: int
    witnesses: str


class _Flip(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    flip: Count
    pointer: PointerName


class _Verified(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    flips: list[_Flip]
    log_keys: Annotated[list[str], msgspec.Meta(min_length=1)]
    note: str
    policy: dict[str, Any]
    policy_idx: Count
    v: int


_T = TypeVar("_T", _Trust, _Verified)


def encode_trust(trust: TrustFile) -> bytes:
    """The trust file, to be read by people too.

    Raises:
        MalformedDocument: a value that :func:`decode_trust` would refuse.
    """
    data = _dump(
        {
            "clock_vkey": trust.clock_vkey,
            "genesis_sha256": trust.genesis_sha256.hex(),
            "log_vkey": trust.log_vkey,
            "max_age_s": trust.max_age_s,
            "minimum": {"root": trust.minimum_root.hex(), "size": trust.minimum_size},
            "origin": trust.origin,
            "v": 1,
            "witnesses": trust.witnesses,
        }
    )
    decode_trust(data)
    return data


def decode_trust(data: bytes) -> TrustFile:
    """Read a trust file.

    Raises:
        MalformedDocument: not one, or keys that do not fit each other.
        TooLarge: more than ``TRUST_SIZE_MAX_BYTES``.
    """
    fields = _load(data, _Trust, TRUST_SIZE_MAX_BYTES, "trust file")
    check_origin(fields.origin)
    try:
        log, clock = Verifier.parse(fields.log_vkey), Verifier.parse(fields.clock_vkey)
    except InvalidInput as error:
        raise MalformedDocument(f"a key of the trust file is unfit: {error.detail}") from error
    if log.type is not SignatureType.ED25519 or log.name != fields.origin:
        raise MalformedDocument("the log key of the trust file is not an Ed25519 key named as the log's origin")
    # TRUST: a cosignature does not name its cosigner, so one key must not serve for log and clock.
    if clock.type is not SignatureType.COSIGNATURE or clock.public == log.public or clock.name == log.name:
        raise MalformedDocument(
            "the clock key of the trust file is not a cosignature key of its own and by its own name"
        )
    if fields.minimum.size == 0 and fields.minimum.root != EMPTY_ROOT.hex():
        raise MalformedDocument(
            "the trust file's minimum checkpoint is of no entries, yet its root is not the empty one"
        )
    if clock.public in witness_keys(fields.witnesses):
        raise MalformedDocument("the clock key of the trust file is also a witness: it is never part of a quorum")
    return TrustFile(
        origin=fields.origin,
        log_vkey=fields.log_vkey,
        clock_vkey=fields.clock_vkey,
        genesis_sha256=bytes.fromhex(fields.genesis_sha256),
        minimum_size=fields.minimum.size,
        minimum_root=bytes.fromhex(fields.minimum.root),
        witnesses=fields.witnesses,
        max_age_s=fields.max_age_s,
    )


def encode_verified(state: VerifiedState) -> bytes:
    """The verified state, to be written atomically in place of the one before.

    Raises:
        MalformedDocument: a value that :func:`decode_verified` would refuse.
    """
    flips = [{"flip": state.flips[name], "pointer": name} for name in sorted(state.flips)]
    data = _dump(
        {
            "flips": flips,
            "log_keys": list(state.log_keys),
            "note": state.note.decode(),
            "policy": state.policy,
            "policy_idx": state.policy_idx,
            "v": 1,
        }
    )
    decode_verified(data)
    return data


def decode_verified(data: bytes) -> VerifiedState:
    """Read a verified state.

    Raises:
        MalformedDocument: not one, or a policy that is unfit.
        InvalidName: a pointer's or a principal's name.
        TooLarge: more than ``VERIFIED_SIZE_MAX_BYTES``.
    """
    fields = _load(data, _Verified, VERIFIED_SIZE_MAX_BYTES, "verified state")
    check_sorted([flip.pointer for flip in fields.flips], "flips of the verified state")
    Policy(fields.policy)
    try:
        for vkey in fields.log_keys:
            Verifier.parse(vkey)
    except InvalidInput as error:
        raise MalformedDocument(f"a log key of the verified state is unfit: {error.detail}") from error
    return VerifiedState(
        note=fields.note.encode(),
        policy_idx=fields.policy_idx,
        policy=fields.policy,
        log_keys=tuple(fields.log_keys),
        flips={str(flip.pointer): flip.flip for flip in fields.flips},
    )


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, indent=2, sort_keys=True).encode() + b"\n"


def _load(data: bytes, kind: type[_T], max_bytes: int, what: str) -> _T:
    if len(data) > max_bytes:
        raise TooLarge(f"the {what} has {len(data)} bytes, at most {max_bytes} are allowed", limit=max_bytes)
    try:
        document = json.loads(data.decode(), object_pairs_hook=_distinct)
        fields = msgspec.convert(document, kind, dec_hook=parse_id)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise MalformedDocument(f"the {what} is not well-formed: {error}") from error
    if fields.v != 1:
        raise MalformedDocument(f"a {what} of version {fields.v} is not known here")
    return fields


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that names a key twice: two readers would take two meanings from it."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("an object has a key twice")
    return document
