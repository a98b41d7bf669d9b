"""The spellings that every text format of the log shares: decimals, hash lines, key names, a checkpoint's three lines.

Owns nothing but spelling.  Each value has exactly one: Python's own ``int`` would take ``+5``, `` 5``, ``05``,
``1_000`` and the digits of other scripts, and a second spelling of a signed value is a second document with the same
meaning.

Source: https://c2sp.org/tlog-checkpoint, https://c2sp.org/signed-note
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from casstore.errors import MalformedDocument
from casstore.formats.canonical import decode_b64

HASH_BYTES: Final = 32
UINT63_MAX: Final = (1 << 63) - 1

_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")


class Head(NamedTuple):
    """The three lines that every checkpoint begins with, and whatever follows them."""

    origin: str
    size: int
    root: bytes
    extensions: list[str]


def parse_decimal(text: str, *, what: str = "number") -> int:
    """Read a number from 0 to 2^63 − 1 in its one spelling.

    Args:
        text: ASCII digits without sign, space or leading zero.
        what: what the number is, for the error's sentence.

    Raises:
        MalformedDocument: any other spelling, or a number out of range.
    """
    if not _DECIMAL.match(text):
        raise MalformedDocument(f"the {what} {text[:40]!r} is not a decimal number in its one spelling")
    number = int(text)
    if number > UINT63_MAX:
        raise MalformedDocument(f"the {what} {text} is above 2^63 - 1")
    return number


def parse_hash(text: str, *, what: str = "hash") -> bytes:
    """Read the base64 of 32 bytes.

    Raises:
        MalformedDocument: another length, or another spelling of the base64.
    """
    value = decode_b64(text)
    if len(value) != HASH_BYTES:
        raise MalformedDocument(f"the {what} has {len(value)} bytes, not {HASH_BYTES}")
    return value


def is_key_name(name: str) -> bool:
    """Whether ``name`` may name a key: not empty, no Unicode space, no ``+``, no control character."""
    return bool(name) and "+" not in name and not any(c.isspace() or c < " " or "\ud800" <= c <= "\udfff" for c in name)


def split_lines(text: str, *, what: str) -> list[str]:
    """Split text into its lines, on U+000A alone and on no other line break that Unicode knows.

    Raises:
        MalformedDocument: the text does not end in a newline.
    """
    if not text.endswith("\n"):
        raise MalformedDocument(f"the {what} does not end in a newline")
    return text[:-1].split("\n")


def parse_head(text: str) -> Head:
    """Read the lines of a checkpoint's text, its extension lines included.

    Raises:
        MalformedDocument: fewer than three lines, an empty line, or a size or root in another spelling.
    """
    lines = split_lines(text, what="checkpoint")
    if len(lines) < 3:
        raise MalformedDocument(f"a checkpoint has three lines, this has {len(lines)}")
    if not all(lines):
        raise MalformedDocument("a line of the checkpoint is empty")
    return Head(lines[0], parse_decimal(lines[1], what="tree size"), parse_hash(lines[2], what="root"), lines[3:])
