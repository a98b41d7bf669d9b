"""What an act does: the values that pass between judging it, logging it and deriving tables from it.

Owns no rule, only shapes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from casstore.formats.acts import AnyArgs, Verdict
from casstore.formats.entry import Entry, GcBody
from casstore.formats.intent import Intent
from casstore.formats.policy import Policy
from casstore.formats.state import Draft, Leaf, State
from casstore.ids import IntentId, PointerName, SnapshotDigest
from casstore.transitions.lookup import Lookup


class FlipChange(NamedTuple):
    """A pointer moved."""

    pointer: PointerName
    seq: int
    from_: SnapshotDigest | None
    to: SnapshotDigest | None
    kind: str


class MarkChange(NamedTuple):
    """The newest verdict on a snapshot on a pointer; None takes the mark away."""

    pointer: PointerName
    snapshot: SnapshotDigest
    verdict: Verdict | None


class Situation(NamedTuple):
    """What an act meets: everything that its effects may depend on, beside the act itself."""

    state: State
    policy: Policy
    idx: int
    """The index that the entry would get."""
    ts: int
    lookup: Lookup


class Effects(NamedTuple):
    """What an act changes."""

    body: dict[str, Any] = {}  # noqa: RUF012 (never changed: it goes into canonical JSON)
    leaves: tuple[Leaf, ...] = ()
    flips: tuple[FlipChange, ...] = ()
    marks: tuple[MarkChange, ...] = ()
    snapshot: SnapshotDigest | None = None


class Planned(NamedTuple):
    """An act that was found allowed and possible, with everything that follows from it.

    Nothing has happened yet: the caller writes ``data`` as entry ``idx``, derives its tables from ``flips``, ``marks``,
    ``snapshot`` and ``leaves``, and tells the machine by :meth:`Machine.apply
    <casstore.transitions.machine.Machine.apply>`.
    """

    type: str
    idx: int
    ts: int
    intent: Intent | None
    """None in the server's own entries."""
    args: AnyArgs | GcBody
    intent_id: IntentId | None
    """None in the server's own entries."""
    principals: tuple[str, ...]
    """Who signed, or whose token vouched; sorted."""
    no_op: bool
    """The world is as asked already: nothing is to be logged, ``entry`` is None and ``data`` empty."""
    entry: Entry | None
    data: bytes
    """The entry's bytes."""
    draft: Draft
    flips: tuple[FlipChange, ...]
    marks: tuple[MarkChange, ...]
    snapshot: SnapshotDigest | None
    """The snapshot that the entry publishes."""
    policy: Policy
    """In force after the entry."""

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The state leaves that the entry writes."""
        return self.draft.changes

    @property
    def why(self) -> str:
        """The signer's reason."""
        return "" if self.intent is None else self.intent.why

    @property
    def body(self) -> dict[str, Any]:
        """What the server resolved."""
        return {} if self.entry is None else self.entry.body
