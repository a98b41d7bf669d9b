"""Every error that casstore raises on purpose.

::

    CasstoreError
    ├── NotFound            PointerNotFound, SnapshotNotFound, TreeNotFound, BlobNotFound, ArtifactNotFound, PackNotFound,
    │                       EntryNotFound, PathNotFound, TokenNotFound, PinNotFound, StoreNotFound, RouteNotFound
    ├── InvalidInput        InvalidName, InvalidDigest, MalformedDocument, HostileTree, DigestMismatch, TooLarge,
    │                       UnsupportedMediaType, MethodNotAllowed, PreconditionRequired, IdempotencyKeyReused
    ├── Conflict            PreconditionFailed, GuardFailed, Superseded, SeenMismatch, RequestInProgress, NoRollbackTarget,
    │                       SnapshotIncomplete, SnapshotBad, Held, Frozen, SourceChanged, DestinationExists, DeletionHeld
    ├── LeaseLost
    ├── IntegrityError      bits are wrong: DamagedObject
    ├── VerificationError   someone is wrong: Regression
    ├── OutcomeUnknown      a commit may have happened; the store is sealed until it is reopened
    ├── Unavailable         try again: Overloaded, RateLimited, ReadOnly, ClockUntrusted, LogUnavailable
    ├── CapacityError       StoreFull
    ├── AccessError         Unauthenticated, NotPermitted, SignatureInvalid, IntentExpired, WrongLog
    └── StateError          StoreBusy, StoreTooNew, StoreTooOld, NotInitialised, ConfigurationError, Unsupported

Each class has a stable ``code``.  The server's table of HTTP statuses and the command line's table of exit codes are keyed
by it, and tests hold both tables total.  Typed fields are declared as annotations on the class; they travel in the
problem document, and :func:`from_code` builds the same error again on the other side of the wire.

``casstore_client`` adds ``TransportError`` and ``ProtocolError``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class CasstoreError(Exception):
    """The common root.

    Args:
        detail: a sentence for a person: which object, what was expected, what was found.
        hint: what to do about it, where we know.
        **fields: values of the fields that the class (or a base of it) annotates; JSON types only.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = tuple(name for name in inspect.get_annotations(cls) if name not in ("code", "retryable"))
        cls._fields = (*cls._fields, *own)

    def __init__(self, detail: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        unknown = set(fields) - set(self._fields)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {sorted(unknown)}")
        for name in self._fields:
            setattr(self, name, fields.get(name))

    @property
    def fields(self) -> dict[str, Any]:
        """The typed fields that are set, by name."""
        return {name: value for name in self._fields if (value := getattr(self, name)) is not None}


# --- something that was asked for is not there -----------------------------------------------------------------------


class NotFound(CasstoreError):
    code = "not-found"


class PointerNotFound(NotFound):
    code = "pointer-not-found"


class SnapshotNotFound(NotFound):
    code = "snapshot-not-found"


class TreeNotFound(NotFound):
    code = "tree-not-found"


class BlobNotFound(NotFound):
    code = "blob-not-found"


class ArtifactNotFound(NotFound):
    code = "artifact-not-found"


class PackNotFound(NotFound):
    code = "pack-not-found"


class EntryNotFound(NotFound):
    code = "entry-not-found"


class PathNotFound(NotFound):
    code = "path-not-found"


class TokenNotFound(NotFound):
    code = "token-not-found"


class PinNotFound(NotFound):
    code = "pin-not-found"


class StoreNotFound(NotFound):
    code = "store-not-found"


class RouteNotFound(NotFound):
    code = "route-not-found"


# --- the request itself is wrong -------------------------------------------------------------------------------------


class InvalidInput(CasstoreError):
    code = "invalid-request"


class InvalidName(InvalidInput):
    code = "invalid-name"


class InvalidDigest(InvalidInput):
    code = "invalid-digest"


class MalformedDocument(InvalidInput):
    """Bytes that do not parse as the format they claim to be, or that have a second spelling."""

    code = "malformed-document"


class HostileTree(MalformedDocument):
    """A tree document with a path that no honest tree has."""

    code = "hostile-tree"


class DigestMismatch(InvalidInput):
    """Bytes that do not hash to the digest they were sent under."""

    code = "digest-mismatch"
    expected: str | None
    found: str | None


class TooLarge(InvalidInput):
    code = "too-large"
    limit: int | None


class UnsupportedMediaType(InvalidInput):
    code = "unsupported-media-type"


class MethodNotAllowed(InvalidInput):
    code = "method-not-allowed"


class PreconditionRequired(InvalidInput):
    code = "precondition-required"


class IdempotencyKeyReused(InvalidInput):
    code = "idempotency-key-reused"


# --- the request is right, the world has moved -----------------------------------------------------------------------


class Conflict(CasstoreError):
    code = "conflict"


class PreconditionFailed(Conflict):
    """The pointer is not where the caller saw it."""

    code = "precondition-failed"
    expected: str | None
    current: dict[str, Any] | None


class GuardFailed(Conflict):
    code = "guard-failed"


class Superseded(Conflict):
    code = "superseded"


class SeenMismatch(Conflict):
    """The signer saw a log that this one contradicts."""

    code = "seen-mismatch"


class RequestInProgress(Conflict):
    code = "request-in-progress"
    retryable = True


class NoRollbackTarget(Conflict):
    code = "no-rollback-target"
    skipped: list[dict[str, Any]] | None


class SnapshotIncomplete(Conflict):
    """Content that the snapshot or tree needs is not in the store."""

    code = "snapshot-incomplete"
    missing: list[str] | None
    missing_count: int | None


class SnapshotBad(Conflict):
    code = "snapshot-bad"


class Held(Conflict):
    code = "held"


class Frozen(Conflict):
    code = "frozen"


class SourceChanged(Conflict):
    """A file changed or vanished while it was being pushed."""

    code = "source-changed"
    path: str | None


class DestinationExists(Conflict):
    code = "destination-exists"


class DeletionHeld(Conflict):
    """The store is being copied: nothing may be removed from it now."""

    code = "deletion-held"
    retryable = True
    holders: list[str] | None


class LeaseLost(CasstoreError):
    """The push's claim on what it was told is present has run out: begin again."""

    code = "lease-lost"
    retryable = True


# --- bits are wrong, or someone is -----------------------------------------------------------------------------------


class IntegrityError(CasstoreError):
    code = "integrity-error"


class DamagedObject(IntegrityError):
    """Stored bytes do not hash to their id."""

    code = "damaged-object"
    object: str | None
    where: str | None
    expected: str | None
    found: str | None


class VerificationError(CasstoreError):
    """A proof, signature or claim does not hold."""

    code = "verification-failed"
    index: int | None


class Regression(VerificationError):
    """An older or a different history than the one already trusted: always an alarm."""

    code = "regression"


class OutcomeUnknown(CasstoreError):
    """A commit may or may not have happened; the store is sealed until it is reopened."""

    code = "outcome-unknown"
    retryable = True


# --- not now ---------------------------------------------------------------------------------------------------------


class Unavailable(CasstoreError):
    code = "unavailable"
    retryable = True
    retry_after_s: int | None


class Overloaded(Unavailable):
    code = "overloaded"


class RateLimited(Unavailable):
    code = "rate-limited"


class ReadOnly(Unavailable):
    code = "read-only"
    retryable = False


class ClockUntrusted(Unavailable):
    code = "clock-untrusted"
    retryable = False


class LogUnavailable(Unavailable):
    code = "log-unavailable"


class CapacityError(CasstoreError):
    code = "capacity"


class StoreFull(CapacityError):
    code = "store-full"
    retryable = True


# --- not you ---------------------------------------------------------------------------------------------------------


class AccessError(CasstoreError):
    code = "access-denied"


class Unauthenticated(AccessError):
    code = "unauthenticated"


class NotPermitted(AccessError):
    code = "not-permitted"
    permission: str | None


class SignatureInvalid(AccessError):
    code = "signature-invalid"


class IntentExpired(AccessError):
    code = "intent-expired"


class WrongLog(AccessError):
    code = "wrong-log"


# --- not in this state -----------------------------------------------------------------------------------------------


class StateError(CasstoreError):
    code = "wrong-state"


class StoreBusy(StateError):
    code = "store-busy"


class StoreTooNew(StateError):
    code = "store-too-new"


class StoreTooOld(StateError):
    code = "store-too-old"


class NotInitialised(StateError):
    code = "not-initialised"


class ConfigurationError(StateError):
    code = "configuration"


class Unsupported(StateError):
    """A field or kind of the format that this version does not act on yet."""

    code = "unsupported"


def _all_classes(root: type[CasstoreError]) -> Iterator[type[CasstoreError]]:
    yield root
    for child in root.__subclasses__():
        yield from _all_classes(child)


def codes() -> dict[str, type[CasstoreError]]:
    """Every code with its class, those of packages on top of this one included once they are imported."""
    return {cls.code: cls for cls in _all_classes(CasstoreError)}


def from_code(
    code: str, detail: str, *, hint: str | None = None, fields: Mapping[str, Any] | None = None
) -> CasstoreError:
    """Build the error that another process described.

    Args:
        code: its code; an unknown one gives a plain :class:`CasstoreError`.
        detail: its sentence.
        hint: its hint.
        fields: its fields; those that the class does not know are dropped.
    """
    cls = codes().get(code, CasstoreError)
    known = {name: value for name, value in (fields or {}).items() if name in cls._fields}
    return cls(detail, hint=hint, **known)
