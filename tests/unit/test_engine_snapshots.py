"""Snapshot documents, and the answer to *is everything there?* that flips and rollbacks rest on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.errors import HostileTree, MalformedDocument, SnapshotIncomplete, SnapshotNotFound
from casstore.formats.pack import ObjectKind
from casstore.formats.snapshot import Component, Snapshot, encode_snapshot, snapshot_digest
from casstore.formats.tree import PageRef, encode_root, tree_digest
from casstore.ids import ComponentName, SnapshotDigest
from tests.support.treebuild import BuiltBlob, BuiltTree, Content, build_blob, build_tree, open_local


@pytest.fixture(params=["memory", "local"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Content]:
    if request.param == "memory":
        yield Content()
        return
    opened, close = open_local(tmp_path / "store")
    yield opened
    close()


def describe(**parts: BuiltTree | BuiltBlob) -> bytes:
    components = [
        Component(ComponentName(name), "tree" if isinstance(part, BuiltTree) else "blob", part.digest)
        for name, part in parts.items()
    ]
    return encode_snapshot(Snapshot(components=tuple(components)))


API = build_tree({b"bin/api": random.Random(1).randbytes(200_000), b"etc/conf": b"x=1"})
CONF = build_blob(b"config")


def test_a_document_is_stored_once_and_comes_back(content: Content) -> None:
    """Publishing the same environment twice stores it once."""
    document = describe(api=API)
    [digest] = content.snapshots.put([document])
    assert content.snapshots.put([document, document]) == [digest, digest]
    assert content.snapshots.document(digest) == document
    assert content.snapshots.get(digest).components[0].digest == API.digest
    assert content.snapshots.has(digest)
    assert len(content.store.list(limit=10)) == 1
    assert content.snapshots.resolve(digest.hex()[:12]) == [digest]


def test_concurrent_documents_share_a_pack(content: Content) -> None:
    """Small objects must not become a pack each."""
    documents = [describe(**{f"a{n}": API}) for n in range(20)]
    content.snapshots.put(documents)
    assert len(content.store.list(limit=10)) == 1
    for document in documents:
        assert content.snapshots.document(snapshot_digest(document)) == document


def test_what_is_no_document_is_refused(content: Content) -> None:
    """Among many publications one bad one must not be stored."""
    with pytest.raises(MalformedDocument):
        content.snapshots.seal([describe(api=API), b"{}"])
    assert content.store.list(limit=10) == []
    with pytest.raises(SnapshotNotFound):
        content.snapshots.document(SnapshotDigest(bytes(32)))


def test_nothing_is_found_before_it_is_recorded(content: Content) -> None:
    """ORDER: the document is durable before anything can refer to it."""
    document = describe(api=API)
    sealed = content.snapshots.seal([document])
    assert not content.snapshots.has(snapshot_digest(document))
    content.snapshots.record(sealed)
    assert content.snapshots.has(snapshot_digest(document))


def test_a_complete_snapshot(content: Content) -> None:
    """The size is that of what a host would fetch."""
    content.push(API)
    content.push(CONF)
    [digest] = content.snapshots.put([describe(api=API, conf=CONF)])
    found = content.snapshots.completeness(digest)
    assert (found.complete, found.missing, found.size_bytes) == (True, [], 200_000 + 3 + 6)
    content.snapshots.require_complete(digest)


def test_what_is_missing_is_named(content: Content) -> None:
    """A snapshot that names what was never pushed must not go live, and the answer says what to push."""
    content.push(CONF)
    [digest] = content.snapshots.put([describe(api=API, conf=CONF)])
    with pytest.raises(SnapshotIncomplete) as caught:
        content.snapshots.require_complete(digest)
    assert (caught.value.missing, caught.value.missing_count) == ([str(API.digest)], 1)
    content.push(API)
    content.snapshots.require_complete(digest)


def test_a_page_does_not_pass_for_a_blob_component(content: Content) -> None:
    """Digests of pages name layouts too."""
    content.push(API)
    page = API.pages[0].ref.digest
    assert content.presence.pages([page]) == [True]
    fake = BuiltBlob(CONF.digest.__class__(page), b"", {})
    [digest] = content.snapshots.put([describe(conf=fake)])
    assert content.snapshots.completeness(digest).missing == [str(page)]


def test_completeness_is_remembered_until_something_is_deleted() -> None:
    """Remembering makes flips cheap; after a deletion it would make them wrong."""
    content = Content()
    content.push(CONF)
    [digest] = content.snapshots.put([describe(conf=CONF)])
    assert content.snapshots.completeness(digest).complete
    emptied = Content(content.store, None, content.ledger)
    emptied.snapshots.put([describe(conf=CONF)])
    # The services of `content` over an index that has lost everything but the document.
    content.packs.index = emptied.index
    content.presence.forget()
    assert content.snapshots.completeness(digest).missing == [str(CONF.digest)]


def test_pages_that_are_proven_one_by_one_are_not_a_tree(content: Content) -> None:
    """A root that was never committed may put good pages together into a hostile tree."""
    content.push(API)
    honest = build_tree({b"a/b": b"1"})
    content.push(honest)
    good = honest.pages[0].ref
    # Same page, but the root claims other numbers for it.
    lying = encode_root([PageRef(good.digest, good.entries + 1, good.page_bytes, good.content_bytes, b"")])
    content.packs.put_objects([(ObjectKind.ROOT, tree_digest(lying), lying)])
    component = Component(ComponentName("api"), "tree", tree_digest(lying))
    [digest] = content.snapshots.put([encode_snapshot(Snapshot(components=(component,)))])
    with pytest.raises((HostileTree, MalformedDocument)):
        content.snapshots.completeness(digest)
