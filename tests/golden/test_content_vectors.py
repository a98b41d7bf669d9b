"""Content formats against their golden vectors.

The vectors were written by a second, plain implementation (the cut points of large files by the FastCDC library).
They are never changed, only added to: a failure here means that stores in the field, and digests that people wrote
down, would no longer be understood.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casstore.chunking import DEFAULT_PARAMETERS, BundleCutter, FileChunker, StreamCutter
from casstore.errors import MalformedDocument
from casstore.formats.layout import decode_layout, encode_layout
from casstore.formats.pack import PackDecoder, PackEncoder, decode_footer, decode_frame, open_frame
from casstore.formats.snapshot import decode_snapshot, encode_snapshot, snapshot_digest
from casstore.formats.tree import (
    BuiltPage,
    EntryType,
    PageCutter,
    TreeEntry,
    TreeVerifier,
    decode_page,
    encode_page,
    encode_root,
    page_digest,
    tree_digest,
)
from casstore.hashing import Blake3Hasher, blake3_256
from casstore.ids import BlobDigest, PackId, TreeDigest

HERE = Path(__file__).parent


def load(name: str) -> Any:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


TREES = load("tree.json")
LAYOUTS = load("layout.json")
PACKS = load("pack.json")
SNAPSHOTS = load("snapshot.json")
CUTS = load("cuts.json")


def what(vector: Any) -> str:
    return str(vector["what"])[:40]


def entry(vector: dict[str, Any]) -> TreeEntry:
    digest = vector.get("digest")
    return TreeEntry(
        bytes.fromhex(vector["path"]),
        EntryType[vector["type"].upper()],
        int(vector["mode"], 8),
        vector.get("size", 0),
        None if digest is None else BlobDigest(bytes.fromhex(digest)),
        bytes.fromhex(vector.get("target", "")),
    )


def cut(entries: list[TreeEntry]) -> list[BuiltPage]:
    cutter = PageCutter()
    return [page for item in entries if (page := cutter.add(item))] + cutter.finish()


@pytest.mark.parametrize("vector", TREES["trees"], ids=what)
def test_tree(vector: dict[str, Any]) -> None:
    entries = [entry(item) for item in vector["entries"]]
    pages = cut(entries)
    assert [page.data.hex() for page in pages] == vector["pages"]
    assert [str(page_digest(page.data)) for page in pages] == vector["page_digests"]
    root = encode_root([page.ref for page in pages])
    assert root.hex() == vector["root"]
    assert str(tree_digest(root)) == vector["tree_digest"]
    verifier = TreeVerifier(bytes.fromhex(vector["root"]), TreeDigest.parse(vector["tree_digest"]))
    assert [item for page in vector["pages"] for item in verifier.add_page(bytes.fromhex(page))] == entries
    verifier.finish()
    assert encode_page(entries).hex() == vector["pages"][0]


@pytest.mark.parametrize("vector", TREES["generated"], ids=lambda vector: str(vector["count"]))
def test_generated_tree(vector: dict[str, Any]) -> None:
    entries = [TreeEntry(b"", EntryType.DIRECTORY, 0o755)]
    for number in range(vector["count"]):
        path = b"%0*d" % (vector["width"], number)
        entries.append(TreeEntry(path, EntryType.FILE, 0o644, number + 1, BlobDigest(blake3_256(b"%d" % number))))
    pages = cut(entries)
    assert [page.ref.entries for page in pages] == vector["page_entries"]
    assert [str(page.ref.digest) for page in pages] == vector["page_digests"]
    assert str(tree_digest(encode_root([page.ref for page in pages]))) == vector["tree_digest"]


@pytest.mark.parametrize("vector", TREES["refused_pages"], ids=what)
def test_refused_page(vector: dict[str, Any]) -> None:
    with pytest.raises(MalformedDocument):
        decode_page(bytes.fromhex(vector["page"]))


@pytest.mark.parametrize("vector", LAYOUTS["layouts"], ids=what)
def test_layout(vector: dict[str, Any]) -> None:
    layout = decode_layout(bytes.fromhex(vector["layout"]))
    assert [[chunk.hex(), length] for chunk, length in layout.chunks] == vector["chunks"]
    assert [[list(extent) for extent in row] for row in layout.files] == vector["files"]
    assert encode_layout(layout).hex() == vector["layout"]


@pytest.mark.parametrize("vector", PACKS["packs"], ids=what)
def test_pack(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["pack"])
    decoder = PackDecoder(PackId.parse(vector["pack_id"]))
    frames = decoder.feed(data)
    summary = decoder.finish()
    assert decode_footer(data, len(data)) == summary
    found = [
        {
            "kind": int(row.kind),
            "codec": int(row.codec),
            "id": row.id.hex(),
            "offset": row.offset,
            "stored_length": row.stored_length,
            "plain": open_frame(decode_frame(data[row.offset : row.offset + row.stored_length], row.offset)).hex(),
        }
        for row in summary.rows
    ]
    assert found == vector["frames"]
    # What zstd writes may differ between its versions, so the stored bytes are taken from the vector.
    encoder = PackEncoder(summary.pack)
    parts = [encoder.header()]
    parts += [encoder.add(frame.kind, frame.id, frame.codec, frame.stored, frame.plain_length) for frame in frames]
    assert b"".join([*parts, encoder.finish()]) == data


@pytest.mark.parametrize("vector", SNAPSHOTS["snapshots"], ids=what)
def test_snapshot(vector: dict[str, Any]) -> None:
    data = vector["document"].encode()
    assert encode_snapshot(decode_snapshot(data)) == data
    assert str(snapshot_digest(data)) == vector["digest"]


@pytest.mark.parametrize("vector", SNAPSHOTS["refused"], ids=what)
def test_refused_snapshot(vector: dict[str, Any]) -> None:
    with pytest.raises(MalformedDocument):
        decode_snapshot(vector["document"].encode())


def test_the_default_parameters() -> None:
    assert DEFAULT_PARAMETERS._asdict() == CUTS["parameters"]


@pytest.mark.parametrize("vector", CUTS["files"]["vectors"], ids=lambda vector: str(vector["length"]))
def test_cut_points(vector: dict[str, Any]) -> None:
    data = Blake3Hasher(vector["seed"].encode()).digest(length=vector["length"])
    assert FileChunker().cut(data) == vector["chunks"]
    assert [len(chunk) for chunk in StreamCutter(FileChunker()).feed(data, final=True)] == vector["chunks"]


def test_bundle_cut_points() -> None:
    cutter = BundleCutter()
    bundles = [0]
    for number in range(CUTS["bundles"]["files"]):
        digest = BlobDigest(blake3_256(b"bundle %d" % number))
        before, after = cutter.add(digest, int.from_bytes(digest[-2:], "big") // 8 + 1)
        if before:
            bundles.append(0)
        bundles[-1] += 1
        if after:
            bundles.append(0)
    assert [count for count in bundles if count] == CUTS["bundles"]["files_per_bundle"]
