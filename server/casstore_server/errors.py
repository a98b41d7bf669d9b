"""Errors on the wire: one table from code to HTTP status, and the problem document (RFC 9457) that carries an error.

Owns what a failed request looks like.  A test holds the table total over :func:`casstore.errors.codes`.

Source: RFC 9457; docs/formats/wire.md
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from aiohttp import web

from casstore.errors import CapacityError, CasstoreError, Unauthenticated, Unavailable
from casstore.wire import MEDIA_PROBLEM, encode_json

PROBLEM_TYPE_PREFIX: Final = "urn:casstore:problem:"
RETRY_AFTER_DEFAULT_S: Final = 1
RETRY_AFTER_FULL_S: Final = 60  # a disk does not empty itself in a second

STATUS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "error": 500,
        "not-found": 404,
        "pointer-not-found": 404,
        "snapshot-not-found": 404,
        "tree-not-found": 404,
        "blob-not-found": 404,
        "artifact-not-found": 404,
        "pack-not-found": 404,
        "entry-not-found": 404,
        "path-not-found": 404,
        "token-not-found": 404,
        "pin-not-found": 404,
        "store-not-found": 404,
        "route-not-found": 404,
        "invalid-request": 400,
        "invalid-name": 400,
        "invalid-digest": 400,
        "malformed-document": 400,
        "hostile-tree": 422,
        "digest-mismatch": 422,
        "too-large": 413,
        "unsupported-media-type": 415,
        "method-not-allowed": 405,
        "precondition-required": 428,
        "idempotency-key-reused": 422,
        "conflict": 409,
        "precondition-failed": 412,
        "guard-failed": 412,
        "superseded": 409,
        "seen-mismatch": 409,
        "request-in-progress": 409,
        "no-rollback-target": 409,
        "snapshot-incomplete": 409,
        "snapshot-bad": 409,
        "held": 423,
        "frozen": 423,
        "source-changed": 409,
        "destination-exists": 409,
        "deletion-held": 409,
        "lease-lost": 409,
        "integrity-error": 500,
        "damaged-object": 500,
        "verification-failed": 422,
        "regression": 409,
        "outcome-unknown": 503,
        "unavailable": 503,
        "overloaded": 503,
        "rate-limited": 429,
        "read-only": 503,
        "clock-untrusted": 503,
        "log-unavailable": 503,
        "capacity": 507,
        "store-full": 507,
        "access-denied": 403,
        "unauthenticated": 401,
        "not-permitted": 403,
        "signature-invalid": 403,
        "intent-expired": 403,
        "wrong-log": 403,
        "wrong-state": 500,
        "store-busy": 503,
        "store-too-new": 500,
        "store-too-old": 500,
        "not-initialised": 500,
        "configuration": 500,
        "unsupported": 422,
    }
)


def status_of(error: CasstoreError) -> int:
    """The HTTP status of an error."""
    return STATUS.get(error.code, 500)


class TooSlow(Exception):
    """The client sent its body too slowly; 408, so that it knows that it may try again."""


def build_problem(error: CasstoreError, *, status: int, request_id: str | None) -> bytes:
    """The problem document of ``error`` as JSON.

    The error's typed fields stand beside the members of RFC 9457, as the RFC asks; they never replace one.
    """
    members: dict[str, object] = {
        **error.fields,
        "type": PROBLEM_TYPE_PREFIX + error.code,
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.detail,
        "code": error.code,
    }
    if error.hint is not None:
        members["hint"] = error.hint
    if request_id is not None:
        members["request_id"] = request_id
    return encode_json(members)


def respond_problem(error: CasstoreError, *, request_id: str | None = None, status: int | None = None) -> web.Response:
    """Answer with ``error``.

    Args:
        error: what happened.
        request_id: repeated in the document, so that a person can find the request in the logs.
        status: where the table's status is not the exact one.
    """
    status = status_of(error) if status is None else status
    response = web.Response(
        status=status,
        body=build_problem(error, status=status, request_id=request_id),
        headers={"Content-Type": MEDIA_PROBLEM, "Cache-Control": "no-store"},
    )
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = 'Bearer realm="casstore"'
    if isinstance(error, Unavailable | CapacityError) or status in (429, 503):
        after = getattr(error, "retry_after_s", None)
        if after is None:
            after = RETRY_AFTER_FULL_S if isinstance(error, CapacityError) else RETRY_AFTER_DEFAULT_S
        # Between once and twice as long: those who were refused in one instant do not come back in one.
        response.headers["Retry-After"] = str(random.randint(after, 2 * after))  # noqa: S311  (no secret)
    return response
