"""A push from *missing* to an artifact: an acknowledged one is whole and proven, any other leaves nothing to rely on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casstore.errors import (
    DamagedObject,
    DigestMismatch,
    HostileTree,
    InvalidInput,
    InvalidName,
    MalformedDocument,
    SnapshotIncomplete,
    TooLarge,
)
from casstore.formats.layout import Extent, Layout, encode_layout
from casstore.formats.pack import ObjectKind
from casstore.formats.tree import (
    PAGE_MAGIC,
    EntryType,
    PageRef,
    TreeEntry,
    encode_entry,
    encode_root,
    page_digest,
    tree_digest,
)
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, ChunkId
from casstore.limits import MISSING_IDS_MAX
from casstore.wire import Artifact, CommitRequest, Label, decode_bitmap
from tests.support.treebuild import (
    BuiltTree,
    Content,
    Files,
    build_blob,
    build_tree,
    commit_objects,
    encode_packs,
    flip_bit,
    missing,
    new_push,
    open_local,
    some_files,
)


@pytest.fixture(params=["memory", "local"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Content]:
    if request.param == "memory":
        yield Content()
        return
    opened, close = open_local(tmp_path / "store")
    yield opened
    close()


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3])
def test_a_push_ends_in_an_artifact(content: Content, width: int) -> None:
    """What every build relies on, with one thread and with several."""
    tree = build_tree(some_files())
    with ThreadPoolExecutor(2) as pool:
        artifact = content.push(tree, "team/api", pool=pool, width=width)
    assert (artifact.number, artifact.name, artifact.digest, artifact.by) == (
        1,
        "team/api",
        str(tree.digest),
        "builder",
    )
    files = [entry for page in tree.pages for entry in page.entries if entry.type is EntryType.FILE]
    assert (artifact.files, artifact.size_bytes) == (len(files), sum(entry.size for entry in files))


def test_missing_tells_chunks_and_pages_apart(content: Content) -> None:
    """The bitmap decides what a client sends: a wrong bit costs bandwidth, or the push."""
    tree = build_tree(some_files(40))
    pages: list[bytes] = [page.ref.digest for page in tree.pages]
    chunks: list[bytes] = list(tree.chunks)
    assert missing(content, ObjectKind.CHUNK, chunks) == [True] * len(chunks)
    assert missing(content, ObjectKind.PAGE, pages) == [True] * len(pages)
    content.push(tree)
    assert missing(content, ObjectKind.CHUNK, [*chunks, bytes(32)]) == [False] * len(chunks) + [True]
    assert missing(content, ObjectKind.PAGE, [bytes(32), *pages]) == [True] + [False] * len(pages)


def test_a_page_is_missing_until_it_is_proven(content: Content) -> None:
    """Someone else's unfinished push must not be relied on: its layout may be wrong."""
    tree = build_tree(some_files(40))
    content.send(new_push(), encode_packs(tree.objects()))
    assert missing(content, ObjectKind.CHUNK, list(tree.chunks)) == [False] * len(tree.chunks)
    assert missing(content, ObjectKind.PAGE, [tree.pages[0].ref.digest]) == [True]


def test_an_unchanged_push_sends_nothing(content: Content) -> None:
    """The second push of the same tree finds all present and commits without a pack."""
    tree = build_tree(some_files())
    content.push(tree, "a")
    push = new_push()
    pages: list[bytes] = [page.ref.digest for page in tree.pages]
    assert not any(decode_bitmap(content.pushes.missing(push, ObjectKind.PAGE, b"".join(pages)), len(pages)))
    proof = content.pushes.prove(push, tree.request("b"))
    assert not isinstance(proof, Artifact)
    assert proof.read_bytes == 0
    assert proof.layouts == []
    assert content.pushes.record(content.pushes.remember(proof), by="x").number == 2


def test_only_what_changed_is_proven(content: Content) -> None:
    """A small change to a large tree must not cost a proof of all of it."""
    files = some_files(3000)
    content.push(build_tree(files))
    changed = build_tree({**files, b"dir3/f3": b"changed"})
    push = new_push()
    content.pushes.missing(push, ObjectKind.PAGE, b"")
    content.send(push, encode_packs(changed.objects()))
    proof = content.pushes.prove(push, changed.request())
    assert not isinstance(proof, Artifact)
    assert 0 < proof.read_bytes < 4_000_000
    assert (len(proof.keys), len(proof.tree_keys)) == (1, 1)


def test_empty_trees_and_files(content: Content) -> None:
    """The smallest things that can be pushed."""
    nothing: Files = {}
    assert content.push(build_tree(nothing)).files == 0
    assert content.push(build_tree({b"a": b""})).files == 1
    assert content.push(build_blob(b"")).size_bytes == 0


def test_blobs(content: Content) -> None:
    """A blob goes the same way; the same bytes as a tree's file are stored once."""
    data = random.Random(3).randbytes(900_000)
    content.push(build_tree({b"f": data}))
    packs = len(content.store.list(limit=100))
    blob = build_blob(data)
    assert missing(content, ObjectKind.CHUNK, list(blob.chunks)) == [False] * len(blob.chunks)
    assert content.push(blob, "tool").size_bytes == 900_000
    assert len(content.store.list(limit=100)) > packs


