"""Bodies about the log: envelopes, snapshots, proofs."""

from __future__ import annotations

import msgspec

from casstore.wire.bodies import Answer, Request
from casstore.wire.content import Label


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"payload_type": "payloadType"}):
    """A DSSE envelope as JSON.  ``payload`` and ``sig`` are base64."""

    payload: str
    payload_type: str
    signatures: list[EnvelopeSignature]


class EnvelopeSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: str
    sig: str


class SnapshotPublish(Request, frozen=True, kw_only=True):
    """``POST /v1/snapshots``: the document (base64 of its canonical bytes) and the signed intent that publishes it."""

    document: str
    intent: Envelope


class SnapshotInfo(Answer, frozen=True, kw_only=True):
    digest: str
    entry: int
    published_at: str
    by: str
    labels: list[Label]
    components: int
    size_bytes: int


class SnapshotList(Answer, frozen=True, kw_only=True):
    snapshots: list[SnapshotInfo]
    next: str | None = None


class EntryProof(Answer, frozen=True, kw_only=True):
    """A log entry (base64 of its stored bytes) with its inclusion proof at the bundle's size (base64 hashes)."""

    index: int
    entry: str
    proof: list[str]


class StateProof(Answer, frozen=True, kw_only=True):
    """A state leaf (base64 of its JCS bytes), its position among ``n`` leaves and its RFC 6962 path (base64 hashes)."""

    index: int
    n: int
    leaf: str
    proof: list[str]


class ProofBundle(Answer, frozen=True, kw_only=True):
    """Facts of one and the same log size.

    ``head`` is the last leaf, whose ``state`` is the state root that every ``state`` proof leads to.  ``entries`` are
    the flips (or other entries) that the answer speaks of.  ``consistency`` (base64 hashes) shows that the log continues the
    one of ``since`` entries, which the asker had named; there is none where ``since`` is None, 0 or ``size``.
    """

    checkpoint: str
    size: int
    head: EntryProof
    state: list[StateProof]
    entries: list[EntryProof]
    since: int | None = None
    consistency: list[str] = []


class EntryList(Answer, frozen=True, kw_only=True):
    """``GET /v1/log/policies?after=``: the genesis and policy entries behind ``after``, with proofs at ``size``."""

    checkpoint: str
    size: int
    entries: list[EntryProof]


class ConsistencyAnswer(Answer, frozen=True, kw_only=True):
    from_size: int
    to_size: int
    proof: list[str]
