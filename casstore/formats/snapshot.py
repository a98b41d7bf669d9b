"""Snapshots: the immutable description of an environment, component by component.

A snapshot document is canonical JSON: components (name → tree or blob), labels, metadata, paths that a host may change,
parents.  It says what an environment consists of, not when or by whom it was made: the same environment has the same
digest whoever describes it.  Time and author stand in the log entry that publishes it.

Invariants of every snapshot that encodes or decodes: every array is sorted and distinct (components by name, so a name
is there once); at most ``SNAPSHOT_COMPONENTS_MAX`` components in ``SNAPSHOT_SIZE_MAX_BYTES``; one spelling.

Source: docs/formats/snapshot.md
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar

from casstore.errors import InvalidInput, MalformedDocument, TooLarge
from casstore.formats.canonical import decode_canonical, encode_canonical
from casstore.hashing import CONTEXT_SNAPSHOT, derive
from casstore.ids import BlobDigest, ComponentName, SnapshotDigest, TreeDigest
from casstore.limits import SNAPSHOT_COMPONENTS_MAX, SNAPSHOT_SIZE_MAX_BYTES

LABELS_MAX: Final = 256
LABEL_VALUE_MAX_BYTES: Final = 1024
MUTABLE_PATHS_MAX: Final = 1024
PARENTS_MAX: Final = 32
_LABEL_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}\Z")
_FIELDS: Final = frozenset(("components", "labels", "metadata", "mutable", "parents", "v"))


class Component(NamedTuple):
    """One part of an environment: a directory tree or a single blob, under a name."""

    name: ComponentName
    kind: Literal["tree", "blob"]
    digest: TreeDigest | BlobDigest


class Label(NamedTuple):
    """A fact for people and queries; a key may have several values."""

    k: str
    v: str


class Snapshot(NamedTuple):
    """An environment.

    ``metadata`` is any canonical JSON object (keys ``[a-z0-9_]+``, no fractions).  ``mutable`` are paths, relative to
    the environment's root, that a host may change without it being drift; one that ends with ``/`` stands for all below
    it.
    """

    components: tuple[Component, ...] = ()
    labels: tuple[Label, ...] = ()
    metadata: Mapping[str, Any] = {}
    mutable: tuple[str, ...] = ()
    parents: tuple[SnapshotDigest, ...] = ()


def verify_label(label: tuple[str, str]) -> None:
    """Hold a label (key, value) against the rules; artifacts' labels keep the same ones.

    Raises:
        MalformedDocument: a key that is not ``[A-Za-z0-9][A-Za-z0-9._/-]{0,62}``, or a value above
            ``LABEL_VALUE_MAX_BYTES`` of UTF-8, with a control character or a lone surrogate.
    """
    key, value = label
    if not _LABEL_KEY.match(key):
        raise MalformedDocument(f"{key[:100]!r} is not a label's key: [A-Za-z0-9][A-Za-z0-9._/-]{{0,62}}")
    _verify_text(value, f"the value of the label {key!r}", LABEL_VALUE_MAX_BYTES)


def _verify_text(text: str, what: str, limit: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise MalformedDocument(f"{what} holds a lone surrogate") from error
    if size > limit or any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise MalformedDocument(f"{what} is above {limit} bytes or holds a control character")


def _verify_mutable(path: str) -> None:
    _verify_text(path, "a mutable path", 4096)
    if any(part in ("", ".", "..") for part in path.removesuffix("/").split("/")):
        raise MalformedDocument(f"{path[:200]!r} is not a mutable path: a component is empty, '.' or '..'")


_Item = TypeVar("_Item")


def _sorted(what: str, items: Sequence[_Item], key: Callable[[_Item], Any], limit: int) -> list[_Item]:
    if len(items) > limit:
        raise MalformedDocument(f"a snapshot has at most {limit} {what}, this one {len(items)}")
    ordered = sorted(items, key=key)
    if len({key(item) for item in ordered}) != len(ordered):
        raise MalformedDocument(f"a snapshot lists the same twice in its {what}")
    return ordered


def snapshot_digest(data: bytes) -> SnapshotDigest:
    """Identity of a snapshot document's bytes."""
    return SnapshotDigest(derive(CONTEXT_SNAPSHOT, data))


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """The document; arrays come out sorted whatever order they are given in.

    Raises:
        InvalidName: a component's name.
        MalformedDocument: something twice in one array, too much of something, or a value that has no place in a
            snapshot.
        TooLarge: above ``SNAPSHOT_SIZE_MAX_BYTES``.
    """
    for component in snapshot.components:
        ComponentName.parse(component.name)
        if not isinstance(component.digest, {"tree": TreeDigest, "blob": BlobDigest}.get(component.kind, ())):
            raise MalformedDocument(
                f"the component {component.name} is called a {component.kind}: its digest says otherwise"
            )
    for label in snapshot.labels:
        verify_label(label)
    for path in snapshot.mutable:
        _verify_mutable(path)
    if not isinstance(snapshot.metadata, dict):
        raise MalformedDocument("a snapshot's metadata is not an object")
    components = _sorted("components", snapshot.components, lambda item: item.name, SNAPSHOT_COMPONENTS_MAX)
    labels = _sorted("labels", snapshot.labels, lambda item: (item.k, item.v), LABELS_MAX)
    document = {
        "components": [{"digest": str(digest), "kind": kind, "name": name} for name, kind, digest in components],
        "labels": [{"k": k, "v": v} for k, v in labels],
        "metadata": snapshot.metadata,
        "mutable": _sorted("mutable paths", snapshot.mutable, str, MUTABLE_PATHS_MAX),
        "parents": [str(digest) for digest in _sorted("parents", snapshot.parents, bytes, PARENTS_MAX)],
        "v": 1,
    }
    data = encode_canonical(document)
    if len(data) > SNAPSHOT_SIZE_MAX_BYTES:
        limit = SNAPSHOT_SIZE_MAX_BYTES
        raise TooLarge(f"a snapshot has at most {limit} bytes, this one {len(data)}", limit=limit)
    return data


