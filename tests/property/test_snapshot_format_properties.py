"""Snapshot documents under Hypothesis: round trips, rubbish, and every byte changed."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import InvalidInput
from casstore.formats.canonical import encode_canonical
from casstore.formats.snapshot import Component, Label, Snapshot, decode_snapshot, encode_snapshot
from casstore.ids import BlobDigest, ComponentName, SnapshotDigest, TreeDigest

RAW = st.binary(min_size=32, max_size=32)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True).map(ComponentName)
COMPONENTS = st.one_of(
    st.builds(Component, NAMES, st.just("tree"), RAW.map(TreeDigest)),
    st.builds(Component, NAMES, st.just("blob"), RAW.map(BlobDigest)),
)
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)
LABELS = st.builds(Label, st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,10}", fullmatch=True), TEXT)
KEYS = st.from_regex(r"[a-z0-9_]{1,10}", fullmatch=True)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
PATHS = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=8).filter(
        lambda part: part not in (".", "..")
    ),
    min_size=1,
    max_size=3,
).map("/".join)
SNAPSHOTS = st.builds(
    Snapshot,
    components=st.lists(COMPONENTS, max_size=5, unique_by=lambda item: item.name).map(tuple),
    labels=st.lists(LABELS, max_size=4, unique=True).map(tuple),
    metadata=st.dictionaries(KEYS, VALUES, max_size=4),
    mutable=st.lists(st.one_of(PATHS, PATHS.map(lambda path: path + "/")), max_size=4, unique=True).map(tuple),
    parents=st.lists(RAW.map(SnapshotDigest), max_size=3, unique=True).map(tuple),
)


@settings(max_examples=200, deadline=None)
@given(SNAPSHOTS)
def test_any_snapshot_round_trips(snapshot: Snapshot) -> None:
    data = encode_snapshot(snapshot)
    back = decode_snapshot(data)
    assert encode_snapshot(back) == data
    assert back == Snapshot(
        tuple(sorted(snapshot.components, key=lambda item: item.name)),
        tuple(sorted(snapshot.labels)),
        snapshot.metadata,
        tuple(sorted(snapshot.mutable)),
        tuple(sorted(snapshot.parents)),
    )


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "ignore"))))
def test_rubbish_is_refused(data: bytes) -> None:
    try:
        snapshot = decode_snapshot(data)
    except InvalidInput:
        return
    assert encode_snapshot(snapshot) == data


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["components", "labels", "metadata", "mutable", "parents", "v"]), VALUES))
def test_json_of_another_shape_is_refused(document: dict[str, Any]) -> None:

    data = encode_canonical(
        {"components": [], "labels": [], "metadata": {}, "mutable": [], "parents": [], "v": 1} | document
    )
    try:
        snapshot = decode_snapshot(data)
    except InvalidInput:
        return
    assert encode_snapshot(snapshot) == data


def test_a_document_with_any_byte_changed_is_refused_or_is_another_document() -> None:
    data = encode_snapshot(
        Snapshot(
            components=(Component(ComponentName("api"), "tree", TreeDigest(bytes(32))),),
            labels=(Label("team", "sre"),),
            metadata={"build": 7},
            mutable=("var/",),
            parents=(SnapshotDigest(bytes(32)),),
        )
    )
    for at in range(len(data)):
        for value in (*range(0, 256, 5), *b'"\\{}[],:0123abc/.'):
            changed = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                snapshot = decode_snapshot(changed)
            except InvalidInput:
                continue
            assert encode_snapshot(snapshot) == changed
