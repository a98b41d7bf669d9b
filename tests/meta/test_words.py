"""The words layer: identifiers have one spelling each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore import ids
from casstore.errors import InvalidDigest, InvalidName

BINARY = [
    ids.ChunkId,
    ids.BlobDigest,
    ids.PageDigest,
    ids.TreeDigest,
    ids.SnapshotDigest,
    ids.PackId,
    ids.PushId,
    ids.IntentId,
]


@pytest.mark.parametrize("kind", BINARY)
@given(data=st.data())
def test_binary_ids_round_trip(kind: type[ids._BinaryId], data: st.DataObject) -> None:
    value = kind(data.draw(st.binary(min_size=kind.SIZE, max_size=kind.SIZE)))
    assert kind.parse(str(value)) == value
    for other in (
        str(value).upper(),
        str(value) + "\n",
        " " + str(value),
        str(value)[:-1],
        value.hex() if kind.PREFIX else "blake3:" + value.hex(),
    ):
        if other != str(value):
            with pytest.raises(InvalidDigest):
                kind.parse(other)


@pytest.mark.parametrize("name", ["prod", "prod/api", "a/b/c/d", "0", "a" * 63, "prod/api.v2_x-y"])
def test_pointer_names(name: str) -> None:
    assert ids.PointerName.parse(name) == name


@pytest.mark.parametrize(
    "name", ["", "/", "prod/", "/prod", "a//b", "a/b/c/d/e", "Prod", "a" * 64, "-a", ".", "..", "a/..", "a\n", "prod/é"]
)
def test_refused_pointer_names(name: str) -> None:
    with pytest.raises(InvalidName):
        ids.PointerName.parse(name)
