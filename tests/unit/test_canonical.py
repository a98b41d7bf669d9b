"""Canonical JSON: a second spelling of a signed document would be a second document with the same meaning."""

from __future__ import annotations

from typing import Any

import pytest

from casstore.errors import MalformedDocument, TooLarge
from casstore.formats.canonical import INTEGER_MAX, decode_b64, decode_canonical, encode_b64, encode_canonical
from casstore.limits import JSON_DEPTH_MAX


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None, "x"]}, '{"a":[true,null,"x"],"b":1}'),
        ('\x00\x1f\b\f\n\r\t"\\/\x7f', '"\\u0000\\u001f\\b\\f\\n\\r\\t\\"\\\\/\x7f"'),
        ("é\u2028😀", '"é\u2028😀"'),
        ([INTEGER_MAX, -INTEGER_MAX, 0], "[9007199254740991,-9007199254740991,0]"),
        ({"a_1": {}, "0": [], "_": ()}, '{"0":[],"_":[],"a_1":{}}'),
    ],
)
def test_one_spelling(value: Any, text: str) -> None:
    """The examples of docs/formats/canonical.md."""
    assert encode_canonical(value) == text.encode()
    assert encode_canonical(decode_canonical(text.encode(), max_bytes=1000)) == text.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" 1",
        b"1\n",
        b"+1",
        b"01",
        b"-0",
        b"1.0",
        b"1e3",
        b"9007199254740992",
        b"-9007199254740992",
        b"1" * 5000,
        b"NaN",
        b"Infinity",
        b'"\\u0041"',
        b'"\\/"',
        b'"\\u000A"',
        b'"\\ud800"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'"\n"',
        b'"a',
        b"\xef\xbb\xbf1",
        b'{"a":1,"a":1}',
        b'{"b":1,"a":1}',
        b'{"A":1}',
        b'{"payloadType":1}',
        b'{"":1}',
        b'{"a-b":1}',
        b'{"\xc3\xa9":1}',
        b"{1:1}",
        b"[1,]",
        b"[1, 2]",
        b"true false",
        b"'a'",
        b"[" * 100_000,
        b"[" * (JSON_DEPTH_MAX + 1) + b"]" * (JSON_DEPTH_MAX + 1),
    ],
)
def test_everything_else_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedDocument):
        decode_canonical(data, max_bytes=1_000_000)


@pytest.mark.parametrize(
    "value",
    [1.0, float("nan"), b"bytes", {1: 2}, {"A": 1}, INTEGER_MAX + 1, "\ud800", {"a": {"b": {1, 2}}}, object()],
)
def test_what_has_no_spelling_is_not_written(value: Any) -> None:
    """What the decoder would refuse must not get into a log that can never be read again."""
    with pytest.raises(MalformedDocument):
        encode_canonical(value)


def test_depth_and_size_have_bounds() -> None:
    deep = b"[" * JSON_DEPTH_MAX + b"]" * JSON_DEPTH_MAX
    decode_canonical(deep, max_bytes=len(deep))
    with pytest.raises(TooLarge) as error:
        decode_canonical(deep, max_bytes=len(deep) - 1)
    assert error.value.limit == len(deep) - 1
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(MalformedDocument):
        encode_canonical(loop)


def test_free_keys_sort_by_utf16_as_the_rfc_asks() -> None:
    """U+E000 sorts behind a surrogate pair: by code point it would sort before."""
    value = {"\ue000": 1, "\U00010000": 2, "a": 3}
    data = encode_canonical(value, keys_checked=False)
    assert data == '{"a":3,"\U00010000":2,"\ue000":1}'.encode()
    assert decode_canonical(data, max_bytes=100, keys_checked=False) == value
    assert decode_canonical(b'{"payloadType":1}', max_bytes=100, also_keys=["payloadType"]) == {"payloadType": 1}


@pytest.mark.parametrize(
    "text", ["AB==", "AA=", "AA", "A", "AAA", "A A=", "AA==\n", "-_8=", "é", "AA==AA==", "AA===", "="]
)
def test_base64_has_one_spelling(text: str) -> None:
    """`AB==` and `AA==` decode to the same byte elsewhere: a signature line must not have two forms."""
    with pytest.raises(MalformedDocument):
        decode_b64(text)


def test_base64_round_trip() -> None:
    for size in range(70):
        data = bytes(range(size))
        assert decode_b64(encode_b64(data)) == data
    assert encode_b64(b"\xff\xef") == "/+8="
