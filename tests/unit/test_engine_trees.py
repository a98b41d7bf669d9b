"""Trees and blobs read back: what comes out is what went in, or an error."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.errors import (
    BlobNotFound,
    DamagedObject,
    InvalidInput,
    PathNotFound,
    SnapshotIncomplete,
    TooLarge,
    TreeNotFound,
)
from casstore.formats.layout import decode_layout
from casstore.formats.pack import FRAME_HEADER_BYTES, ObjectKind, decode_frame, open_frame
from casstore.formats.tree import TreeVerifier
from casstore.ids import BlobDigest, PageDigest, TreeDigest
from casstore.limits import PAGES_REQUEST_MAX
from tests.support.treebuild import (
    BuiltTree,
    Content,
    Directory,
    File,
    Link,
    build_blob,
    build_tree,
    encode_packs,
    flip_bit,
    new_push,
    open_local,
    read_directory,
)


@pytest.fixture(params=["memory", "local"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Content]:
    if request.param == "memory":
        yield Content()
        return
    opened, close = open_local(tmp_path / "store")
    yield opened
    close()


def some_tree(count: int = 1500) -> BuiltTree:
    source = random.Random(2)
    files: dict[bytes, bytes | File | Link | Directory] = {
        b"d%d/f%d" % (n % 5, n): source.randbytes(source.randrange(0, 300)) for n in range(count)
    }
    files[b"not utf-8 \xff\n"] = b"x"
    files[b"l"] = Link(b"d0")
    files[b"large"] = source.randbytes(400_000)
    return build_tree(files)


def restore(content: Content, tree: TreeDigest) -> dict[bytes, bytes]:
    """Put every file together as a client does: root, page records, frames by location."""
    files: dict[bytes, bytes] = {}
    verifier = TreeVerifier(content.trees.root(tree), tree)
    wanted = content.trees.select_pages(tree, b"".join(ref.digest for ref in verifier.pages))
    for record in content.trees.page_records(wanted):
        entries = verifier.add_page(record.page)
        layout = decode_layout(record.layout)
        plains = []
        for at, (id, _) in zip(record.chunks, layout.chunks, strict=True):
            frame = decode_frame(content.store.read(at.pack, at.offset, at.stored_length), at.offset)
            assert frame.id == id
            plains.append(open_frame(frame))
        rows = iter(layout.files)
        for entry in entries:
            if entry.digest is not None:
                row = next(rows) if entry.size else []
                files[entry.path] = b"".join(plains[e.chunk][e.offset : e.offset + e.length] for e in row)
    verifier.finish()
    return files


def test_a_real_directory_comes_back_bit_for_bit(content: Content, tmp_path: Path) -> None:
    """The reason for all of this."""
    directory = tmp_path / "in"
    (directory / "sub" / "empty").mkdir(parents=True)
    (directory / "sub" / "file").write_bytes(b"hello")
    (directory / "tool").write_bytes(b"#!/bin/sh\n" * 20_000)
    (directory / "tool").chmod(0o755)
    (directory / "link").symlink_to("/nowhere")
    files = read_directory(directory)
    tree = build_tree(files)
    content.push(tree)
    assert restore(content, tree.digest) == {path: item.data for path, item in files.items() if isinstance(item, File)}
    assert content.trees.entry(tree.digest, b"link").target == b"/nowhere"
    assert content.trees.entry(tree.digest, b"tool").mode == 0o755


def test_a_tree_of_many_pages(content: Content) -> None:
    """Pages, layouts and places of chunks fit together whatever the number of pages."""
    tree = some_tree()
    assert len(tree.pages) > 2
    content.push(tree)
    entries = [entry for page in tree.pages for entry in page.entries]
    assert list(content.trees.entries(tree.digest)) == entries
    assert list(content.trees.entries(tree.digest, first=b"d3")) == [e for e in entries if e.path >= b"d3"]
    for entry in entries[::37]:
        assert content.trees.entry(tree.digest, entry.path) == entry
    assert content.trees.entry(tree.digest, b"").path == b""
    for path in (b"nope", b"d0/", b"zzz", b"\xff"):
        with pytest.raises(PathNotFound):
            content.trees.entry(tree.digest, path)
    content.trees.verify(tree.digest)
    assert len(restore(content, tree.digest)) == 1502


def test_pages_are_asked_for_in_order_and_of_their_tree(content: Content) -> None:
    """A request for somebody else's pages, or for nonsense, is an error before anything is sent."""
    tree = some_tree()
    content.push(tree)
    pages = [page.ref.digest for page in tree.pages]
    assert content.trees.select_pages(tree.digest, b"".join(pages[1:])) == pages[1:]
    for bad in (b"".join(reversed(pages)), pages[0] * 2, bytes(32), pages[0][:31]):
        with pytest.raises(InvalidInput):
            content.trees.select_pages(tree.digest, bad)
    with pytest.raises(TooLarge):
        content.trees.select_pages(tree.digest, bytes(32 * (PAGES_REQUEST_MAX + 1)))
    with pytest.raises(TreeNotFound):
        content.trees.select_pages(TreeDigest(bytes(32)), b"")


