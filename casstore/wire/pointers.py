"""Bodies about pointers: what they are, were, and are asked to become."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from casstore.wire.bodies import Answer, Request
from casstore.wire.ledger import Envelope, ProofBundle


class Previous(Answer, frozen=True, kw_only=True):
    snapshot: str
    flip: int
    status: str


class HoldInfo(Answer, frozen=True, kw_only=True):
    entry: int
    until: str | None
    by: str
    reason: str


class Pointer(Answer, frozen=True, kw_only=True):
    """A pointer as ``GET /v1/pointers/{name}`` shows it.  ``snapshot`` is None after ``retire``."""

    pointer: str
    snapshot: str | None
    flip: int
    seq: int
    entry: int
    since: str
    by: str
    reason: str
    kind: str
    status: str
    pending: str | None = None
    previous: Previous | None = None
    hold: HoldInfo | None = None
    frozen: bool = False
    proof: ProofBundle | None = None

    @property
    def etag(self) -> str:
        """The strong entity tag of this representation, quotes included."""
        return f'"f{self.flip}.e{self.entry}"'


class PointerList(Answer, frozen=True, kw_only=True):
    pointers: list[Pointer]
    next: str | None = None


class HistoryItem(Answer, frozen=True, kw_only=True):
    """One flip of one pointer.  ``status`` is the newest mark on ``to``: good, bad or unmarked."""

    pointer: str
    flip: int
    seq: int
    kind: str
    from_: str | None = msgspec.field(name="from")
    to: str | None
    at: str
    by: str
    reason: str
    status: str


class History(Answer, frozen=True, kw_only=True):
    items: list[HistoryItem]
    next: str | None = None


class WasLive(Answer, frozen=True, kw_only=True):
    """``GET /v1/pointers/{name}?at=``: what was live, and the half-open interval in which it was."""

    pointer: str
    asked: str
    snapshot: str | None
    flip: HistoryItem | None
    valid_from: str | None
    valid_until: str | None
    proof: ProofBundle | None = None


class PutPointer(Request, frozen=True, kw_only=True):
    """``PUT /v1/pointers/{name}`` for rules with ``unsigned: true``."""

    snapshot: str
    reason: str


class RollbackTo(Request, frozen=True, kw_only=True):
    """One of the five ways to say where to roll back to; exactly one field is set."""

    previous: bool | None = None
    snapshot: str | None = None
    seq: int | None = None
    flip: int | None = None
    before: str | None = None


class RollbackRequest(Request, frozen=True, kw_only=True):
    """``POST /v1/pointers/{name}/rollback``: a signed intent, or, where the rule is unsigned, target and reason."""

    intent: Envelope | None = None
    to: Literal["previous"] | RollbackTo | None = None
    reason: str = ""
    leave_bad: bool = True
    leave_hold: bool = True


class Skipped(Answer, frozen=True, kw_only=True):
    snapshot: str
    flip: int
    why: str


class RollbackTarget(Answer, frozen=True, kw_only=True):
    """``GET /v1/pointers/{name}/rollback-target``: what a rollback would go to now, for the client to sign."""

    pointer: str
    current: Pointer
    target: str
    target_flip: int
    skipped: list[Skipped]


class RollbackCandidate(Answer, frozen=True, kw_only=True):
    snapshot: str
    flip: int
    seq: int
    since: str
    status: str
    complete: bool
    size_bytes: int


class RollbackCandidates(Answer, frozen=True, kw_only=True):
    pointer: str
    candidates: list[RollbackCandidate]


class Submitted(Answer, frozen=True, kw_only=True):
    """What a logged act led to.  ``pointers`` are the pointers that it changed, as they are now."""

    entry: int
    type: str
    pointers: list[Pointer]
    replayed: bool = False
    no_op: bool = False
    skipped: list[Skipped] = []
    proof: ProofBundle | None = None


class IntentRequest(Request, frozen=True, kw_only=True):
    """A signed act: ``POST /v1/flips``, ``…/hold``, ``…/release``, ``…/marks``, ``/v1/policy``."""

    intent: Envelope


class PolicyAnswer(Answer, frozen=True, kw_only=True):
    version: int
    entry: int
    policy: dict[str, Any]
