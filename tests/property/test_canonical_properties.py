"""Canonical JSON against a general RFC 8785 encoder, and against every input."""

from __future__ import annotations

import json
from typing import Any

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from casstore.errors import CasstoreError
from casstore.formats.canonical import INTEGER_MAX, decode_b64, decode_canonical, encode_b64, encode_canonical

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
KEYS = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=6)
SCALARS = st.none() | st.booleans() | st.integers(-INTEGER_MAX, INTEGER_MAX) | TEXT
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)
FREE: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=10
)


@given(VALUES)
def test_the_fast_encoder_writes_what_rfc_8785_asks_for(value: Any) -> None:
    """The two must never differ, or foreign verifiers would hash other bytes than we do."""
    data = encode_canonical(value)
    assert data == rfc8785.dumps(value)
    assert decode_canonical(data, max_bytes=len(data)) == value


@given(FREE)
def test_free_keys_round_trip(value: Any) -> None:
    data = encode_canonical(value, keys_checked=False)
    assert decode_canonical(data, max_bytes=len(data), keys_checked=False) == value


@given(VALUES, st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_as_what_it_spells(value: Any, at: int, byte: int) -> None:
    data = bytearray(encode_canonical(value))
    data[at % len(data)] = byte
    try:
        read = decode_canonical(bytes(data), max_bytes=len(data))
    except CasstoreError:
        return
    assert encode_canonical(read) == bytes(data)


@given(VALUES, st.sampled_from([{"indent": 1}, {"ensure_ascii": True, "separators": (",", ":"), "sort_keys": True}]))
def test_other_json_writers_are_refused_or_agree(value: Any, style: dict[str, Any]) -> None:
    data = json.dumps(value, **style).encode()
    try:
        assert decode_canonical(data, max_bytes=len(data)) == value
    except CasstoreError:
        return
    assert data == encode_canonical(value)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_our_own_error(data: bytes) -> None:
    try:
        value = decode_canonical(data, max_bytes=200)
    except CasstoreError:
        return
    assert encode_canonical(value) == data


@given(st.binary(max_size=60), st.text(max_size=20))
def test_base64_round_trip(data: bytes, text: str) -> None:
    assert decode_b64(encode_b64(data)) == data
    try:
        assert encode_b64(decode_b64(text)) == text
    except CasstoreError:
        return
