"""The documents of an export: one spelling, no name that leads out of it, nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import InvalidInput, MalformedDocument
from casstore.formats.canonical import encode_canonical
from casstore.formats.export import (
    ExportArtifact,
    ExportEnd,
    ExportManifest,
    ExportSnapshot,
    Member,
    decode_end,
    decode_manifest,
    document_name,
    encode_end,
    encode_manifest,
    pack_id,
    pack_name,
    proof_name,
)
from casstore.formats.snapshot import Label
from casstore.ids import ArtifactName, BlobDigest, SnapshotDigest, TreeDigest

VECTOR: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "export.json").read_text("utf-8"))
MANIFEST = ExportManifest(
    log="casstore/0011223344556677",
    snapshots=(ExportSnapshot(SnapshotDigest(b"\1" * 32), 7), ExportSnapshot(SnapshotDigest(b"\0" * 32), None)),
    artifacts=(
        ExportArtifact("tree", TreeDigest(b"\2" * 32), ArtifactName("team/web"), (Label("git", "a1"),)),
        ExportArtifact("blob", BlobDigest(b"\3" * 32)),
    ),
    base=("blake3:" + "04" * 32,),
)
END = ExportEnd((Member("export.json", 5, b"\5" * 32), Member("packs/000000.pack", 1 << 40, b"\6" * 32)))


def test_the_golden_documents() -> None:
    """Exports lie on disks in safes for years: what was written must be read."""
    assert encode_manifest(MANIFEST).decode() == VECTOR["manifest"]
    assert encode_end(END).decode() == VECTOR["end"]
    assert [str(pack_id(VECTOR["manifest"].encode(), number)) for number in (0, 1)] == VECTOR["pack_ids"]
    assert decode_manifest(VECTOR["manifest"].encode()) == MANIFEST
    assert decode_end(VECTOR["end"].encode()) == END


def test_names_of_members() -> None:
    digest = SnapshotDigest(b"\1" * 32)
    assert document_name(digest) == "snapshots/" + "01" * 32 + ".json"
    assert proof_name(digest, ".entry") == "proofs/" + "01" * 32 + ".entry"
    assert pack_name(17) == "packs/000017.pack"
    for number in (-1, 262_144):
        with pytest.raises(InvalidInput):
            pack_name(number)


@pytest.mark.parametrize(
    "name",
    [
        "../export.json",
        "/etc/passwd",
        "packs/../../x.pack",
        "packs/1.pack",
        "packs/0000000.pack",
        "packs/000000.pack\n",
        "snapshots/x.json",
        "end.json",
        "PACKS/000000.pack",
        "",
        7,
        None,
    ],
)
def test_no_member_leads_elsewhere(name: object) -> None:
    """Where an export is a directory a name becomes a path."""
    members = [{"blake3": "00" * 32, "name": n, "size": 1} for n in ("export.json", name)]
    with pytest.raises(MalformedDocument):
        decode_end(encode_canonical({"members": members, "v": 1}))


def variants(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {**document, "v": 2},
        {**document, "v": True},
        {**document, "more": 1},
        {name: value for name, value in document.items() if name != "v"},
    ]


def test_every_other_manifest_is_refused() -> None:
    good = json.loads(VECTOR["manifest"])
    artifact, snapshot = good["artifacts"][0], good["snapshots"][0]
    wrong = [
        *variants(good),
        {**good, "log": ""},
        {**good, "log": 1},
        {**good, "base": ["blake3:00"]},
        {**good, "base": ["blake3:" + "05" * 32, "blake3:" + "04" * 32]},
        {**good, "base": 3},
        {**good, "snapshots": [snapshot, snapshot]},
        {**good, "snapshots": [{**snapshot, "entry": -1}]},
        {**good, "snapshots": [{**snapshot, "entry": True}]},
        {**good, "snapshots": [{**snapshot, "digest": "blake3:1"}]},
        {**good, "snapshots": [snapshot["digest"]]},
        {**good, "artifacts": [artifact, artifact]},
        {**good, "artifacts": [{**artifact, "kind": "page"}]},
        {**good, "artifacts": [{**artifact, "name": "../x"}]},
        {**good, "artifacts": [{**artifact, "labels": [{"k": "b", "v": ""}, {"k": "a", "v": ""}]}]},
        {**good, "artifacts": [{**artifact, "labels": [{"k": "", "v": ""}]}]},
        {**good, "artifacts": None},
    ]
    for document in wrong:
        with pytest.raises(MalformedDocument):
            decode_manifest(encode_canonical(document))
    for data in (b"", b"[]", b"{", VECTOR["manifest"].encode() + b"\n", VECTOR["manifest"].replace(",", ", ").encode()):
        with pytest.raises(MalformedDocument):
            decode_manifest(data)


def test_every_other_end_is_refused() -> None:
    good = json.loads(VECTOR["end"])
    first, second = good["members"]
    wrong = [
        *variants(good),
        {**good, "members": []},
        {**good, "members": [second, first]},
        {**good, "members": [first, second, second]},
        {**good, "members": [{**first, "size": -1}]},
        {**good, "members": [{**first, "size": "5"}]},
        {**good, "members": [{**first, "blake3": "0" * 63}]},
        {**good, "members": [{**first, "blake3": "A" * 64}]},
        {**good, "members": [{**first, "blake3": None}]},
        {**good, "members": first},
        {**good, "members": [first, {**second, "name": "packs/000001.pack"}]},
        {**good, "members": [first, second, {**second, "name": "packs/000002.pack"}]},
        {**good, "members": [first, {**second, "name": f"proofs/{'01' * 32}.entry"}]},
        {**good, "members": [first, {**second, "name": f"proofs/{'01' * 32}.tlog-proof"}]},
    ]
    for document in wrong:
        with pytest.raises(MalformedDocument):
            decode_end(encode_canonical(document))
