"""An index made anew from packs alone is as good as the one that was lost."""

from __future__ import annotations

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore.admin import create_store, fsck_directory, rebuild_index
from casstore.clock import ManualClock
from casstore.engine.rebuild import IndexRebuild
from casstore.errors import CasstoreError, NotInitialised, StoreBusy
from casstore.formats.layout import LayoutBuilder
from casstore.formats.pack import FRAME_HEADER_BYTES, ObjectKind
from casstore.formats.snapshot import Component, Snapshot, encode_snapshot
from casstore.ids import ChunkId, ComponentName, PackId, TreeDigest
from casstore.storage.memory import MemoryChunkIndex
from casstore.wire import RebuildReport
from tests.support.treebuild import (
    Content,
    build_blob,
    build_tree,
    check,
    encode_packs,
    flip_bit,
    missing,
    new_push,
    open_local,
    some_files,
)


def rebuild(content: Content, **how: object) -> tuple[Content, RebuildReport]:
    """The same packs and ledger with a new index."""
    index = MemoryChunkIndex()
    report = IndexRebuild(content.store, index, **how).run()  # type: ignore[arg-type]
    return Content(content.store, index, content.ledger, content.clock), report


def live(content: Content) -> dict[tuple[ObjectKind, bytes], bytes]:
    return {
        (kind, id): content.packs.read_object(kind, id)
        for kind in ObjectKind
        for id, _ in content.index.objects(kind, limit=100_000)
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seeds=st.lists(st.integers(0, 5), min_size=1, max_size=4), blobs=st.lists(st.integers(0, 200_000), max_size=3))
def test_whatever_was_pushed_is_found_again(seeds: list[int], blobs: list[int]) -> None:
    """The same answers to *what is missing*, the same objects, and everything that fsck asks."""
    content = Content()
    for seed in seeds:
        tree = build_tree(some_files(seed * 30, seed=seed))
        content.push(tree, f"t{seed}")
        document = Snapshot(components=(Component(ComponentName("app"), "tree", tree.digest),))
        content.snapshots.put([encode_snapshot(document)])
    for size in blobs:
        content.push(build_blob(random.Random(size).randbytes(size)), "blob")
    rebuilt, report = rebuild(content)
    assert live(rebuilt) == live(content)
    assert check(rebuilt, full=True).ok
    assert report.findings == []
    assert report.trees == len(set(seeds))
    for kind in (ObjectKind.CHUNK, ObjectKind.PAGE):
        ids = [id for id, _ in content.index.objects(kind, limit=10_000)]
        assert missing(rebuilt, kind, ids) == missing(content, kind, ids)


def test_threads_make_the_same_index() -> None:
    content = Content()
    for seed in range(5):
        content.push(build_tree(some_files(seed=seed)))
    told: list[str] = []
    with ThreadPoolExecutor(3) as pool:
        rebuilt, _ = rebuild(content, pool=pool, width=3, progress=lambda progress: told.append(progress.round))
    assert live(rebuilt) == live(content)
    assert set(told) == {"packs", "layouts", "trees"}


def test_a_layout_that_no_commit_proved_is_proven_or_left_out() -> None:
    """Whoever may push may send any layout in a pack: it must not become the one that others are given."""
    content = Content()
    tree = build_tree({b"a": b"first", b"b": b"other"})
    honest = tree.layouts[tree.pages[0].ref.digest]
    builder = LayoutBuilder()
    chunk, plain = next(iter(tree.chunks.items()))
    builder.add_file([(ChunkId(chunk), len(plain), 5, 5)])
    builder.add_file([(ChunkId(chunk), len(plain), 0, 5)])
    page = tree.pages[0].ref.digest
    liar = [
        item if item[0] is not ObjectKind.LAYOUT else (item[0], item[1], builder.encode()) for item in tree.objects()
    ]
    content.pushes.missing(new_push(), ObjectKind.CHUNK, b"")
    # The lie lies in the pack that comes first.
    content.send(new_push(), encode_packs(liar, pack=PackId(bytes(16))))
    rebuilt, report = rebuild(content)
    assert not rebuilt.index.has(ObjectKind.LAYOUT, [page])[0]
    assert (report.pages, report.trees) == (0, 0)
    assert [finding.code for finding in report.findings] == ["incomplete-tree"]
    content.push(tree)
    rebuilt, report = rebuild(content)
    assert rebuilt.packs.read_object(ObjectKind.LAYOUT, page) == honest
    assert (report.pages, report.trees) == (1, 1)


