"""Canonical JSON: the one spelling in which everything that is signed or hashed as JSON is written.

Owns RFC 8785 (JCS) over the small part of JSON that casstore uses: objects, arrays, strings, booleans, null and
integers within ±(2^53 − 1); no floating point.  Object keys are ``[a-z0-9_]+``: they are never user-given, so the
order of keys is the order of ASCII and no two implementations of JCS can disagree about it.

Must not know what the documents mean.

Invariant: :func:`decode_canonical` returns only if ``encode_canonical`` of its result is the input, byte for byte.
So there is one spelling, and what was checked, what was signed and what is acted upon are the same bytes.

Source: docs/formats/canonical.md, RFC 8785, RFC 4648 §4.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Collection
from typing import Any, Final

import msgspec
import rfc8785

from casstore.errors import MalformedDocument, TooLarge
from casstore.limits import JSON_DEPTH_MAX

INTEGER_MAX: Final = 2**53 - 1
"""The largest integer that every JSON implementation holds exactly; the smallest is its negative."""

_KEY: Final = re.compile(r"[a-z0-9_]+\Z")
# Over the values that `_check` lets through, this writes what RFC 8785 asks for, six times as fast as a general JCS
# encoder (a property test holds it against one).  Its key order is by code point, the RFC's by UTF-16 unit: the same
# for the keys that we allow, which is why free keys take the other path in `encode_canonical`.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def encode_canonical(value: Any, *, keys_checked: bool = True, also_keys: Collection[str] = ()) -> bytes:
    """Write ``value`` in its one spelling.

    Args:
        value: dicts, lists or tuples, strings, integers within ±(2^53 − 1), booleans, None; nested at most
            ``JSON_DEPTH_MAX`` deep.
        keys_checked: whether keys must be ``[a-z0-9_]+``; without, any string is a key.
        also_keys: further keys that are allowed (a foreign format's, inside one of ours).

    Raises:
        MalformedDocument: another type, a float, an integer out of range, a key that is not allowed, a lone
        surrogate, or
            nesting that is too deep.
    """
    _check(value, 0, keys_checked, also_keys)
    try:
        if keys_checked:
            return _ENCODER.encode(value).encode()
        return rfc8785.dumps(value)
    except (UnicodeEncodeError, rfc8785.CanonicalizationError) as error:
        raise MalformedDocument(f"the document cannot be written as canonical JSON: {error}") from error


def decode_canonical(data: bytes, *, max_bytes: int, keys_checked: bool = True, also_keys: Collection[str] = ()) -> Any:
    """Read a document that is in its one spelling.

    Args:
        data: the bytes.
        max_bytes: the most that this kind of document may have.
        keys_checked: as for :func:`encode_canonical`.
        also_keys: as for :func:`encode_canonical`.

    Raises:
        TooLarge: more than ``max_bytes``.
        MalformedDocument: not JSON, not in the one spelling (duplicate keys, white space, escapes that are not needed,
            key order), or a value that :func:`encode_canonical` would refuse.
    """
    if len(data) > max_bytes:
        raise TooLarge(f"the document has {len(data)} bytes, at most {max_bytes} are allowed", limit=max_bytes)
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedDocument(f"the document is not JSON: {error}") from error
    # TRUST: the comparison is what refuses second spellings: a duplicate key was dropped on the way in, a float, a
    # BOM or an escape was read as something else; none of them comes out as it went in.
    if encode_canonical(value, keys_checked=keys_checked, also_keys=also_keys) != data:
        raise MalformedDocument("the document is JSON but not in its canonical spelling (RFC 8785)")
    return value


def _check(value: Any, depth: int, keys_checked: bool, also_keys: Collection[str]) -> None:
    """Refuse what the formats do not have.  Depth counts containers, the outermost is 1."""
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int):
        if not -INTEGER_MAX <= value <= INTEGER_MAX:
            raise MalformedDocument(
                f"{value} is beyond ±(2^53 − 1)" if abs(value) < 10**40 else "an integer is too large"
            )
        return
    if depth >= JSON_DEPTH_MAX:
        raise MalformedDocument(f"the document nests deeper than {JSON_DEPTH_MAX}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise MalformedDocument(f"{key!r} is not a string and cannot be a key")
            if keys_checked and not _KEY.match(key) and key not in also_keys:
                raise MalformedDocument(f"{key[:100]!r} is not allowed as a key: [a-z0-9_]+")
            if item is not None and not isinstance(item, str | bool):
                _check(item, depth + 1, keys_checked, also_keys)
        return
    if isinstance(value, list | tuple):
        for item in value:
            if item is not None and not isinstance(item, str | bool):
                _check(item, depth + 1, keys_checked, also_keys)
        return
    raise MalformedDocument(f"a {type(value).__name__} has no place in a canonical document")


def encode_b64(data: bytes) -> str:
    """Standard base64 with padding, no line breaks (RFC 4648 §4)."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def decode_b64(text: str) -> bytes:
    """Undo :func:`encode_b64`, accepting only what it writes.

    Raises:
        MalformedDocument: not base64, or another spelling of it (unused bits set, padding missing, white space).
    """
    try:
        # `strict_mode` alone still takes spellings whose unused last bits are set: hence the comparison.
        data = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedDocument(f"{text[:100]!r} is not base64") from error
    if encode_b64(data) != text:
        raise MalformedDocument(f"{text[:100]!r} is not the one base64 spelling of its bytes")
    return data
