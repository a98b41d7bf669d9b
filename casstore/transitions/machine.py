"""The machine: the state of the log, the policy in force, and the judgement of the next act.

The server calls :meth:`Machine.plan` before it commits an entry, the auditor calls the same function to replay one.
What an act does follows from its payload and the entries before it; the server adds nothing but an index and a time.

Order of checks: signatures and policy, what the signer saw, ``expect``, no-op, eligibility of the kind, bad, hold,
content. Authentication by token and idempotency come before, and are the caller's.

Invariants: planning changes nothing; ``apply(plan(x))`` leaves exactly the state whose root stands in the planned
entry; an entry that :meth:`plan` made passes :func:`~casstore.transitions.replay.replay_entry` on every machine that
replayed the entries before it.

Source: docs/formats/entry.md, docs/formats/state.md
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from casstore.errors import DamagedObject, MalformedDocument, SeenMismatch
from casstore.formats.acts import (
    AnyArgs,
    FlipArgs,
    GenesisArgs,
    HoldArgs,
    MarkArgs,
    PolicyArgs,
    ReleaseArgs,
    SnapshotArgs,
)
from casstore.formats.entry import Entry, GcBody, StateRoot, encode_entry, gc_body
from casstore.formats.intent import Intent
from casstore.formats.policy import Policy
from casstore.formats.state import State, decode_leaf
from casstore.transitions.acts import do_flip, do_hold, do_mark, do_policy, do_release, do_snapshot
from casstore.transitions.authority import Act, SignedAct, UnsignedAct, judge
from casstore.transitions.effects import Effects, FlipChange, MarkChange, Planned, Situation
from casstore.transitions.lookup import Lookup

__all__ = ["Act", "FlipChange", "Machine", "MarkChange", "Planned", "SignedAct", "UnsignedAct"]


class Machine:
    """The log so far, as far as the next entry depends on it.

    Args:
        origin: the log's; None takes the one that the genesis names.

    Threads: one at a time.
    """

    def __init__(self, origin: str | None = None) -> None:
        self.origin = origin
        self.state = State()
        self.policy: Policy | None = None
        """In force; None in an empty log."""
        self.last_ts = 0
        """Time of the newest entry, ms."""
        self.size = 0
        """Number of entries."""

    @classmethod
    def from_leaves(
        cls, leaves: Iterable[bytes], policy_doc: dict[str, Any], size: int, last_ts: int, *, origin: str
    ) -> Machine:
        """The machine of a log that was judged before.

        Args:
            leaves: the bytes of all state leaves, in any order.
            policy_doc: the policy in force.
            size: number of entries, at least 1.
            last_ts: time of the newest entry, ms.
            origin: the log's.

        Raises:
            DamagedObject: the policy is not the one that the state names.
            MalformedDocument, InvalidName, InvalidDigest: a leaf or the policy is not well-formed.
        """
        machine = cls(origin)
        machine.state = State(decode_leaf(leaf) for leaf in leaves)
        machine.policy = Policy(policy_doc)
        machine.size = size
        machine.last_ts = last_ts
        leaf = machine.state.policy()
        if leaf is None or (leaf.sha256, leaf.version) != (machine.policy.sha256, machine.policy.version):
            raise DamagedObject("the policy in force is not the one that the state names", object="policy")
        return machine

    def plan(self, request: Act, *, idx: int, ts: int, lookup: Lookup) -> Planned:
        """Judge an act, and work out all that follows from it.  Changes nothing.

        Args:
            request: what is asked for; that its payload was not logged before is the caller's to check.
            idx: the index of the entry that would be written: :attr:`size`.
            ts: its time, ms; at least :attr:`last_ts`.
            lookup: the entries before it.

        Raises:
            SignatureInvalid, WrongLog, IntentExpired, NotPermitted: see :func:`~casstore.transitions.authority.judge`.
            Superseded: the policy, or the answer to ``previous``, is another than the one that was signed.
            SeenMismatch: the signer saw a log that this one contradicts.
            PreconditionFailed, PointerNotFound, NoRollbackTarget, SnapshotBad, Held, SnapshotNotFound,
            SnapshotIncomplete: the act is not possible now.
            CapacityError: too many pointers.
            MalformedDocument, InvalidInput, InvalidName, InvalidDigest, TooLarge, Unsupported: the request is wrong.
            ValueError: ``idx`` or ``ts`` cannot be the next entry's (an error of the caller).
        """
        if idx != self.size or ts < self.last_ts:
            raise ValueError(f"entry {idx} at {ts} does not follow {self.size} entries up to {self.last_ts}")
        judged = judge(request, self.policy, origin=self.origin, ts=ts)
        _check_seen(judged.intent, idx, lookup)
        situation = Situation(self.state, judged.policy, idx, ts, lookup)
        effects = _effects(judged.args, situation)
        draft = self.state.draft(effects.leaves if effects is not None else ())
        entry = None
        if effects is not None:
            entry = Entry(judged.intent.act, idx, ts, judged.intent.log, judged.auth, effects.body, draft.after)
        effects = effects or Effects()
        return Planned(
            type=judged.intent.act,
            idx=idx,
            ts=ts,
            intent=judged.intent,
            args=judged.args,
            intent_id=judged.id,
            principals=tuple(sorted(judged.principals)),
            no_op=entry is None,
            entry=entry,
            data=b"" if entry is None else encode_entry(entry),
            draft=draft,
            flips=effects.flips,
            marks=effects.marks,
            snapshot=effects.snapshot,
            policy=judged.policy,
        )

    def plan_gc(self, body: GcBody, *, idx: int, ts: int) -> Planned:
        """Work out the server's own entry about a collection.  It changes no state, and any log may have it.

        # TRUST: that nothing else was dropped is the server's word.  The log says that it said so, when, and before it did it.

        Raises:
            MalformedDocument: the log has no genesis yet.
            TooLarge: the reason is too long for an entry.
            ValueError: ``idx`` or ``ts`` cannot be the next entry's (an error of the caller).
        """
        if idx != self.size or ts < self.last_ts:
            raise ValueError(f"entry {idx} at {ts} does not follow {self.size} entries up to {self.last_ts}")
        if self.policy is None or self.origin is None:
            raise MalformedDocument("the first entry of a log is its genesis, not a gc")
        draft = self.state.draft(())
        entry = Entry("gc", idx, ts, self.origin, None, gc_body(body), draft.after)
        return Planned(
            type="gc",
            idx=idx,
            ts=ts,
            intent=None,
            args=body,
            intent_id=None,
            principals=(),
            no_op=False,
            entry=entry,
            data=encode_entry(entry),
            draft=draft,
            flips=(),
            marks=(),
            snapshot=None,
            policy=self.policy,
        )

    def apply(self, planned: Planned) -> None:
        """Take in an entry that was planned on this machine as it is now.  A no-op changes nothing.

        Raises:
            ValueError: another entry was applied since (an error of the caller).
        """
        if planned.entry is None:
            return
        if planned.idx != self.size:
            raise ValueError(f"entry {planned.idx} does not follow {self.size} entries")
        self.state.apply(planned.draft)
        self.policy = planned.policy
        self.origin = planned.entry.log
        self.last_ts = planned.ts
        self.size += 1

    @property
    def root(self) -> StateRoot:
        """Number of leaves and root of the state as it is."""
        return self.state.root


def _check_seen(intent: Intent, idx: int, lookup: Lookup) -> None:
    """Hold what the signer verified against this log.

    # TRUST: this binds every act to one branch of history: a server that shows two people two logs gets intents that
    # contradict one of them, in writing.
    """
    if intent.seen_size > idx:
        raise SeenMismatch(f"the signer saw a log of {intent.seen_size} entries, this one has {idx}")
    if lookup.root_at(intent.seen_size) != intent.seen_root:
        raise SeenMismatch(f"the first {intent.seen_size} entries are not those that the signer saw")


def _effects(args: AnyArgs, at: Situation) -> Effects | None:
    match args:
        case FlipArgs():
            return do_flip(args, at)
        case SnapshotArgs():
            return do_snapshot(args, at)
        case MarkArgs():
            return do_mark(args, at)
        case HoldArgs():
            return do_hold(args, at)
        case ReleaseArgs():
            return do_release(args, at)
        case GenesisArgs() | PolicyArgs():
            return do_policy(at.policy, at)
