"""What readers see: the published log, its state tree and the pointers, at one and the same size.

Owns the step in which a committed batch becomes visible.  A commit is in the ledger before it is signed; were readers to
look there, they would see a pointer that no checkpoint covers yet.  So what changes in place (the state tree, the pointers'
records) is kept here as of the newest *published* checkpoint, and changes together with it, under one lock that is held for
microseconds.  What is append-only (entries, nodes, history) is read from the ledger and cut at the published size.

Memory: about 2 KiB a pointer, ``POINTERS_MAX`` of them at most.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import NamedTuple

from casstore.engine.log import LogService, Published
from casstore.engine.records import PointerRecord
from casstore.errors import PointerNotFound
from casstore.formats.canonical import encode_b64
from casstore.formats.state import POLICY_KEY, Leaf, PointerLeaf, PolicyLeaf, State, pointer_key
from casstore.ids import PointerName
from casstore.wire import StateProof


class Sight(NamedTuple):
    """Pointers and, where they were asked for, the checkpoint and the state proofs: of each pointer, last of the policy."""

    published: Published | None
    records: list[tuple[PointerName, PointerRecord]]
    proofs: list[StateProof]


class PublishedView:
    """The pointers as of the newest checkpoint.

    Args:
        log: publishes the checkpoint itself.
        leaves: the state at open.
        records: the pointers at open.
        size: of the log at open.

    Threads: :meth:`advance` belongs to the ledger writer; everything else to any thread.
    """

    def __init__(
        self, log: LogService, leaves: Iterable[Leaf], records: Mapping[PointerName, PointerRecord], size: int
    ) -> None:
        self._log = log
        self._lock = Lock()
        self._state = State(leaves)
        self._records = dict(records)
        self._names = sorted(self._records)
        self._size = size

    @property
    def size(self) -> int:
        """How many entries are visible."""
        return self._size

    def advance(
        self, published: Published, drafts: Sequence[Sequence[Leaf]], records: Mapping[PointerName, PointerRecord]
    ) -> None:
        """Show a committed and signed batch.

        Args:
            published: its checkpoint.
            drafts: the leaves that each entry changed, in order.
            records: the pointers that changed, as they are now.

        Threads: ledger writer.
        """
        final: dict[str, Leaf] = {leaf.key: leaf for leaves in drafts for leaf in leaves}
        with self._lock:
            if final:
                self._state.apply(self._state.draft(list(final.values())))
            self._records.update(records)
            if len(self._records) != len(self._names):
                self._names = sorted(self._records)
            self._size = published.size
            self._log.publish(published)

    def look(self, names: Sequence[PointerName], *, prove: bool) -> Sight:
        """Pointers by name; those that do not exist are left out.

        Args:
            prove: also give checkpoint and state proofs, of the same moment.

        Raises:
            LogUnavailable: proofs were asked for and nothing is published.
        """
        with self._lock:
            records = [(name, self._records[name]) for name in names if name in self._records]
            if not prove:
                return Sight(None, records, [])
            # TRUST: which policy is in force travels with every proof, so nobody can hide the newest one from a reader.
            keys = [*(pointer_key(name) for name, _ in records), POLICY_KEY]
            return Sight(self._log.published(), records, [self._prove(key) for key in keys])

    def one(self, name: PointerName, *, prove: bool = False) -> tuple[PointerRecord, Sight]:
        """One pointer.

        Raises:
            PointerNotFound: there never was a pointer of that name.
            LogUnavailable: a proof was asked for and nothing is published.
        """
        sight = self.look([name], prove=prove)
        if not sight.records:
            raise PointerNotFound(f"there is no pointer {name}")
        return sight.records[0][1], sight

    def leaf(self, name: PointerName) -> tuple[PointerRecord, PointerLeaf]:
        """One pointer with its state leaf.

        Raises:
            PointerNotFound: there never was a pointer of that name.
        """
        with self._lock:
            record, leaf = self._records.get(name), self._state.pointer(name)
        if record is None or leaf is None:
            raise PointerNotFound(f"there is no pointer {name}")
        return record, leaf

    def names(self, prefix: str, after: str, limit: int) -> list[PointerName]:
        """Names that begin with ``prefix``, ascending behind ``after``, at most ``limit``."""
        with self._lock:
            names = self._names
        start = bisect_left(names, max(prefix, after))
        found: list[PointerName] = []
        for name in names[start:]:
            if not name.startswith(prefix) or len(found) == limit:
                break
            if name > after:
                found.append(name)
        return found

    def policy(self) -> PolicyLeaf:
        """The leaf of the policy in force."""
        with self._lock:
            leaf = self._state.policy()
        assert leaf is not None, "a log begins with a policy"
        return leaf

    def count(self) -> int:
        """How many pointers there are, retired ones included."""
        return len(self._records)

    def _prove(self, key: str) -> StateProof:
        proof = self._state.prove(key)
        return StateProof(
            index=proof.index,
            n=proof.n,
            leaf=encode_b64(proof.leaf),
            proof=[encode_b64(value) for value in proof.proof],
        )
