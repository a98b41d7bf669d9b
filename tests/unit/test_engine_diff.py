"""What differs between two trees or snapshots: all of it, and only that."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import InvalidDigest, InvalidInput, NotFound
from casstore.formats.snapshot import Component, Snapshot, encode_snapshot
from casstore.ids import ComponentName
from casstore.wire import DiffFile
from tests.support.treebuild import BuiltTree, Content, Directory, File, Link, build_blob, build_tree

Items = dict[bytes, bytes | File | Link | Directory]


def compare(a: Items, b: Items, limit: int = 1000) -> tuple[list[DiffFile], bool]:
    content = Content()
    trees = [build_tree(files) for files in (a, b)]
    for tree in trees:
        content.push(tree)
    return content.diff.trees(trees[0].digest, trees[1].digest, limit=limit)


def summary(files: list[DiffFile]) -> list[tuple[str, str | None, list[str]]]:
    return [(file.change, file.path or file.path_b64, file.what) for file in files]


def test_every_kind_of_change() -> None:
    """The words that a person reads before a deploy."""
    before: Items = {
        b"gone": b"1",
        b"mode": File(b"2", 0o644),
        b"content": b"3",
        b"link": Link(b"a"),
        b"kind": b"4",
        b"same": b"5",
        b"\xff": b"6",
    }
    after: Items = {
        b"new/file": b"1",
        b"mode": File(b"2", 0o755),
        b"content": File(b"33", 0o755),
        b"link": Link(b"b"),
        b"kind": Link(b"x"),
        b"same": b"5",
        b"\xff": b"7",
    }
    files, truncated = compare(before, after)
    assert not truncated
    assert summary(files) == [
        ("changed", "content", ["content", "mode"]),
        ("removed", "gone", []),
        ("changed", "kind", ["type"]),
        ("changed", "link", ["target"]),
        ("changed", "mode", ["mode"]),
        ("added", "new", []),
        ("added", "new/file", []),
        ("changed", "/w==", ["content"]),
    ]
    assert (files[0].from_size, files[0].to_size) == (1, 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 1200), st.integers(0, 30))
def test_a_diff_is_what_a_comparison_of_all_entries_says(seed: int, count: int, changes: int) -> None:
    """Skipping shared pages must skip nothing else, wherever pages are cut."""
    source = random.Random(seed)
    before: Items = {b"f%d" % n: b"%d" % n for n in range(count)}
    after = dict(before)
    for _ in range(changes):
        path = b"f%d" % source.randrange(2000)
        if source.random() < 0.5:
            after.pop(path, None)
        else:
            after[path] = b"changed %d" % source.randrange(2)
    files, _ = compare(before, after, limit=5000)
    expected = [
        ("added" if path not in before else "removed" if path not in after else "changed", path.decode())
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
    assert [(file.change, file.path) for file in files] == expected


def test_an_answer_is_bounded() -> None:
    """Two trees that share nothing: a bounded list that says that it is not all."""
    files, truncated = compare({}, {b"%d" % n: b"" for n in range(50)}, limit=10)
    assert (len(files), truncated) == (10, True)
    files, truncated = compare({}, {b"%d" % n: b"" for n in range(10)}, limit=10)
    assert (len(files), truncated) == (10, False)


def snapshot(**parts: BuiltTree) -> bytes:
    components = [Component(ComponentName(name), "tree", tree.digest) for name, tree in parts.items()]
    return encode_snapshot(Snapshot(components=tuple(components)))


def test_snapshots_are_compared_component_by_component() -> None:
    """Which component brought the change is the first question after a bad deploy."""
    content = Content()
    one, two, three = (build_tree({b"f": bytes([n]), b"g": b""}) for n in range(3))
    for tree in (one, two, three):
        content.push(tree)
    a, b = content.snapshots.put([snapshot(api=one, web=one, old=three), snapshot(api=two, web=one, new=three)])
    diff = content.diff.diff(str(a), str(b))
    assert [(part.name, part.change) for part in diff.components] == [
        ("api", "changed"),
        ("new", "added"),
        ("old", "removed"),
    ]
    assert [file.path for file in diff.components[0].files] == ["f"]
    assert (diff.components[0].from_, diff.components[0].to) == (str(one.digest), str(two.digest))
    assert content.diff.diff(str(a), str(a)).components == []


def test_trees_are_compared_directly() -> None:
    """Without a snapshot around them."""
    content = Content()
    one, two = build_tree({b"f": b"1"}), build_tree({b"f": b"2"})
    content.push(one)
    content.push(two)
    [part] = content.diff.diff(str(one.digest), str(two.digest)).components
    assert [file.path for file in part.files] == ["f"]
    assert content.diff.diff(str(one.digest), str(one.digest)).components == []


def test_what_cannot_be_compared() -> None:
    """A tree with a snapshot, a blob, something unknown."""
    content = Content()
    tree, blob = build_tree({b"f": b"1"}), build_blob(b"1")
    content.push(tree)
    content.push(blob)
    [document] = content.snapshots.put([snapshot(api=tree)])
    with pytest.raises(InvalidInput):
        content.diff.diff(str(tree.digest), str(document))
    with pytest.raises(NotFound):
        content.diff.diff(str(tree.digest), str(blob.digest))
    with pytest.raises(InvalidDigest):
        content.diff.diff("x", str(tree.digest))
    with pytest.raises(InvalidInput):
        content.diff.diff(str(tree.digest), str(tree.digest), limit=0)
