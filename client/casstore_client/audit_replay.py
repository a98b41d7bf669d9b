"""Levels 4 to 6 of an audit: every act is judged again, from its payload alone, on the state that the entries before led to.

Owns what becomes of a replay that fails: the entry where it fails is named, with the level that it breaks; behind it the state is
unknown, so level 5 ends there, while signatures, policy (4) and what the signers saw (6) are judged to the end.

Source: docs/formats/entry.md
"""

from __future__ import annotations

from typing import Final

from casstore.errors import CasstoreError, VerificationError
from casstore.formats.acts import OWN_ACTS, SnapshotArgs
from casstore.formats.entry import Entry, decode_entry
from casstore.formats.policy import Policy
from casstore.formats.state import PointerLeaf
from casstore.ids import SnapshotDigest
from casstore.transitions.authority import Judged, judge_entry
from casstore.transitions.replay import Replay
from casstore_client.audit_hashes import LogImage
from casstore_client.audit_report import AuditFinding, Findings

ENVELOPES: Final = 4
STATE: Final = 5
SEEN: Final = 6


class ReplayAudit:
    """Judges the entries of a log in order.

    Args:
        image: the log.
        origin: what it is called, by the trust file.
        findings: gets what does not hold.

    Threads: one at a time.
    """

    def __init__(self, image: LogImage, origin: str, findings: Findings) -> None:
        self._image = image
        self._origin = origin
        self._findings = findings
        self._replay = Replay(image.root_at, origin)
        self._policy: Policy | None = None
        self.policy_index = 0
        """The entry that brought the newest policy."""
        self.stopped_at: int | None = None
        """The first entry that the replay could not take in."""
        self.checked = 0
        """Entries that were looked at."""
        self.collected_at: int | None = None
        """The newest entry by which the server said that it drops content."""
        self.snapshots: dict[SnapshotDigest, int] = {}
        """The published snapshots, with the entry that first did so."""

    @property
    def collectable(self) -> frozenset[SnapshotDigest]:
        """Snapshots whose content may be gone: published before the newest ``gc`` entry, and named by no pointer now."""
        if self.collected_at is None or self.stopped_at is not None:
            return frozenset()
        leaves = self._replay.machine.state.leaves()
        current = {leaf.snapshot for leaf in leaves if isinstance(leaf, PointerLeaf)}
        return frozenset(d for d, index in self.snapshots.items() if index < self.collected_at and d not in current)

    @property
    def policy(self) -> Policy | None:
        """The newest policy that the entries led to."""
        return self._policy

    def take(self, first: int, end: int) -> None:
        """Judge the entries ``[first, end)``."""
        for index, data in self._image.entries(first, end):
            if data is None:
                self._stop(index, VerificationError("its bytes could not be fetched"), ENVELOPES)
            elif self.stopped_at is None:
                self._take_next(index, data)
            else:
                self._judge_alone(index, data)
            self.checked += 1

    def _take_next(self, index: int, data: bytes) -> None:
        before = self.policy
        try:
            planned = self._replay.take(data)
        except CasstoreError as error:
            repeated = self._replay.machine.size > index  # taken in, but its payload had been carried out before
            if self._judge_alone(index, data, before) and not repeated:
                self._stop(index, error, STATE)
            else:
                self._stop(index, error, ENVELOPES if repeated else None)
            return
        self._enter(index, planned.policy)
        if planned.type == "gc":
            self.collected_at = index
        if planned.snapshot is not None:
            self.snapshots.setdefault(planned.snapshot, index)

    def _enter(self, index: int, policy: Policy) -> None:
        if policy is not self._policy:
            self._policy, self.policy_index = policy, index

    def _stop(self, index: int, error: CasstoreError, level: int | None) -> None:
        if self.stopped_at is None:
            self.stopped_at = index
        if level is not None:
            self._report(level, index, error)

    def _judge_alone(self, index: int, data: bytes, policy: Policy | None = None) -> bool:
        """Judge what needs no state: form, signatures, policy, what the signer saw.

        Returns:
            whether nothing was found.
        """
        policy = self._policy if policy is None else policy
        try:
            entry = decode_entry(data)
            self._check_place(index, entry)
            if entry.type in OWN_ACTS:
                return True  # nobody asked for it, and its form was checked
            judged = judge_entry(entry, policy)
        except CasstoreError as error:
            self._report(ENVELOPES, index, error)
            return False
        self._enter(index, judged.policy)
        if isinstance(judged.args, SnapshotArgs):
            self.snapshots.setdefault(judged.args.digest, index)
        return self._check_seen(index, judged)

    def _check_place(self, index: int, entry: Entry) -> None:
        if entry.idx != index or entry.log != self._origin:
            raise VerificationError(f"it says that it is entry {entry.idx} of {entry.log}", index=index)

    def _check_seen(self, index: int, judged: Judged) -> bool:
        size, root = judged.intent.seen_size, judged.intent.seen_root
        if size <= index and self._image.root_at(size) == root:
            return True
        self._findings.add(
            AuditFinding(
                level=SEEN,
                code="seen-mismatch",
                object=f"entry {index}",
                where=f"what its signer saw: {size} entries",
                expected=self._image.root_at(size).hex() if size <= index else f"at most {index} entries",
                found=root.hex(),
            ),
            index,
        )
        return False

    def _report(self, level: int, index: int, error: CasstoreError) -> None:
        self._findings.add(
            AuditFinding(
                level=level,
                code=error.code,
                object=f"entry {index}",
                where=f"log index {index}",
                expected="an act that its signers were entitled to" if level == ENVELOPES else "what follows from it",
                found=error.detail,
            ),
            index,
        )
