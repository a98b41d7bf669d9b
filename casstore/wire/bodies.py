"""What every body has in common: media types, headers, strictness, and how times are spelled."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec

from casstore.errors import InvalidInput

MEDIA_PROBLEM: Final = "application/problem+json"
MEDIA_JSON: Final = "application/json"
MEDIA_IDS: Final = "application/octet-stream"
MEDIA_PACK: Final = "application/vnd.casstore.pack"
MEDIA_TREE: Final = "application/vnd.casstore.tree"
MEDIA_PAGES: Final = "application/vnd.casstore.pages"
MEDIA_SNAPSHOT: Final = "application/vnd.casstore.snapshot+json"

HEADER_REPLAYED: Final = "Idempotent-Replayed"
HEADER_NO_OP: Final = "Casstore-No-Op"
HEADER_IDEMPOTENCY: Final = "Idempotency-Key"
HEADER_REQUEST_ID: Final = "X-Request-Id"


class Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A body that a client sends: unknown fields are refused."""


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """A body that a server sends: unknown fields are ignored by the reader."""


_T = TypeVar("_T")


def decode_json(data: bytes, kind: type[_T]) -> _T:
    """Read a JSON body as ``kind``.

    Raises:
        InvalidInput: not JSON, a missing or unknown field, or a field of another type; the message says which.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is not a {kind.__name__}: {error}") from error


def encode_json(value: Any) -> bytes:
    """Write a body as JSON."""
    return msgspec.json.encode(value)


def format_time(ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339 UTC with milliseconds: ``2026-08-23T10:15:02.113Z``."""
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def parse_time(text: str) -> int:
    """RFC 3339 with an offset or ``Z`` (a bare date and time is UTC) → milliseconds since the epoch.

    Raises:
        InvalidInput: not such a time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInput(f"{text[:50]!r} is not a time such as 2026-08-23T10:15:02Z") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000 + 0.5)


def format_ago(ms: int) -> str:
    """A span of time as people say it: ``12 s ago``, ``3 min ago``, ``5 h ago``, ``40 d ago``."""
    seconds = max(0, ms) // 1000
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