# --- requests that are wrong -----------------------------------------------------------------------------------------


def test_ids_that_are_not_whole(content: Content) -> None:
    """A truncated request must not be answered for other ids."""
    with pytest.raises(InvalidInput, match="32"):
        content.pushes.missing(new_push(), ObjectKind.CHUNK, bytes(33))
    with pytest.raises(TooLarge):
        content.pushes.missing(new_push(), ObjectKind.CHUNK, bytes(32 * (MISSING_IDS_MAX + 1)))
    with pytest.raises(InvalidInput):
        content.pushes.missing(new_push(), ObjectKind.LAYOUT, bytes(32))
    assert content.pushes.missing(new_push(), ObjectKind.CHUNK, b"") == b""


def test_names_and_labels_are_checked(content: Content) -> None:
    """Names appear in URLs and lists: only good ones are recorded."""
    tree = build_tree({b"a": b"1"})
    with pytest.raises(InvalidName):
        content.push(tree, "../etc")
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    request = CommitRequest(kind="tree", digest=str(tree.digest), labels=[Label("k", "v"), Label("k", "v")])
    with pytest.raises(MalformedDocument):
        content.pushes.prove(push, request)


# --- commits that must fail ------------------------------------------------------------------------------------------


def test_missing_chunks_are_named(content: Content) -> None:
    """The client learns what to send; no artifact appears."""
    tree = build_tree(some_files())
    gone = sorted(tree.chunks)[:2]
    objects = [item for item in tree.objects() if item[1] not in gone]
    with pytest.raises(SnapshotIncomplete) as caught:
        commit_objects(content, objects, tree.request())
    assert sorted(caught.value.missing or []) == [str(chunk) for chunk in gone]
    assert caught.value.missing_count == 2
    assert content.artifacts.list().artifacts == []


def test_at_most_twenty_are_named_and_all_are_counted() -> None:
    """The answer stays small however much is missing."""
    content = Content()
    source = random.Random(9)
    tree = build_tree({b"f%d" % n: source.randbytes(66_000) for n in range(40)})
    objects = [item for item in tree.objects() if item[0] is not ObjectKind.CHUNK]
    with pytest.raises(SnapshotIncomplete) as caught:
        commit_objects(content, objects, tree.request())
    assert (len(caught.value.missing or []), caught.value.missing_count) == (20, 40)


@pytest.mark.parametrize("kind", [ObjectKind.PAGE, ObjectKind.LAYOUT, ObjectKind.ROOT])
def test_a_missing_page_layout_or_root_is_named(content: Content, kind: ObjectKind) -> None:
    """A tree without one of its parts is not a tree."""
    tree = build_tree(some_files(30))
    objects = [item for item in tree.objects() if item[0] is not kind]
    with pytest.raises(SnapshotIncomplete) as caught:
        commit_objects(content, objects, tree.request())
    wanted = tree.digest if kind is ObjectKind.ROOT else tree.pages[0].ref.digest
    assert caught.value.missing == [str(wanted)]


def hostile_tree(entries: list[TreeEntry]) -> tuple[CommitRequest, list[tuple[ObjectKind, bytes, bytes]]]:
    """A tree whose bytes an honest encoder would refuse to make."""
    page = PAGE_MAGIC + b"".join(encode_entry(entry) for entry in entries)
    ref = PageRef(page_digest(page), len(entries), len(page), 0, b"")
    root = encode_root([ref])
    objects: list[tuple[ObjectKind, bytes, bytes]] = [
        (ObjectKind.PAGE, ref.digest, page),
        (ObjectKind.LAYOUT, ref.digest, encode_layout(Layout([], []))),
        (ObjectKind.ROOT, tree_digest(root), root),
    ]
    return CommitRequest(kind="tree", digest=str(tree_digest(root))), objects


TOP = TreeEntry(b"", EntryType.DIRECTORY, 0o755)


@pytest.mark.parametrize(
    "entries",
    [
        [TOP, TreeEntry(b"..", EntryType.DIRECTORY, 0o755)],
        [TOP, TreeEntry(b"/etc", EntryType.DIRECTORY, 0o755)],
        [TOP, TreeEntry(b"a", EntryType.LINK, 0, target=b"/"), TreeEntry(b"a/b", EntryType.DIRECTORY, 0o755)],
        [TOP, TreeEntry(b"b", EntryType.DIRECTORY, 0o755), TreeEntry(b"a", EntryType.DIRECTORY, 0o755)],
        [TOP, TreeEntry(b"a", EntryType.DIRECTORY, 0o755), TreeEntry(b"a", EntryType.DIRECTORY, 0o755)],
        [TOP, TreeEntry(b"a/b", EntryType.DIRECTORY, 0o755)],
        [TOP, TreeEntry(b"a/./b", EntryType.DIRECTORY, 0o755)],
    ],
)
def test_hostile_trees_are_refused(content: Content, entries: list[TreeEntry]) -> None:
    """A tree that would write outside its directory when it is restored must never get in."""
    request, objects = hostile_tree(entries)
    with pytest.raises(HostileTree):
        commit_objects(content, objects, request)
    assert content.artifacts.list().artifacts == []


