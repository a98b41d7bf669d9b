"""The log as this client has verified it: checkpoints that only move forward, and the policy walked from the pinned genesis.

Owns the decision whether an answer is believed.  For every checkpoint: the log's key signed it, it is not older than the trust file
allows, it covers the trust file's minimum, and it is consistent with the newest one that this user verified before.  What contradicts
that is a :class:`~casstore.errors.Regression`: both notes are kept, and nothing of the answer is used.

# TRUST: keys and policy are never taken from state.  The state's policy leaf says which policy entry is the newest; the walk from the
# genesis that the trust file pins shows that its authors were entitled to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from casstore.clock import Clock
from casstore.errors import AccessError, Conflict, InvalidInput, Regression, StateError, VerificationError
from casstore.formats.canonical import decode_b64, encode_b64
from casstore.formats.checkpoint import OpenedCheckpoint, open_checkpoint
from casstore.formats.policy import Policy
from casstore.formats.state import PolicyLeaf, policy_sha256
from casstore.formats.trust import VerifiedState
from casstore.merkle import verify_consistency
from casstore.transitions.authority import judge_entry, next_policy
from casstore.wire import ConsistencyAnswer, EntryList, ProofBundle
from casstore_client.facts import Facts, ProvenEntry, check_bundle, check_entry
from casstore_client.transport import Transport
from casstore_client.trust_store import TrustStore

_POLICY_PAGES_MAX = 1000  # LIMIT: a million policy changes


class _Head(NamedTuple):
    size: int
    root: bytes
    note: bytes


class _Walk(NamedTuple):
    """The policies in force, by the index of the entry that brought each, in order."""

    steps: list[tuple[int, Policy]]

    def at(self, index: int) -> Policy:
        """The policy in force just before entry ``index``."""
        found = [policy for entry, policy in self.steps if entry < index]
        if not found:
            raise VerificationError(f"no policy was in force before entry {index}", index=index)
        return found[-1]


class VerifiedLog:
    """Checks answers of one server against one trust file.

    Args:
        transport: for what a check needs beyond the answer (consistency proofs, policy entries).
        store: what is trusted and what was verified.
        clock: to judge the age of a checkpoint.
    """

    def __init__(self, transport: Transport, store: TrustStore, clock: Clock) -> None:
        self._transport = transport
        self._store = store
        self._clock = clock
        self._tip: tuple[int, Policy] | None = None

    @property
    def origin(self) -> str:
        """The log that is trusted."""
        return self._store.trust.origin

    def baseline(self) -> VerifiedState | None:
        """What is verified now; an answer to a request that is sent after this must not be older."""
        return self._store.load()

    async def take_note(self, note: bytes, since: VerifiedState | None) -> OpenedCheckpoint:
        """Check a checkpoint and remember it.

        Args:
            note: the signed note.
            since: what :meth:`baseline` gave before the request was sent.

        Raises:
            Regression: it is older than, or contradicts, what was verified before.
            VerificationError: it is not signed by the log, too old, or below the trust file's minimum.
        """
        opened = await self._check_note(note, since)
        await self._remember(opened, {})
        return opened

    async def take_bundle(self, bundle: ProofBundle, since: VerifiedState | None, flips: dict[str, int] | None = None) -> Facts:
        """Check a proof bundle: its checkpoint, every proof, and the envelope of every entry under the policy in force at its index.

        Args:
            bundle: from an answer.
            since: what :meth:`baseline` gave before the request was sent.
            flips: the newest flip of each pointer as this answer shows it; never lower than seen before.

        Raises:
            Regression, VerificationError: as :meth:`take_note`; or a proof or signature does not hold.
        """
        opened = await self._check_note(bundle.checkpoint.encode(), since)
        facts = check_bundle(bundle, opened.checkpoint)
        if flips and since is not None:
            for name, flip in flips.items():
                if flip < since.flips.get(name, 0):
                    raise Regression(f"{name} is shown at f{flip}, it was at f{since.flips[name]} before", index=flip)
        await self._check_envelopes(facts)
        await self._remember(opened, flips or {})
        return facts

    async def take_entries(self, answer: EntryList, since: VerifiedState | None) -> list[ProvenEntry]:
        """Check a list of entries with their proofs; not their envelopes.

        Raises:
            Regression, VerificationError: as :meth:`take_note`.
        """
        opened = await self.take_note(answer.checkpoint.encode(), since)
        return [check_entry(proof, opened.checkpoint) for proof in answer.entries]

    # --- checkpoints ---------------------------------------------------------------------------------------------------

    def open_note(self, note: bytes) -> OpenedCheckpoint:
        """Verify a checkpoint's signatures, and nothing else.

        Raises:
            VerificationError: not signed by the log's key, or another log's.
        """
        trust = self._store.trust
        try:
            return open_checkpoint(note, trust.log_verifier, trust.origin, [trust.clock_verifier])
        except InvalidInput as error:
            raise VerificationError(f"the server's checkpoint is not one: {error.detail}") from error

    async def _check_note(self, note: bytes, since: VerifiedState | None) -> OpenedCheckpoint:
        opened = self.open_note(note)
        self._check_age(opened)
        trust = self._store.trust
        if since is None:
            held = _Head(trust.minimum_size, trust.minimum_root, b"")
        else:
            before = self.open_note(since.note).checkpoint
            held = _Head(before.size, before.root, since.note)
        await self._check_consistency(held, opened)
        return opened

    def _check_age(self, opened: OpenedCheckpoint) -> None:
        trust = self._store.trust
        seen_ms = opened.cosigned_at_ms.get(trust.clock_verifier.name)
        if seen_ms is None:
            raise VerificationError("nobody vouches for the age of the checkpoint: the clock key did not sign it")
        age_s = (self._clock.now_ms() - seen_ms) // 1000
        if age_s > trust.max_age_s:
            raise VerificationError(
                f"the checkpoint is {age_s} s old, the trust file allows {trust.max_age_s} s",
                hint="is the server's or this machine's clock wrong, or is somebody showing an old state?",
            )

    async def _check_consistency(self, held: _Head, shown: OpenedCheckpoint) -> None:
        checkpoint = shown.checkpoint
        if checkpoint.size < held.size:
            self._alarm(held, shown, f"the log has {checkpoint.size} entries, it had {held.size} before")
        if held.size in (0, checkpoint.size):
            proof: list[bytes] = []
            if held.size and checkpoint.root != held.root:
                self._alarm(held, shown, f"the log of {held.size} entries has another root than before")
            return
        params = {"from": str(held.size), "to": str(checkpoint.size)}
        path = "/v1/log/proof/consistency"
        answer = await self._transport.get_json(path, ConsistencyAnswer, step="proof", params=params)
        try:
            proof = [decode_b64(text) for text in answer.proof]
            verify_consistency(held.size, checkpoint.size, held.root, checkpoint.root, proof)
        except (VerificationError, InvalidInput) as error:
            self._alarm(held, shown, f"the log of {checkpoint.size} entries does not continue that of {held.size}: {error.detail}")

    def _alarm(self, held: _Head, shown: OpenedCheckpoint, what: str) -> None:
        folder = self._store.keep_contradiction(held.note, shown.note)
        raise Regression(
            f"REGRESSION: {what}. This client was shown a different history before",
            hint=f"both checkpoints are kept in {folder}: compare with another client before you trust this server again",
            index=shown.checkpoint.size,
        )

    async def _remember(self, opened: OpenedCheckpoint, flips: dict[str, int]) -> None:
        """Save what was verified, unless another process has verified more meanwhile."""
        # Both are verified from one baseline; which is the larger is decided under the lock, and they must agree as well.
        newest = self._store.load()
        if newest is not None:
            other = self.open_note(newest.note)
            low, high = sorted([other, opened], key=lambda o: o.checkpoint.size)
            await self._check_consistency(_Head(low.checkpoint.size, low.checkpoint.root, low.note), high)
        tip = await self._policy_tip()
        with self._store.locked():
            newest = self._store.load()
            note, known = opened.note, dict(newest.flips) if newest is not None else {}
            if newest is not None and self.open_note(newest.note).checkpoint.size > opened.checkpoint.size:
                note = newest.note
            for name, flip in flips.items():
                known[name] = max(flip, known.get(name, 0))
            if newest is not None and newest.policy_idx > tip[0]:
                tip = (newest.policy_idx, Policy(newest.policy))
            self._store.save(VerifiedState(note, tip[0], tip[1].document, (self._store.trust.log_vkey,), known))

    # --- policy --------------------------------------------------------------------------------------------------------

    async def policy_for(self, leaf: PolicyLeaf) -> Policy:
        """The policy that a state's policy leaf names, walked to from the pinned genesis.

        Raises:
            VerificationError: the walk does not lead there.
        """
        index, policy = await self._policy_tip()
        if index < leaf.idx:
            index, policy = (await self._walk()).steps[-1]
            self._tip = (index, policy)
        if index != leaf.idx or policy_sha256(policy.document) != leaf.sha256 or policy.version != leaf.version:
            raise VerificationError(
                f"the state says that the policy is version {leaf.version} of entry {leaf.idx}, the walk from the genesis leads to "
                f"version {policy.version} of entry {index}",
                index=leaf.idx,
            )
        return policy

    async def policy_version(self) -> int:
        """The version of the newest policy that the server shows, walked to from the pinned genesis."""
        index, policy = await self._policy_tip()
        answer = await self._transport.get_json("/v1/log/policies", EntryList, step="policies", params={"after": str(index)})
        if answer.entries:
            self._tip = (await self._walk()).steps[-1]
            policy = self._tip[1]
        return policy.version

    async def _policy_tip(self) -> tuple[int, Policy]:
        if self._tip is None:
            state = self._store.load()
            self._tip = (await self._walk()).steps[-1] if state is None else (state.policy_idx, Policy(state.policy))
        return self._tip

    async def _walk(self) -> _Walk:
        """Fetch and judge every policy entry from the genesis on."""
        steps: list[tuple[int, Policy]] = []
        policy: Policy | None = None
        after: int | None = None
        for _ in range(_POLICY_PAGES_MAX):
            params = {} if after is None else {"after": str(after)}
            answer = await self._transport.get_json("/v1/log/policies", EntryList, step="policies", params=params)
            if not answer.entries:
                break
            checkpoint = self.open_note(answer.checkpoint.encode()).checkpoint
            for proof in answer.entries:
                proven = check_entry(proof, checkpoint)
                if after is not None and proven.index <= after:
                    raise VerificationError("the server lists policy entries out of order", index=proven.index)
                if policy is None:
                    self._store.trust.check_genesis(proven.data)
                policy = self._judge_step(policy, proven)
                steps.append((proven.index, policy))
                after = proven.index
        if not steps:
            raise VerificationError("the server shows no policy at all", index=0)
        return _Walk(steps)

    @staticmethod
    def _judge_step(policy: Policy | None, proven: ProvenEntry) -> Policy:
        try:
            return next_policy(policy, proven.entry)
        except (AccessError, Conflict, InvalidInput, StateError) as error:
            raise VerificationError(
                f"the policy of entry {proven.index} was not made by who may make it: {error.detail}", index=proven.index
            ) from error

    async def _check_envelopes(self, facts: Facts) -> None:
        """Judge every entry by the policy in force just before it."""
        tip_index, tip = await self._policy_tip()
        if "policy" in facts.leaves:
            tip = await self.policy_for(facts.policy())
            tip_index = facts.policy().idx
        old = [proven for proven in facts.entries.values() if proven.index <= tip_index]
        walk = await self._walk() if old else _Walk([(tip_index, tip)])
        self._judge_all(facts.entries.values(), walk)

    @staticmethod
    def _judge_all(entries: Iterable[ProvenEntry], walk: _Walk) -> None:
        for proven in entries:
            if proven.entry.type == "genesis":
                continue  # judged by the walk itself
            try:
                judge_entry(proven.entry, walk.at(proven.index))
            except (AccessError, Conflict, InvalidInput, StateError) as error:
                raise VerificationError(
                    f"entry {proven.index} stands in the log and was not allowed: {error.detail}", index=proven.index
                ) from error


def note_text(opened: OpenedCheckpoint) -> dict[str, object]:
    """A checkpoint for ``--json``."""
    return {
        "origin": opened.checkpoint.origin,
        "size": opened.checkpoint.size,
        "root": encode_b64(opened.checkpoint.root),
        "note": opened.note.decode(),
    }
