"""Bodies of collection: what is kept because somebody said so, and what a run did."""

from __future__ import annotations

from typing import Literal

from casstore.wire.bodies import Answer, Request

PinKind = Literal["snapshot", "tree", "blob"]


class PinCreate(Request, frozen=True, kw_only=True):
    """``until`` is RFC 3339, or null for a pin that is taken away by hand."""

    kind: PinKind
    digest: str
    owner: str
    reason: str
    until: str | None = None


class Pin(Answer, frozen=True, kw_only=True):
    """A pin: who wants something kept, and why.  ``by`` is the principal who asked for it."""

    id: str
    kind: PinKind
    digest: str
    owner: str
    reason: str
    created_at: str
    until: str | None
    by: str


class PinList(Answer, frozen=True, kw_only=True):
    """All pins, oldest first."""

    pins: list[Pin]


class GcRequest(Request, frozen=True, kw_only=True):
    """With ``dry_run`` nothing is changed."""

    dry_run: bool = False


class GcUndone(Answer, frozen=True, kw_only=True):
    """How many condemned objects are live again."""

    revived: int


class GcDropped(Answer, frozen=True, kw_only=True):
    """What a collection dropped by name: one line for each snapshot, tree and blob."""

    digest: str
    dropped: list[str]


class GcRoot(Answer, frozen=True, kw_only=True):
    """Something that is kept, and for whom."""

    reason: str
    kind: PinKind
    digest: str
    owner: str


class GcReport(Answer, frozen=True, kw_only=True):
    """What a run of collection did, or with ``dry_run`` would do.

    Objects are counted by kind, roots by reason.  ``blocked`` says why something that was due was not done.
    """

    dry_run: bool
    mark: int
    began_at: str
    seconds: float
    roots: dict[str, int]
    kept: list[GcRoot]
    """A dry run's first roots of each reason."""
    gone: int
    """Roots within a window that were collected before the window was made longer."""
    gaps: list[str]
    """Needed objects that lead to others and are missing or damaged: then nothing is condemned or dropped."""
    revived: int
    condemned: dict[str, int]
    condemned_bytes: int
    waiting: int
    """Condemned objects whose grace runs."""
    waiting_until: str | None
    """When the first of them may be dropped."""
    dropped: dict[str, int]
    dropped_bytes: int
    removed: list[str]
    """The first snapshots, trees and blobs that were dropped."""
    artifacts_expired: int
    entries: list[int]
    """Log entries that say what was dropped."""
    packs_rewritten: int
    packs_merged: int
    packs_written: int
    rewritten_bytes: int
    damaged: list[str]
    """Objects that could not be moved because their bytes are wrong; they were quarantined."""
    packs_retired: int
    packs_waiting: int
    """Retired packs that readers may still be in."""
    packs_deleted: int
    freed_bytes: int
    orphans: int
    """Packs that the index does not know; they are taken in, or reported, after grace."""
    blocked: list[str]
