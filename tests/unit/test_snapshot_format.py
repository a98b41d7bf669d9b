"""Snapshot documents: one spelling for one environment, and nothing in it that a reader could take two ways."""

from __future__ import annotations

import json
from typing import Any

import pytest

from casstore.errors import CasstoreError, InvalidName, MalformedDocument, TooLarge
from casstore.formats.snapshot import (
    Component,
    Label,
    Snapshot,
    decode_snapshot,
    encode_snapshot,
    snapshot_digest,
    verify_label,
)
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, ComponentName, SnapshotDigest, TreeDigest
from casstore.limits import SNAPSHOT_COMPONENTS_MAX, SNAPSHOT_SIZE_MAX_BYTES

TREE = TreeDigest(b"\x11" * 32)
BLOB = BlobDigest(b"\x22" * 32)
FULL = Snapshot(
    components=(
        Component(ComponentName("api"), "tree", TREE),
        Component(ComponentName("config"), "blob", BLOB),
    ),
    labels=(Label("git.commit", "abc"), Label("team", "Größe"), Label("team", "sre")),
    metadata={"build": {"number": 7, "tags": ["a", None, True]}},
    mutable=("cache", "var/"),
    parents=(SnapshotDigest(b"\x01" * 32), SnapshotDigest(b"\x02" * 32)),
)