def relabelled(tree: BuiltTree, layout: Layout) -> list[tuple[ObjectKind, bytes, bytes]]:
    [page] = tree.pages
    return [
        (kind, id, encode_layout(layout) if kind is ObjectKind.LAYOUT else plain)
        for kind, id, plain in tree.objects()
        if not (kind is ObjectKind.LAYOUT and id != page.ref.digest)
    ]


def test_a_layout_that_makes_other_bytes_is_refused_and_harms_nobody(content: Content) -> None:
    """A wrong layout must fail its own push, and must not stand in the way of the right one."""
    tree = build_tree({b"a": b"11", b"b": b"22"})
    [(id, plain)] = tree.chunks.items()
    wrong = Layout([(id, len(plain))], [[Extent(0, 2, 2)], [Extent(0, 0, 2)]])
    with pytest.raises(DigestMismatch, match="'a'"):
        commit_objects(content, relabelled(tree, wrong), tree.request())
    assert content.artifacts.list().artifacts == []
    # ... and now the honest push of the same page.
    content.push(tree)
    page = tree.pages[0].ref.digest
    assert content.trees.page_record(page).layout == tree.layouts[page]


def test_a_layout_that_does_not_fit_its_page_is_refused(content: Content) -> None:
    """Rows and sizes must agree with the page before anything is hashed."""
    tree = build_tree({b"a": b"11", b"b": b"22"})
    [(id, plain)] = tree.chunks.items()
    with pytest.raises(MalformedDocument):
        commit_objects(content, relabelled(tree, Layout([(id, len(plain))], [[Extent(0, 0, 4)]])), tree.request())


def test_a_layout_that_lies_about_a_chunks_length_is_refused(content: Content) -> None:
    """Lengths are held against what is stored, not believed."""
    tree = build_tree({b"a": b"11", b"b": b"22"})
    [(id, plain)] = tree.chunks.items()
    lie = Layout([(id, len(plain) + 1)], [[Extent(0, 0, 2)], [Extent(0, 2, 2)]])
    with pytest.raises(MalformedDocument, match="5 bytes"):
        commit_objects(content, relabelled(tree, lie), tree.request())


def test_a_large_file_of_the_wrong_chunks_is_refused(content: Content) -> None:
    """Chunks in the wrong order are all genuine, and the file is not."""
    tree = build_tree({b"large": random.Random(4).randbytes(900_000)})
    chunks = [(ChunkId(id), len(plain)) for id, plain in reversed(tree.chunks.items())]
    assert len(chunks) > 1
    swapped = Layout(chunks, [[Extent(n, 0, length) for n, (_, length) in enumerate(chunks)]])
    with pytest.raises(DigestMismatch, match="large"):
        commit_objects(content, relabelled(tree, swapped), tree.request())


def test_a_file_that_claims_another_whole_chunk_is_refused(content: Content) -> None:
    """The shortcut for whole chunks compares the digest too."""
    good, other = b"g" * 66_000, b"o" * 66_000
    tree = build_tree({b"f": good})
    id = ChunkId(blake3_256(other))
    objects = relabelled(tree, Layout([(id, len(other))], [[Extent(0, 0, len(other))]]))
    with pytest.raises(DigestMismatch):
        commit_objects(content, [*objects, (ObjectKind.CHUNK, id, other)], tree.request())


def test_a_page_does_not_pass_for_a_blob(content: Content) -> None:
    """A page's digest names a proven layout; that is no proof of a blob."""
    tree = build_tree({b"a": b"11"})
    content.push(tree)
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    with pytest.raises(InvalidInput):
        content.pushes.commit(push, CommitRequest(kind="blob", digest=str(tree.pages[0].ref.digest)), by="x")


def test_a_blob_that_is_not_its_digest_is_refused(content: Content) -> None:
    """The digest of a blob is proven, not believed."""
    blob = build_blob(random.Random(8).randbytes(500_000))
    digest = BlobDigest(bytes(32))
    objects = [(kind, bytes(digest) if kind is ObjectKind.LAYOUT else id, plain) for kind, id, plain in blob.objects()]
    with pytest.raises(DigestMismatch):
        commit_objects(content, objects, CommitRequest(kind="blob", digest=str(digest)))


def test_damage_in_the_store_shows_in_the_proof(content: Content) -> None:
    """A disk that lost a bit between upload and commit: no artifact."""
    tree = build_tree({b"large": random.Random(4).randbytes(900_000)})
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    content.send(push, encode_packs(tree.objects()))
    [pack] = content.store.list(limit=10)
    flip_bit(content.store, pack, 1000)
    with pytest.raises(DamagedObject, match=str(pack)):
        content.pushes.commit(push, tree.request(), by="x")