def test_a_damaged_frame_is_left_out_and_another_copy_of_it_counts() -> None:
    content = Content()
    tree = build_tree(some_files())
    content.push(tree)
    chunk = next(iter(tree.chunks))
    location = content.index.locate(ObjectKind.CHUNK, [chunk])[0]
    assert location is not None
    flip_bit(content.store, location.pack, location.offset + FRAME_HEADER_BYTES)
    rebuilt, report = rebuild(content)
    assert missing(rebuilt, ObjectKind.CHUNK, [chunk]) == [True]
    assert [(f.severity, f.code) for f in report.findings if f.code != "incomplete-tree"] == [
        ("error", "damaged-object")
    ]
    rebuilt.push(tree)
    rebuilt, report = rebuild(content)
    assert [(f.severity, f.code) for f in report.findings] == [("notice", "dead-frame")]
    assert rebuilt.packs.read_object(ObjectKind.CHUNK, chunk) == tree.chunks[chunk]
    assert check(rebuilt).ok


@pytest.mark.parametrize("end", ["header", "footer", "both", "frame and footer"])
def test_a_pack_without_its_footer_is_read_frame_by_frame(end: str) -> None:
    content = Content()
    tree = build_tree(some_files())
    content.push(tree)
    before = live(content)
    root = content.index.locate(ObjectKind.ROOT, [tree.digest])[0]
    assert root is not None
    chunk = next(iter(tree.chunks))
    if end in ("header", "both"):
        flip_bit(content.store, root.pack, 3)
    if "footer" in end or end == "both":
        flip_bit(content.store, root.pack, content.store.size(root.pack) - 60)
    lost: set[tuple[ObjectKind, bytes]] = set()
    if end == "frame and footer":
        location = content.index.locate(ObjectKind.CHUNK, [chunk])[0]
        assert location is not None
        flip_bit(content.store, root.pack, location.offset + 5)
        lost = {(ObjectKind.CHUNK, chunk)}
    rebuilt, _ = rebuild(content)
    found = live(rebuilt)
    assert found.items() <= before.items()
    missed = {key for key in before.keys() - found.keys() if key[0] is not ObjectKind.LAYOUT}
    assert missed == lost


# --- on a disk -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, TreeDigest]:
    directory = tmp_path / "store"
    create_store(directory, clock=ManualClock())
    content, close = open_local(directory)
    tree = build_tree(some_files())
    content.push(tree, "app")
    close()
    return directory, tree.digest


@pytest.mark.parametrize("state", ["whole", "missing", "empty", "garbage", "a file", "zeros"])
def test_the_index_may_be_in_any_state(store: tuple[Path, TreeDigest], state: str) -> None:
    directory, tree = store
    index = directory / "index"
    if state in ("missing", "empty", "a file"):
        shutil.rmtree(index)
    if state == "empty":
        index.mkdir()
    if state == "a file":
        index.write_bytes(b"what is this")
    if state == "garbage":
        (index / "data.mdb").write_bytes(random.Random(1).randbytes(100_000))
    if state == "zeros":
        (index / "data.mdb").write_bytes(bytes(100_000))
    if state != "whole":
        before = fsck_directory(directory)
        assert not before.ok
    report = rebuild_index(directory)
    assert report.trees == 1
    assert fsck_directory(directory, full=True).ok
    content, close = open_local(directory)
    assert content.trees.root(tree)
    close()
    assert not [name for name in directory.iterdir() if name.name.startswith("index.")]


def test_what_is_wrong_with_an_index_names_the_remedy(store: tuple[Path, TreeDigest]) -> None:
    directory, _ = store
    shutil.rmtree(directory / "index")
    with pytest.raises(NotInitialised) as caught:
        open_local(directory)
    assert "--rebuild-index" in str(caught.value.hint)


def test_not_beside_a_server(store: tuple[Path, TreeDigest]) -> None:
    directory, _ = store
    _, close = open_local(directory)
    with pytest.raises(StoreBusy):
        rebuild_index(directory)
    close()
    with pytest.raises(CasstoreError):
        rebuild_index(directory.parent / "nowhere")
