"""Replay: what turns the claims of a log into facts.

Owns the judgement of an entry that someone else wrote.  It plans the act again, from the payload alone, on the state
that the entries before led to, and demands the very bytes of the entry.

Source: docs/formats/entry.md
"""

from __future__ import annotations

from collections.abc import Callable

from casstore.errors import CasstoreError, Unsupported, VerificationError
from casstore.formats.entry import Entry, decode_entry, gc_of
from casstore.transitions.authority import act_of
from casstore.transitions.effects import Planned
from casstore.transitions.lookup import Lookup, MemoryLookup
from casstore.transitions.machine import Machine


def replay_planned(machine: Machine, data: bytes, lookup: Lookup) -> Planned:
    """Judge the next entry of a log and take it in.

    Args:
        machine: has taken in all entries before.
        data: the entry's bytes.
        lookup: the entries before.  Content is not judged where it says None.

    Raises:
        VerificationError: the entry is not well-formed, not the next one, not allowed, not possible, does nothing, or
        says
            something else than what follows from its payload; ``index`` says where.
        Unsupported: the entry is of a kind that this version does not know how to judge.
    """
    idx = machine.size
    try:
        entry = decode_entry(data)
        _check_place(machine, entry)
        if entry.type == "gc":
            planned = machine.plan_gc(gc_of(entry), idx=idx, ts=entry.ts)
        else:
            planned = machine.plan(act_of(entry), idx=idx, ts=entry.ts, lookup=lookup)
    except Unsupported:
        raise
    except CasstoreError as error:
        raise VerificationError(f"entry {idx} does not hold: {error.detail}", index=idx) from error
    if planned.entry is None:
        raise VerificationError(f"entry {idx} does nothing: the world was as asked before it", index=idx)
    if planned.data != data:
        raise VerificationError(_difference(entry, planned.entry), index=idx)
    machine.apply(planned)
    return planned


def replay_entry(machine: Machine, data: bytes, lookup: Lookup) -> Entry:
    """As :func:`replay_planned`, giving the entry.

    Raises:
        VerificationError, Unsupported: as there.
    """
    entry = replay_planned(machine, data, lookup).entry
    assert entry is not None
    return entry


class Replay:
    """The replay of a log from its first entry, in memory.

    Args:
        root_at: the root of the log tree over the first so many entries, for what signers say that they saw.
        origin: the log's; None takes the genesis's word.
    """

    def __init__(self, root_at: Callable[[int], bytes], origin: str | None = None) -> None:
        self.machine = Machine(origin)
        self.lookup = MemoryLookup(root_at)

    def take(self, data: bytes) -> Planned:
        """Judge the next entry and take it in.

        Raises:
            VerificationError: as :func:`replay_planned`, or the entry repeats the payload of an earlier one.
            Unsupported: as :func:`replay_planned`.
        """
        index = self.machine.size
        planned = replay_planned(self.machine, data, self.lookup)
        if planned.intent_id is not None and self.lookup.intent_used(planned.intent_id):
            # The machine has moved on; a replay that has found the log wrong is over.
            raise VerificationError(
                f"entry {index} carries out an intent that an earlier entry carried out", index=index
            )
        self.lookup.record(planned)
        return planned


def _check_place(machine: Machine, entry: Entry) -> None:
    if entry.idx != machine.size:
        raise VerificationError(f"it says that it is entry {entry.idx}", index=machine.size)
    if entry.ts < machine.last_ts:
        raise VerificationError(f"it is of {entry.ts}, the entry before it of {machine.last_ts}", index=machine.size)


def _difference(found: Entry, expected: Entry) -> str:
    """Say what the server wrote that does not follow from the payload."""
    for name in ("type", "log", "auth", "body", "state"):
        if getattr(found, name) != getattr(expected, name):
            return (
                f"entry {found.idx} has a {name} that does not follow from what was signed and from the entries before"
            )
    return f"entry {found.idx} is not what follows from what was signed"
