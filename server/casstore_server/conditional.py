"""Range and precondition headers, evaluated.

Owns the reading of ``If-None-Match``, ``If-Match``, ``If-Range`` and ``Range``.  Pure: takes header text, returns decisions;
routes act on them.  Only strong entity tags are issued, so that a tag names bytes exactly.

Source: RFC 9110 §13 (conditional requests), §14 (range requests)
"""

from __future__ import annotations

import re
from typing import NamedTuple

from casstore.errors import InvalidInput

# entity-tag = [ "W/" ] DQUOTE *etagc DQUOTE
_TAG = re.compile(r'[ \t]*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*(?:,|\Z)')
_RANGE = re.compile(r"([0-9]*)-([0-9]*)\Z")
_POSITION_DIGITS_MAX = 18  # LIMIT: Python's int() of a megabyte of digits would cost seconds


class Tags(NamedTuple):
    """A list of entity tags, as ``If-Match`` and ``If-None-Match`` carry it."""

    any: bool
    """The header was ``*``."""
    strong: frozenset[str]
    """Opaque tags in quotes."""
    weak: frozenset[str]
    """Opaque tags in quotes, without their ``W/``."""


def parse_tags(header: str) -> Tags:
    """Read the value of ``If-Match`` or ``If-None-Match``.

    Raises:
        InvalidInput: neither ``*`` nor a list of entity tags.
    """
    if header.strip() == "*":
        return Tags(True, frozenset(), frozenset())
    strong: set[str] = set()
    weak: set[str] = set()
    at = 0
    while at < len(header):
        match = _TAG.match(header, at)
        if match is None:
            raise InvalidInput(f"expected '*' or entity tags in double quotes, found {header[:100]!r}")
        (weak if match[1] else strong).add(f'"{match[2]}"')
        at = match.end()
    if not strong and not weak:
        raise InvalidInput("an empty list of entity tags says nothing")
    return Tags(False, frozenset(strong), frozenset(weak))


def is_not_modified(if_none_match: str | None, etag: str) -> bool:
    """Whether a GET is answered 304: weak comparison, as §13.1.2 asks.  A malformed header is ignored."""
    if if_none_match is None:
        return False
    try:
        tags = parse_tags(if_none_match)
    except InvalidInput:
        return False
    return tags.any or etag in tags.strong or etag in tags.weak


class ByteRange(NamedTuple):
    """A satisfiable range: ``offset`` from the start and ``length``, in bytes."""

    offset: int
    length: int


class Unsatisfiable(NamedTuple):
    """The range begins behind the end: 416."""


def select_range(header: str | None, *, size: int, if_range: str | None, etag: str) -> ByteRange | Unsatisfiable | None:
    """What a ``Range`` header asks for.

    A header that is malformed, of another unit, or with several ranges is ignored, as §14.2 allows; so is any header when
    ``If-Range`` does not name exactly this representation.

    Args:
        header: the value of ``Range``.
        size: size of the representation in bytes.
        if_range: the value of ``If-Range``; a date never matches, because only tags are issued.
        etag: the strong entity tag of the representation, quotes included.

    Returns:
        The range, or that it cannot be satisfied, or None: the whole representation is asked for.
    """
    if header is None or (if_range is not None and if_range.strip() != etag):
        return None
    unit, equals, spec = header.partition("=")
    match = _RANGE.match(spec.strip())
    if unit.strip().lower() != "bytes" or not equals or match is None:
        return None
    first, last = match[1], match[2]
    if len(first) > _POSITION_DIGITS_MAX:
        return Unsatisfiable()
    if len(last) > _POSITION_DIGITS_MAX:
        last = "" if first else str(size)  # behind the end, which is allowed
    if not first:
        return _select_suffix(last, size)
    if last and int(last) < int(first):
        return None  # §14.1.1: an invalid range, so the header is ignored
    if int(first) >= size:
        return Unsatisfiable()
    end = min(int(last) + 1, size) if last else size
    return ByteRange(int(first), end - int(first))


def _select_suffix(last: str, size: int) -> ByteRange | Unsatisfiable | None:
    if not last:
        return None  # "bytes=-"
    length = min(int(last), size)
    return ByteRange(size - length, length) if length else Unsatisfiable()