def decode_snapshot(data: bytes) -> Snapshot:
    """Undo :func:`encode_snapshot`; what it returns encodes to the same bytes.

    Raises:
        MalformedDocument: any other bytes; the message says which rule is broken.
        TooLarge: above ``SNAPSHOT_SIZE_MAX_BYTES``.
    """
    document = decode_canonical(data, max_bytes=SNAPSHOT_SIZE_MAX_BYTES)
    if not isinstance(document, dict) or document.keys() != _FIELDS:
        raise MalformedDocument(f"a snapshot is an object with the fields {', '.join(sorted(_FIELDS))}")
    # bool is an int, and True == 1: the type is asked for as well.
    if type(document["v"]) is not int or document["v"] != 1:
        raise MalformedDocument("a snapshot of another version than 1")
    if not isinstance(document["metadata"], dict):
        raise MalformedDocument("a snapshot's metadata is not an object")
    try:
        snapshot = Snapshot(
            components=tuple(_read_component(item) for item in _read_array(document, "components")),
            labels=tuple(Label(*_read_strings(item, ("k", "v"))) for item in _read_array(document, "labels")),
            metadata=document["metadata"],
            mutable=tuple(_read_string(item) for item in _read_array(document, "mutable")),
            parents=tuple(SnapshotDigest.parse(_read_string(item)) for item in _read_array(document, "parents")),
        )
    except MalformedDocument:
        raise
    except InvalidInput as error:  # a name or digest that does not parse
        raise MalformedDocument(f"not a snapshot: {error.detail}") from error
    if encode_snapshot(snapshot) != data:
        raise MalformedDocument("an array of a snapshot is not sorted")
    return snapshot


def _read_array(document: dict[str, Any], field: str) -> list[Any]:
    value = document[field]
    if not isinstance(value, list):
        raise MalformedDocument(f"a snapshot's {field} are not an array")
    return value


def _read_string(value: Any) -> str:
    if not isinstance(value, str):
        raise MalformedDocument("a snapshot has something else where a string belongs")
    return value


def _read_strings(value: Any, fields: tuple[str, ...]) -> list[str]:
    if not isinstance(value, dict) or tuple(sorted(value)) != fields:
        raise MalformedDocument(f"a snapshot has something else where an object with {', '.join(fields)} belongs")
    return [_read_string(value[field]) for field in fields]


def _read_component(value: Any) -> Component:
    digest, kind, name = _read_strings(value, ("digest", "kind", "name"))
    if kind == "tree":
        return Component(ComponentName.parse(name), "tree", TreeDigest.parse(digest))
    if kind == "blob":
        return Component(ComponentName.parse(name), "blob", BlobDigest.parse(digest))
    raise MalformedDocument(f"a component is a tree or a blob, not a {kind[:100]!r}")