def test_a_tree_that_was_never_committed_cannot_be_pulled(content: Content) -> None:
    """Its layouts are not proven: whoever pulls it would be promised nothing."""
    tree = some_tree(20)
    content.send(new_push(), encode_packs(tree.objects()))
    with pytest.raises(SnapshotIncomplete):
        content.trees.page_record(tree.pages[0].ref.digest)


def test_a_page_that_is_not_there(content: Content) -> None:
    """A pull of an unknown page says so."""
    with pytest.raises(SnapshotIncomplete):
        content.trees.page_record(PageDigest(bytes(32)))


def test_digests_can_be_shortened(content: Content) -> None:
    """People type twelve digits."""
    trees = [build_tree({b"f": bytes([n])}) for n in range(30)]
    for tree in trees:
        content.push(tree)
    for tree in trees:
        assert content.trees.resolve(tree.digest.hex()[:12]) == [tree.digest]
        assert content.trees.resolve(str(tree.digest)) == [tree.digest]
    first = trees[0].digest.hex()[0]
    assert content.trees.resolve(first) == sorted(t.digest for t in trees if t.digest.hex()[0] == first)
    for bad in ("", "xyz", "AB", "0" * 65):
        with pytest.raises(InvalidInput):
            content.trees.resolve(bad)


# --- blobs -----------------------------------------------------------------------------------------------------------

BLOB = random.Random(6).randbytes(1_500_000) + bytes(2_500_000)


def test_every_range_of_a_blob_is_right(content: Content) -> None:
    """Range requests cut at any byte, over chunk borders and inside a chunk that repeats."""
    blob = build_blob(BLOB)
    content.push(blob)
    assert content.blobs.size(blob.digest) == len(BLOB)
    assert b"".join(content.blobs.read(blob.digest)) == BLOB
    source = random.Random(7)
    edges = [0, 1, len(BLOB) - 1, len(BLOB)]
    position = 0
    for extent in decode_layout(blob.layout).files[0]:
        position += extent.length
        edges += [position - 1, position, position + 1]
    edges = [edge for edge in edges if edge <= len(BLOB)]
    for _ in range(60):
        start, stop = sorted(source.choices(edges, k=2))
        assert b"".join(content.blobs.read(blob.digest, start, stop - start)) == BLOB[start:stop]


def test_a_range_outside_the_blob(content: Content) -> None:
    """Never short: a run that is not there is an error before the first byte."""
    blob = build_blob(b"12345")
    content.push(blob)
    for offset, length in ((0, 6), (6, 0), (-1, 2), (5, 1), (2, -1)):
        with pytest.raises(InvalidInput):
            content.blobs.read(blob.digest, offset, length)
    assert list(content.blobs.read(blob.digest, 5, 0)) == []


def test_an_empty_blob(content: Content) -> None:
    """No bytes are also a blob."""
    blob = build_blob(b"")
    content.push(blob)
    assert (content.blobs.size(blob.digest), list(content.blobs.read(blob.digest))) == (0, [])
    assert content.blobs.record(blob.digest).chunks == []


def test_blobs_that_are_not_there(content: Content) -> None:
    """Unknown, uncommitted, and a page that is no blob."""
    blob, tree = build_blob(b"x"), build_tree({b"a": b"11"})
    content.push(tree)
    content.send(new_push(), encode_packs(blob.objects()))
    for digest in (BlobDigest(bytes(32)), blob.digest, BlobDigest(tree.pages[0].ref.digest)):
        with pytest.raises(BlobNotFound):
            content.blobs.read(digest)
        with pytest.raises(BlobNotFound):
            content.blobs.record(digest)


def test_a_damaged_chunk_ends_the_blob_in_an_error(content: Content) -> None:
    """The bytes before the damage may be out; the damaged ones must not be, and the end must not look like one."""
    blob = build_blob(BLOB)
    content.push(blob)
    layout = decode_layout(blob.layout)
    location = content.index.locate(ObjectKind.CHUNK, [layout.chunks[1][0]])[0]
    assert location is not None
    flip_bit(content.store, location.pack, location.offset + FRAME_HEADER_BYTES + 5)
    pieces = content.blobs.read(blob.digest)
    assert next(pieces) == BLOB[: layout.chunks[0][1]]
    with pytest.raises(DamagedObject, match=str(location.pack)):
        next(pieces)


def test_a_blob_with_another_layout_than_the_proven_one_is_damage(content: Content) -> None:
    """A layout has no hash of its own, so what is read is held against the proof."""
    content.push(build_blob(b"1" * 10))
    other = build_blob(b"2" * 10)
    content.packs.put_objects([(ObjectKind.LAYOUT, other.digest, build_blob(b"1" * 10).layout)])
    with pytest.raises(DamagedObject, match="proven"):
        content.blobs.read(other.digest)
