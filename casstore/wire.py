"""What travels between client and server: JSON bodies as typed records, and two small binary codecs.

Owns the shapes of ``/v1``; both sides import it, so a field has one name.  Pure: no I/O.  Decoding JSON refuses unknown
fields, so that a misspelt field is an error and not a silence (answers tolerate them, so that old clients read new servers).

Digests travel as ``blake3:<64 hex>``, times as RFC 3339 UTC with milliseconds in answers, binary as standard base64.

Source: docs/formats/wire.md
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec

from casstore.errors import InvalidInput, MalformedDocument, TooLarge
from casstore.ids import PackId
from casstore.limits import LAYOUT_SIZE_MAX_BYTES, PAGE_SIZE_MAX_BYTES

MEDIA_PROBLEM: Final = "application/problem+json"
MEDIA_JSON: Final = "application/json"
MEDIA_IDS: Final = "application/octet-stream"
MEDIA_PACK: Final = "application/vnd.casstore.pack"
MEDIA_TREE: Final = "application/vnd.casstore.tree"
MEDIA_PAGES: Final = "application/vnd.casstore.pages"
MEDIA_SNAPSHOT: Final = "application/vnd.casstore.snapshot+json"

HEADER_REPLAYED: Final = "Idempotent-Replayed"
HEADER_NO_OP: Final = "Casstore-No-Op"
HEADER_IDEMPOTENCY: Final = "Idempotency-Key"
HEADER_REQUEST_ID: Final = "X-Request-Id"


class Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A body that a client sends: unknown fields are refused."""


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """A body that a server sends: unknown fields are ignored by the reader."""


# --- content ---------------------------------------------------------------------------------------------------------


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True, order=True):
    k: str
    v: str


class CommitRequest(Request):
    """``POST /v1/pushes/{id}/commit``"""

    kind: Literal["tree", "blob"]
    digest: str
    name: str | None = None
    labels: list[Label] = []


class Artifact(Answer):
    """What a build pushed.  ``number`` orders artifacts by arrival."""

    number: int
    name: str | None
    kind: Literal["tree", "blob"]
    digest: str
    labels: list[Label]
    size_bytes: int
    files: int
    pushed_at: str
    by: str


class ArtifactList(Answer):
    artifacts: list[Artifact]
    next: str | None = None


class PackStored(Answer):
    """``POST /v1/pushes/{id}/packs``.  ``duplicate`` is true when this push had stored the pack before."""

    pack: str
    frames: int
    stored_bytes: int
    plain_bytes: int
    duplicate: bool = False


class Chunking(Answer):
    """How clients cut files, so that all of them cut alike."""

    algorithm: str
    min_bytes: int
    avg_bytes: int
    max_bytes: int
    seed: int
    normalization: int
    small_file_bytes: int
    bundle_cut_min_bytes: int
    bundle_cut_divisor_bytes: int
    compression: str


class LogInfo(Answer):
    origin: str
    vkey: str
    genesis_sha256: str
    private: bool


class ServerConfig(Answer):
    """``GET /v1/config``"""

    version: str
    format_version: int
    chunking: Chunking
    log: LogInfo
    limits: dict[str, int]


# --- snapshots -------------------------------------------------------------------------------------------------------


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"payload_type": "payloadType"}):
    """A DSSE envelope as JSON.  ``payload`` and ``sig`` are base64."""

    payload: str
    payload_type: str
    signatures: list[EnvelopeSignature]


class EnvelopeSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: str
    sig: str


class SnapshotPublish(Request):
    """``POST /v1/snapshots``: the document (base64 of its canonical bytes) and the signed intent that publishes it."""

    document: str
    intent: Envelope


class SnapshotInfo(Answer):
    digest: str
    entry: int
    published_at: str
    by: str
    labels: list[Label]
    components: int
    size_bytes: int


class SnapshotList(Answer):
    snapshots: list[SnapshotInfo]
    next: str | None = None


