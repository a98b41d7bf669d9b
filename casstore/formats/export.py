"""Exports: chosen snapshots and artifacts with everything that they need, as files for a site without a network.

Owns the names and the two JSON documents of an export.  The content lies in packs (:mod:`casstore.formats.pack`).  Must
not know archives or files: an export is a sequence of named members, in a ZIP or in a directory.

The first member says what the export is about, the last one lists all others with their hashes, so an export that was
cut short has no end.

Invariant: ``decode(encode(x)) == x``, one spelling.  Nothing here is trusted for content: each object is held against
its own id.

Source: docs/formats/export.md
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar

from casstore.errors import InvalidInput, MalformedDocument
from casstore.formats.acts import check_origin
from casstore.formats.canonical import decode_canonical, encode_canonical
from casstore.formats.snapshot import Label, verify_label
from casstore.hashing import blake3_256
from casstore.ids import ArtifactName, BlobDigest, PackId, SnapshotDigest, TreeDigest
from casstore.limits import EXPORT_MEMBERS_MAX, MIB

FIRST: Final = "export.json"
LAST: Final = "end.json"
MANIFEST_MAX_BYTES: Final = 64 * MIB
"""LIMIT: some hundred thousand artifacts with their labels."""
END_MAX_BYTES: Final = 64 * MIB
"""LIMIT: ``EXPORT_MEMBERS_MAX`` members of some 150 bytes."""
ENTRY_SUFFIX: Final = ".entry"
PROOF_SUFFIX: Final = ".tlog-proof"
_VERSION: Final = 1
_MEMBER: Final = re.compile(
    r"export\.json\Z|snapshots/[0-9a-f]{64}\.json\Z|proofs/[0-9a-f]{64}\.(?:entry|tlog-proof)\Z|packs/[0-9]{6}\.pack\Z"
)
_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")
_SIZE_MAX: Final = 1 << 53

_T = TypeVar("_T")


class ExportSnapshot(NamedTuple):
    """A published snapshot."""

    digest: SnapshotDigest
    entry: int | None
    """The log index that published it; None where the exporter could not prove it."""


class ExportArtifact(NamedTuple):
    """A tree or blob to be committed, and what it is called."""

    kind: Literal["tree", "blob"]
    digest: TreeDigest | BlobDigest
    name: ArtifactName | None = None
    labels: tuple[Label, ...] = ()


class ExportManifest(NamedTuple):
    """What an export is about."""

    log: str
    """Origin of the log of the store that it comes from."""
    snapshots: tuple[ExportSnapshot, ...]
    """Parents before those that follow them."""
    artifacts: tuple[ExportArtifact, ...]
    base: tuple[str, ...] = ()
    """Digests of what the receiver is said to have: pages and chunks of those are left out."""


class Member(NamedTuple):
    """A member of an export, as the last one lists it."""

    name: str
    size: int
    blake3: bytes


class ExportEnd(NamedTuple):
    """All members but the last, in order."""

    members: tuple[Member, ...]


def document_name(digest: SnapshotDigest) -> str:
    """The member that holds a snapshot's document."""
    return f"snapshots/{digest.hex()}.json"


def proof_name(digest: SnapshotDigest, suffix: str) -> str:
    """The member that holds a snapshot's log entry (``.entry``) or the proof of it (``.tlog-proof``)."""
    return f"proofs/{digest.hex()}{suffix}"


def pack_name(number: int) -> str:
    """The member that holds the pack of that number, from 0."""
    if not 0 <= number < EXPORT_MEMBERS_MAX:
        raise InvalidInput(f"an export has at most {EXPORT_MEMBERS_MAX} packs")
    return f"packs/{number:06d}.pack"


def pack_id(manifest: bytes, number: int) -> PackId:
    """The id of a pack of an export: not random, so that the same export has the same bytes.

    Nobody stores such a pack as it is; its objects go into packs of the receiver's own.
    """
    return PackId(blake3_256(blake3_256(manifest) + number.to_bytes(4, "big"))[:16])


def encode_manifest(manifest: ExportManifest) -> bytes:
    """The bytes of ``export.json``.

    Raises:
        InvalidInput: a value that :func:`decode_manifest` would refuse.
    """
    _check_manifest(manifest)
    return encode_canonical(
        {
            "artifacts": [
                {
                    "digest": str(artifact.digest),
                    "kind": artifact.kind,
                    "labels": [{"k": k, "v": v} for k, v in artifact.labels],
                    "name": None if artifact.name is None else str(artifact.name),
                }
                for artifact in manifest.artifacts
            ],
            "base": list(manifest.base),
            "log": manifest.log,
            "snapshots": [{"digest": str(s.digest), "entry": s.entry} for s in manifest.snapshots],
            "v": _VERSION,
        }
    )


def decode_manifest(data: bytes) -> ExportManifest:
    """Read ``export.json``.

    Raises:
        MalformedDocument: any other spelling, field or type.
        TooLarge: above ``MANIFEST_MAX_BYTES``.
    """
    value = decode_canonical(data, max_bytes=MANIFEST_MAX_BYTES)
    return _reading("the manifest of the export", lambda: _manifest_of(value))


