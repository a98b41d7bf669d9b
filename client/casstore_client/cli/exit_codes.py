"""The exit code of every error code: one table, tested to be total.

0 ok · 1 failure · 2 usage · 3 not found · 4 precondition or conflict · 5 not allowed · 6 verification failed ·
7 unavailable, try again · 8 frozen, held or waiting for approval · 10 rolled back · 11 rollback failed · 75 busy
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILURE: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
CONFLICT: Final = 4
NOT_ALLOWED: Final = 5
VERIFICATION_FAILED: Final = 6
UNAVAILABLE: Final = 7
WAITING: Final = 8
BUSY: Final = 75
INTERRUPTED: Final = 130

EXIT_CODES: Final[dict[str, int]] = {
    "error": FAILURE,
    "not-found": NOT_FOUND,
    "pointer-not-found": NOT_FOUND,
    "snapshot-not-found": NOT_FOUND,
    "tree-not-found": NOT_FOUND,
    "blob-not-found": NOT_FOUND,
    "artifact-not-found": NOT_FOUND,
    "pack-not-found": NOT_FOUND,
    "entry-not-found": NOT_FOUND,
    "path-not-found": NOT_FOUND,
    "token-not-found": NOT_FOUND,
    "pin-not-found": NOT_FOUND,
    "store-not-found": NOT_FOUND,
    "route-not-found": NOT_FOUND,
    "invalid-request": USAGE,
    "invalid-name": USAGE,
    "invalid-digest": USAGE,
    "malformed-document": FAILURE,
    "hostile-tree": VERIFICATION_FAILED,
    "digest-mismatch": VERIFICATION_FAILED,
    "too-large": FAILURE,
    "unsupported-media-type": FAILURE,
    "method-not-allowed": FAILURE,
    "precondition-required": USAGE,
    "idempotency-key-reused": CONFLICT,
    "conflict": CONFLICT,
    "precondition-failed": CONFLICT,
    "guard-failed": CONFLICT,
    "superseded": CONFLICT,
    "seen-mismatch": VERIFICATION_FAILED,
    "request-in-progress": BUSY,
    "no-rollback-target": CONFLICT,
    "snapshot-incomplete": CONFLICT,
    "snapshot-bad": CONFLICT,
    "held": WAITING,
    "frozen": WAITING,
    "source-changed": CONFLICT,
    "destination-exists": CONFLICT,
    "deletion-held": BUSY,
    "lease-lost": CONFLICT,
    "integrity-error": VERIFICATION_FAILED,
    "damaged-object": VERIFICATION_FAILED,
    "verification-failed": VERIFICATION_FAILED,
    "regression": VERIFICATION_FAILED,
    "outcome-unknown": UNAVAILABLE,
    "unavailable": UNAVAILABLE,
    "overloaded": UNAVAILABLE,
    "rate-limited": UNAVAILABLE,
    "read-only": UNAVAILABLE,
    "clock-untrusted": UNAVAILABLE,
    "log-unavailable": UNAVAILABLE,
    "capacity": UNAVAILABLE,
    "store-full": UNAVAILABLE,
    "access-denied": NOT_ALLOWED,
    "unauthenticated": NOT_ALLOWED,
    "not-permitted": NOT_ALLOWED,
    "signature-invalid": NOT_ALLOWED,
    "intent-expired": NOT_ALLOWED,
    "wrong-log": NOT_ALLOWED,
    "wrong-state": FAILURE,
    "store-busy": BUSY,
    "store-too-new": FAILURE,
    "store-too-old": FAILURE,
    "not-initialised": FAILURE,
    "configuration": USAGE,
    "unsupported": FAILURE,
    "transport-error": UNAVAILABLE,
    "protocol-error": FAILURE,
}
"""Keyed by :attr:`casstore.errors.CasstoreError.code`."""