# --- log and proofs --------------------------------------------------------------------------------------------------


class EntryProof(Answer):
    """A log entry (base64 of its stored bytes) with its inclusion proof at the bundle's size (base64 hashes)."""

    index: int
    entry: str
    proof: list[str]


class StateProof(Answer):
    """A state leaf (base64 of its JCS bytes), its position among ``n`` leaves and its RFC 6962 path (base64 hashes)."""

    index: int
    n: int
    leaf: str
    proof: list[str]


class ProofBundle(Answer):
    """Facts of one and the same log size.

    ``head`` is the last leaf, whose ``state`` is the state root that every ``state`` proof leads to.  ``entries`` are the
    flips (or other entries) that the answer speaks of.
    """

    checkpoint: str
    size: int
    head: EntryProof
    state: list[StateProof]
    entries: list[EntryProof]


class EntryList(Answer):
    """``GET /v1/log/policies?after=``: the genesis and policy entries behind ``after``, with proofs at ``size``."""

    checkpoint: str
    size: int
    entries: list[EntryProof]


class ConsistencyAnswer(Answer):
    from_size: int
    to_size: int
    proof: list[str]


# --- pointers --------------------------------------------------------------------------------------------------------


class Previous(Answer):
    snapshot: str
    flip: int
    status: str


class HoldInfo(Answer):
    entry: int
    until: str | None
    by: str
    reason: str


class Pointer(Answer):
    """A pointer as ``GET /v1/pointers/{name}`` shows it.  ``snapshot`` is None after ``retire``."""

    pointer: str
    snapshot: str | None
    flip: int
    seq: int
    entry: int
    since: str
    by: str
    reason: str
    kind: str
    status: str
    pending: str | None = None
    previous: Previous | None = None
    hold: HoldInfo | None = None
    frozen: bool = False
    proof: ProofBundle | None = None

    @property
    def etag(self) -> str:
        """The strong entity tag of this representation, quotes included."""
        return f'"f{self.flip}.e{self.entry}"'


class PointerList(Answer):
    pointers: list[Pointer]
    next: str | None = None


class HistoryItem(Answer):
    """One flip of one pointer.  ``status`` is the newest mark on ``to``: good, bad or unmarked."""

    pointer: str
    flip: int
    seq: int
    kind: str
    from_: str | None = msgspec.field(name="from")
    to: str | None
    at: str
    by: str
    reason: str
    status: str


class History(Answer):
    items: list[HistoryItem]
    next: str | None = None


class WasLive(Answer):
    """``GET /v1/pointers/{name}?at=``: what was live, and the half-open interval in which it was."""

    pointer: str
    asked: str
    snapshot: str | None
    flip: HistoryItem | None
    valid_from: str | None
    valid_until: str | None
    proof: ProofBundle | None = None


class PutPointer(Request):
    """``PUT /v1/pointers/{name}`` for rules with ``unsigned: true``."""

    snapshot: str
    reason: str


class RollbackTo(Request):
    """One of the five ways to say where to roll back to; exactly one field is set."""

    previous: bool | None = None
    snapshot: str | None = None
    seq: int | None = None
    flip: int | None = None
    before: str | None = None


class RollbackRequest(Request):
    """``POST /v1/pointers/{name}/rollback``: a signed intent, or, where the rule is unsigned, target and reason."""

    intent: Envelope | None = None
    to: Literal["previous"] | RollbackTo | None = None
    reason: str = ""
    leave_bad: bool = True
    leave_hold: bool = True


class Skipped(Answer):
    snapshot: str
    flip: int
    why: str


class RollbackTarget(Answer):
    """``GET /v1/pointers/{name}/rollback-target``: what a rollback would go to now, for the client to sign."""

    pointer: str
    current: Pointer
    target: str
    target_flip: int
    skipped: list[Skipped]


class RollbackCandidate(Answer):
    snapshot: str
    flip: int
    seq: int
    since: str
    status: str
    complete: bool
    size_bytes: int