def document(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(encode_snapshot(FULL))
    value.update(changes)
    return {key: item for key, item in value.items() if item is not ...}


def spell(value: Any) -> bytes:
    """Canonical JSON without the code under test (all keys here are ASCII)."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def test_a_snapshot_comes_back_as_it_was() -> None:
    data = encode_snapshot(FULL)
    assert data == spell(document())
    assert decode_snapshot(data) == FULL
    assert isinstance(decode_snapshot(data).components[0].digest, TreeDigest)
    assert isinstance(decode_snapshot(data).components[1].digest, BlobDigest)


def test_the_document_of_nothing_says_all_its_fields() -> None:
    data = b'{"components":[],"labels":[],"metadata":{},"mutable":[],"parents":[],"v":1}'
    assert encode_snapshot(Snapshot()) == data
    assert decode_snapshot(data) == Snapshot()


def test_the_order_in_which_an_environment_is_described_does_not_matter() -> None:
    shuffled = Snapshot(FULL.components[::-1], FULL.labels[::-1], FULL.metadata, FULL.mutable[::-1], FULL.parents[::-1])
    assert encode_snapshot(shuffled) == encode_snapshot(FULL)


def test_a_snapshot_is_not_named_like_a_file_of_the_same_bytes() -> None:
    data = encode_snapshot(FULL)
    assert bytes(snapshot_digest(data)) != blake3_256(data)


BROKEN: dict[str, Any] = {
    "field missing": document(parents=...),
    "field too many": document(time="2026-01-01"),
    "version 2": document(v=2),
    "version true": document(v=True),
    "version text": document(v="1"),
    "components not sorted": document(components=document()["components"][::-1]),
    "component twice": document(components=document()["components"][:1] * 2),
    "component's name": document(components=[{"digest": str(TREE), "kind": "tree", "name": "../api"}]),
    "component's kind": document(components=[{"digest": str(TREE), "kind": "file", "name": "api"}]),
    "component's digest": document(components=[{"digest": TREE.hex(), "kind": "tree", "name": "api"}]),
    "component's digest in capitals": document(
        components=[{"digest": "blake3:" + "AB" * 32, "kind": "tree", "name": "api"}]
    ),
    "component's field missing": document(components=[{"digest": str(TREE), "kind": "tree"}]),
    "component's field too many": document(
        components=[{"digest": str(TREE), "kind": "tree", "name": "api", "size": "1"}]
    ),
    "component is text": document(components=["api"]),
    "components are an object": document(components={}),
    "labels not sorted": document(labels=[{"k": "b", "v": ""}, {"k": "a", "v": ""}]),
    "label twice": document(labels=[{"k": "a", "v": "1"}, {"k": "a", "v": "1"}]),
    "label's key": document(labels=[{"k": "", "v": "1"}]),
    "label's value is a number": document(labels=[{"k": "a", "v": 1}]),
    "label's value has a newline": document(labels=[{"k": "a", "v": "1\n2"}]),
    "metadata is a list": document(metadata=[]),
    "metadata has a fraction": document(metadata={"a": 1.5}),
    "metadata's key": document(metadata={"A b": 1}),
    "mutable not sorted": document(mutable=["b", "a"]),
    "mutable twice": document(mutable=["a", "a"]),
    "mutable absolute": document(mutable=["/var"]),
    "mutable dot-dot": document(mutable=["../var"]),
    "mutable is the root": document(mutable=[""]),
    "mutable with two slashes": document(mutable=["var//"]),
    "mutable is a number": document(mutable=[1]),
    "parents not sorted": document(parents=document()["parents"][::-1]),
    "parent twice": document(parents=document()["parents"][:1] * 2),
    "parent is no digest": document(parents=["prod/api"]),
    "a list": [],
    "null": None,
}


@pytest.mark.parametrize("value", BROKEN.values(), ids=BROKEN.keys())
def test_a_document_that_breaks_a_rule_is_refused(value: Any) -> None:
    with pytest.raises(MalformedDocument):
        decode_snapshot(spell(value))


def test_another_spelling_of_a_good_document_is_refused() -> None:
    """Else one environment would have many digests."""
    data = encode_snapshot(FULL)
    for other in (
        data + b"\n",
        b" " + data,
        data.replace(b'"v":1', b'"v":1.0'),
        data.replace(b'"v":1', b'"v":1,"v":1'),
        data.replace(b"api", b"\\u0061pi"),
        data.replace("ß".encode(), b"\\u00df"),
        json.dumps(json.loads(data)).encode(),
        data[:-1],
        b"",
        data.decode().encode("utf-16"),
        b"\xef\xbb\xbf" + data,
    ):
        with pytest.raises(MalformedDocument):
            decode_snapshot(other)


WRONG = [
    (FULL._replace(components=FULL.components[:1] * 2), MalformedDocument),
    (FULL._replace(components=(Component(ComponentName("Api"), "tree", TREE),)), InvalidName),
    (FULL._replace(components=(Component(ComponentName("api"), "blob", TREE),)), MalformedDocument),
    (FULL._replace(components=(Component(ComponentName("api"), "tree", BLOB),)), MalformedDocument),
    (FULL._replace(labels=(Label("a b", ""),)), MalformedDocument),
    (FULL._replace(labels=(Label("a", "\ud800"),)), MalformedDocument),
    (FULL._replace(labels=(Label("a", "x" * 1025),)), MalformedDocument),
    (FULL._replace(labels=tuple(Label("a", str(n)) for n in range(257))), MalformedDocument),
    (FULL._replace(mutable=("a/../b",)), MalformedDocument),
    (FULL._replace(parents=FULL.parents * 2), MalformedDocument),
    (FULL._replace(metadata={"a": 1.0}), MalformedDocument),
    (FULL._replace(metadata={"a": "x" * SNAPSHOT_SIZE_MAX_BYTES}), TooLarge),
]


@pytest.mark.parametrize(("snapshot", "error"), WRONG)
def test_what_would_not_decode_is_not_encoded(snapshot: Snapshot, error: type[CasstoreError]) -> None:
    with pytest.raises(error):
        encode_snapshot(snapshot)


def test_a_thousand_components_fit_and_more_do_not() -> None:
    many = tuple(
        Component(ComponentName(f"component-{n:05d}" + "x" * 46), "tree", TREE) for n in range(SNAPSHOT_COMPONENTS_MAX)
    )
    data = encode_snapshot(Snapshot(many))
    assert len(decode_snapshot(data).components) == SNAPSHOT_COMPONENTS_MAX
    with pytest.raises(MalformedDocument):
        encode_snapshot(Snapshot((*many, Component(ComponentName("z"), "tree", TREE))))
    with pytest.raises(TooLarge):
        decode_snapshot(b" " * (SNAPSHOT_SIZE_MAX_BYTES + 1))


def test_labels_are_held_against_the_same_rule_everywhere() -> None:
    verify_label(("team", "sre"))
    verify_label(Label("git.commit/short", ""))
    for label in (("", "x"), ("-a", "x"), ("a" * 64, "x"), ("a=b", "x"), ("a", "\x7f"), ("a\n", "x")):
        with pytest.raises(MalformedDocument):
            verify_label(label)