def _manifest_of(value: Any) -> ExportManifest:
    _fields(value, "artifacts", "base", "log", "snapshots", "v")
    if value["v"] != _VERSION or isinstance(value["v"], bool):
        raise MalformedDocument(f"it has version {value['v']!r}, this program knows {_VERSION}")
    artifacts = []
    for row in value["artifacts"]:
        _fields(row, "digest", "kind", "labels", "name")
        kind = row["kind"]
        if kind not in ("tree", "blob"):
            raise MalformedDocument(f"{kind!r} is neither tree nor blob")
        digest = (TreeDigest if kind == "tree" else BlobDigest).parse(row["digest"])
        for label in row["labels"]:
            _fields(label, "k", "v")
        labels = tuple(Label(label["k"], label["v"]) for label in row["labels"])
        name = None if row["name"] is None else ArtifactName.parse(row["name"])
        artifacts.append(ExportArtifact(kind, digest, name, labels))
    snapshots = []
    for row in value["snapshots"]:
        _fields(row, "digest", "entry")
        snapshots.append(ExportSnapshot(SnapshotDigest.parse(row["digest"]), row["entry"]))
    manifest = ExportManifest(value["log"], tuple(snapshots), tuple(artifacts), tuple(value["base"]))
    _check_manifest(manifest)
    return manifest


def _check_manifest(manifest: ExportManifest) -> None:
    check_origin(manifest.log)
    for snapshot in manifest.snapshots:
        if snapshot.entry is not None and not _is_count(snapshot.entry):
            raise MalformedDocument(f"{snapshot.entry!r} is not a log index")
    for artifact in manifest.artifacts:
        for label in artifact.labels:
            verify_label(label)
        if list(artifact.labels) != sorted(set(artifact.labels)):
            raise MalformedDocument("labels are sorted and distinct")
    for digest in manifest.base:
        BlobDigest.parse(digest)
    _distinct([s.digest for s in manifest.snapshots], "a snapshot")
    _distinct([(a.kind, a.digest, a.name, a.labels) for a in manifest.artifacts], "an artifact")
    if list(manifest.base) != sorted(set(manifest.base)):
        raise MalformedDocument("the digests of the base are sorted and distinct")


def encode_end(end: ExportEnd) -> bytes:
    """The bytes of ``end.json``.

    Raises:
        InvalidInput: a value that :func:`decode_end` would refuse.
    """
    _check_end(end)
    return encode_canonical(
        {
            "members": [{"blake3": m.blake3.hex(), "name": m.name, "size": m.size} for m in end.members],
            "v": _VERSION,
        }
    )


def decode_end(data: bytes) -> ExportEnd:
    """Read ``end.json``.

    Raises:
        MalformedDocument: any other spelling, field or type.
        TooLarge: above ``END_MAX_BYTES``.
    """
    value = decode_canonical(data, max_bytes=END_MAX_BYTES)
    return _reading("the end of the export", lambda: _end_of(value))


def _end_of(value: Any) -> ExportEnd:
    _fields(value, "members", "v")
    if value["v"] != _VERSION or isinstance(value["v"], bool):
        raise MalformedDocument(f"it has version {value['v']!r}, this program knows {_VERSION}")
    members = []
    for row in value["members"]:
        _fields(row, "blake3", "name", "size")
        if not isinstance(row["blake3"], str) or not _HEX.match(row["blake3"]):
            raise MalformedDocument("a hash has 64 hex digits")
        members.append(Member(row["name"], row["size"], bytes.fromhex(row["blake3"])))
    end = ExportEnd(tuple(members))
    _check_end(end)
    return end


def _check_end(end: ExportEnd) -> None:
    if len(end.members) > EXPORT_MEMBERS_MAX:
        raise MalformedDocument(f"an export has at most {EXPORT_MEMBERS_MAX} members")
    for member in end.members:
        # TRUST: a name becomes a path where an export is a directory; only these pass.
        if not isinstance(member.name, str) or not _MEMBER.match(member.name):
            raise MalformedDocument(f"{str(member.name)[:100]!r} is not a member of an export")
        if not _is_count(member.size):
            raise MalformedDocument(f"{member.name} has no size")
    _distinct([member.name for member in end.members], "a member")
    if not end.members or end.members[0].name != FIRST:
        raise MalformedDocument(f"the first member is {FIRST}")
    names = {member.name for member in end.members}
    packs = sorted(name for name in names if name.startswith("packs/"))
    if packs != [pack_name(number) for number in range(len(packs))]:
        raise MalformedDocument("packs are numbered from 0 without a gap")
    proofs = {name.partition(".")[0] for name in names if name.startswith("proofs/")}
    for proof in sorted(proofs):
        if not names.issuperset((proof + ENTRY_SUFFIX, proof + PROOF_SUFFIX)):
            raise MalformedDocument(f"{proof} has an entry without its proof, or a proof without its entry")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _SIZE_MAX


def _distinct(items: Sequence[object], what: str) -> None:
    if len(set(items)) != len(items):
        raise MalformedDocument(f"{what} stands there twice")


def _fields(value: Any, *names: str) -> None:
    if not isinstance(value, dict) or set(value) != set(names):
        raise MalformedDocument(f"it has other fields than {', '.join(names)}")


def _reading(what: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except (InvalidInput, TypeError, AttributeError) as error:
        said = error.detail if isinstance(error, InvalidInput) else str(error)
        raise MalformedDocument(f"{what} cannot be read: {said}") from error