class RollbackCandidates(Answer):
    pointer: str
    candidates: list[RollbackCandidate]


class Submitted(Answer):
    """What a logged act led to.  ``pointers`` are the pointers that it changed, as they are now."""

    entry: int
    type: str
    pointers: list[Pointer]
    replayed: bool = False
    no_op: bool = False
    skipped: list[Skipped] = []
    proof: ProofBundle | None = None


class IntentRequest(Request):
    """A signed act: ``POST /v1/flips``, ``…/hold``, ``…/release``, ``…/marks``, ``/v1/policy``."""

    intent: Envelope


class PolicyAnswer(Answer):
    version: int
    entry: int
    policy: dict[str, Any]


# --- comparison ------------------------------------------------------------------------------------------------------


class DiffFile(Answer):
    """One path that differs.  ``path_b64`` replaces ``path`` where it is not UTF-8."""

    change: Literal["added", "removed", "changed"]
    path: str | None = None
    path_b64: str | None = None
    from_size: int | None = None
    to_size: int | None = None
    what: list[str] = []


class DiffComponent(Answer):
    name: str
    change: Literal["added", "removed", "changed"]
    from_: str | None = msgspec.field(name="from", default=None)
    to: str | None = None
    files: list[DiffFile] = []
    truncated: bool = False


class Diff(Answer):
    from_: str = msgspec.field(name="from")
    to: str
    components: list[DiffComponent]


# --- operating -------------------------------------------------------------------------------------------------------


class TokenCreate(Request):
    name: str
    permissions: list[str]
    expires_in_s: int | None = None


class Token(Answer):
    """A bearer token.  ``secret`` is there once, in the answer that creates it."""

    id: str
    name: str
    permissions: list[str]
    created_at: str
    expires_at: str | None
    secret: str | None = None


class TokenList(Answer):
    tokens: list[Token]


class Finding(Answer):
    """One thing that fsck found.  ``severity`` is error (something is wrong) or notice (something is left over)."""

    severity: Literal["error", "notice"]
    code: str
    object: str
    where: str
    expected: str
    found: str
    hint: str


class FsckReport(Answer):
    ok: bool
    checked: dict[str, int]
    findings: list[Finding]
    truncated: bool = False


class Problem(Answer):
    """RFC 9457.  Typed fields of the error stand beside these members."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str | None = None
    request_id: str | None = None


_T = TypeVar("_T")


def decode_json(data: bytes, kind: type[_T]) -> _T:
    """Read a JSON body as ``kind``.

    Raises:
        InvalidInput: not JSON, a missing or unknown field, or a field of another type; the message says which.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is not a {kind.__name__}: {error}") from error


def encode_json(value: Any) -> bytes:
    """Write a body as JSON."""
    return msgspec.json.encode(value)


def format_time(ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339 UTC with milliseconds: ``2026-08-23T10:15:02.113Z``."""
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def parse_time(text: str) -> int:
    """RFC 3339 with an offset or ``Z`` (a bare date and time is UTC) → milliseconds since the epoch.

    Raises:
        InvalidInput: not such a time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInput(f"{text[:50]!r} is not a time such as 2026-08-23T10:15:02Z") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000 + 0.5)


# --- binary: the bitmap of push step 1 -------------------------------------------------------------------------------


def encode_bitmap(flags: Sequence[bool]) -> bytes:
    """One bit an id, least significant bit of byte 0 first; a set bit says *missing*."""
    digits = "".join("1" if flag else "0" for flag in reversed(flags))
    return int(digits or "0", 2).to_bytes((len(flags) + 7) // 8, "little")


def decode_bitmap(data: bytes, count: int) -> list[bool]:
    """Undo :func:`encode_bitmap` for ``count`` ids.

    Raises:
        MalformedDocument: wrong length, or a bit behind the last id is set.
    """
    if len(data) != (count + 7) // 8:
        raise MalformedDocument(f"a bitmap of {count} ids has {(count + 7) // 8} bytes, this has {len(data)}")
    number = int.from_bytes(data, "little")
    if number >> count:
        raise MalformedDocument(f"a bitmap of {count} ids has a bit set behind the last one")
    return [bit == "1" for bit in reversed(format(number, f"0{count}b"))] if count else []


# --- binary: the page stream of pull step 2 --------------------------------------------------------------------------

_RECORD = struct.Struct(">BIII")
_CHUNK_AT = struct.Struct(">16sII")
_RECORD_MAGIC: Final = 0xC5
LOCATIONS_MAX_BYTES: Final = LAYOUT_SIZE_MAX_BYTES


class ChunkAt(NamedTuple):
    """Where a chunk's frame lies: pack, offset of the frame header, length of the whole frame, in bytes."""

    pack: PackId
    offset: int
    stored_length: int


class PageRecord(NamedTuple):
    """One page on the wire: its bytes, its layout's bytes, and where each chunk of the layout's table lies, in its order.

    A blob travels the same way with empty ``page`` bytes.
    """

    page: bytes
    layout: bytes
    chunks: list[ChunkAt]


def encode_page_record(record: PageRecord) -> bytes:
    """``u8 0xC5 ‖ u32be page bytes ‖ u32be layout bytes ‖ u32be chunks ‖ page ‖ layout ‖ (pack16 ‖ u32be ‖ u32be)*``"""
    head = _RECORD.pack(_RECORD_MAGIC, len(record.page), len(record.layout), len(record.chunks))
    return b"".join((head, record.page, record.layout, *(_CHUNK_AT.pack(*chunk) for chunk in record.chunks)))


class PageRecordDecoder:
    """Cuts a stream into page records, whatever the pieces in which it arrives.

    Memory: one record, at most ``PAGE_SIZE_MAX_BYTES + LAYOUT_SIZE_MAX_BYTES + LOCATIONS_MAX_BYTES``.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[PageRecord]:
        """Take more bytes, return the records that are complete.

        Raises:
            MalformedDocument: not such a stream.
            TooLarge: a record beyond the bound.
        """
        self._buffer += data
        records: list[PageRecord] = []
        start = 0
        while len(self._buffer) - start >= _RECORD.size:
            magic, page_size, layout_size, chunks = _RECORD.unpack_from(self._buffer, start)
            if magic != _RECORD_MAGIC:
                raise MalformedDocument(f"a page record begins with 0x{_RECORD_MAGIC:02x}, this with 0x{magic:02x}")
            if (
                page_size > PAGE_SIZE_MAX_BYTES
                or layout_size > LAYOUT_SIZE_MAX_BYTES
                or chunks * _CHUNK_AT.size > LOCATIONS_MAX_BYTES
            ):
                raise TooLarge("a page record is larger than any page can be", limit=PAGE_SIZE_MAX_BYTES)
            end = start + _RECORD.size + page_size + layout_size + chunks * _CHUNK_AT.size
            if len(self._buffer) < end:
                break
            records.append(self._decode(start + _RECORD.size, page_size, layout_size, end))
            start = end
        del self._buffer[:start]
        return records

    def _decode(self, at: int, page_size: int, layout_size: int, end: int) -> PageRecord:
        page = bytes(self._buffer[at : at + page_size])
        layout = bytes(self._buffer[at + page_size : at + page_size + layout_size])
        table = bytes(self._buffer[at + page_size + layout_size : end])
        chunks = [ChunkAt(PackId(pack), offset, length) for pack, offset, length in _CHUNK_AT.iter_unpack(table)]
        return PageRecord(page, layout, chunks)

    def finish(self) -> None:
        """Say that the stream has ended.

        Raises:
            MalformedDocument: in the middle of a record.
        """
        if self._buffer:
            raise MalformedDocument(f"the page stream ended inside a record ({len(self._buffer)} bytes were left)")
