"""The log as this client has verified it: checkpoints that only move forward, and the policy walked from the pinned genesis.

Owns the decision whether an answer is believed.  For every checkpoint: the log's key signed it, it is not older than the trust file
allows, it covers the trust file's minimum, and it is consistent with the newest one that this user verified before.  What contradicts
that is a :class:`~casstore.errors.Regression`: both notes are kept, and nothing of the answer is used.

# TRUST: keys and policy are never taken from state.  The state's policy leaf says which policy entry is the newest; the walk from the
genesis that the trust file pins shows that its authors were entitled to it.

Source: docs/formats/trust.md
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final, NamedTuple, NoReturn

from casstore.clock import Clock
from casstore.errors import (
    AccessError,
    CasstoreError,
    Conflict,
    InvalidInput,
    Regression,
    StateError,
    VerificationError,
)
from casstore.formats.canonical import decode_b64
from casstore.formats.checkpoint import Checkpoint, OpenedCheckpoint, encode_checkpoint, open_checkpoint
from casstore.formats.policy import Policy
from casstore.formats.state import PointerLeaf, PolicyLeaf
from casstore.formats.trust import TrustFile, VerifiedState
from casstore.limits import NOTE_SIZE_MAX_BYTES
from casstore.merkle import verify_consistency
from casstore.transitions.authority import Judged, judge_entry, next_policy
from casstore.wire import ConsistencyAnswer, EntryList, ProofBundle
from casstore_client.facts import Facts, ProvenEntry, check_bundle, check_entry
from casstore_client.transport import Transport
from casstore_client.trust_store import TrustStore

_POLICY_PAGES_MAX: Final = 1000  # LIMIT: a million policy changes
_REPLACE_ATTEMPTS_MAX: Final = 100  # LIMIT: other processes of this user that are faster, each time
_UNFIT: Final = (AccessError, Conflict, InvalidInput, StateError)


class Head(NamedTuple):
    """A size and root of the log that this client believes, and where it has that from."""

    size: int
    root: bytes
    note: bytes


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
        self._steps: list[tuple[int, Policy]] = []
        """The walk: the policies by the index of the entry that brought each, in order; or only the newest of them."""

    @property
    def trust(self) -> TrustFile:
        """The trust file."""
        return self._store.trust

    @property
    def clock(self) -> Clock:
        """What the age of a checkpoint is judged by."""
        return self._clock

    async def baseline(self) -> VerifiedState | None:
        """What is verified now; the answer to a request that is sent after this must not be older."""
        return await asyncio.to_thread(self._store.load)

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
        await self._remember(opened, {}, since)
        return opened

    async def adopt(self, opened: OpenedCheckpoint, policy_index: int, policy: Policy) -> None:
        """Remember a checkpoint whose whole log was verified.

        Args:
            opened: the checkpoint.
            policy_index: the newest entry that brought a policy.
            policy: that policy.

        Raises:
            Regression: another process of this user has verified meanwhile what contradicts it.
        """
        self._steps = [(policy_index, policy)]
        await self._remember(opened, {})

    async def take_bundle(self, bundle: ProofBundle, since: VerifiedState | None) -> Facts:
        """Check a proof bundle: its checkpoint, every proof, and the envelope of every entry under the policy in force at its
        index; then remember the checkpoint and the flips that it proves.

        Args:
            bundle: from an answer.
            since: what :meth:`baseline` gave before the request was sent.

        Raises:
            Regression: as :meth:`take_note`, or a pointer is at an older flip than seen before.
            VerificationError: as :meth:`take_note`, or a proof or signature does not hold.
        """
        opened = await self._check_note(bundle.checkpoint.encode(), since, bundle)
        facts = check_bundle(bundle, opened.checkpoint)
        flips = {str(leaf.pointer): leaf.flip for leaf in facts.leaves.values() if isinstance(leaf, PointerLeaf)}
        for name, flip in flips.items():
            before = 0 if since is None else since.flips.get(name, 0)
            if flip < before:
                raise Regression(f"{name} is shown at f{flip}, it was at f{before} before", index=flip)
        steps = await self._steps_to(facts.policy())
        if any(entry <= steps[0][0] for entry in facts.entries):
            steps = await self._walk()
        judged = {idx: _judge(proven, steps) for idx, proven in facts.entries.items()}
        await self._remember(opened, flips, since)
        principals = {idx: sorted(found.principals) for idx, found in judged.items()}
        return facts._replace(principals=principals)

    async def take_entries(self, answer: EntryList, since: VerifiedState | None) -> list[ProvenEntry]:
        """Check a list of entries with their proofs; not their envelopes.

        Raises:
            Regression, VerificationError: as :meth:`take_note`.
        """
        opened = await self.take_note(answer.checkpoint.encode(), since)
        return [check_entry(proof, opened.checkpoint) for proof in answer.entries]

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def open_note(self, note: bytes) -> OpenedCheckpoint:
        """Verify a checkpoint's signatures, and nothing else.

        Raises:
            VerificationError: not signed by the log's key, or another log's.
        """
        trust = self.trust
        try:
            return open_checkpoint(note, trust.log_verifier, trust.origin, [trust.clock_verifier])
        except InvalidInput as error:
            raise VerificationError(f"the server's checkpoint is not one: {error.detail}") from error

    def held(self, since: VerifiedState | None) -> Head:
        """What a checkpoint must continue: the newest that was verified, else the trust file's minimum."""
        trust = self.trust
        if since is not None:
            checkpoint = self.open_note(since.note).checkpoint
            return Head(checkpoint.size, checkpoint.root, since.note)
        minimum = Checkpoint(trust.origin, trust.minimum_size, trust.minimum_root)
        return Head(minimum.size, minimum.root, encode_checkpoint(minimum).encode())

    def check_age(self, opened: OpenedCheckpoint) -> int:
        """Check that a checkpoint is fresh; gives the time that the clock key states, ms since the epoch.

        Raises:
            VerificationError: it is too old, or nobody says how old it is.
        """
        trust = self.trust
        seen_ms = opened.cosigned_at_ms.get(trust.clock_verifier.name)
        if seen_ms is None:
            raise VerificationError("nobody vouches for the age of the checkpoint: the clock key did not sign it")
        age_s = (self._clock.now_ms() - seen_ms) // 1000
        if age_s > trust.max_age_s:
            raise VerificationError(
                f"the checkpoint is {age_s} s old, the trust file allows {trust.max_age_s} s",
                hint="is the server's or this machine's clock wrong, or is somebody showing an old state?",
            )
        return seen_ms

    async def raise_alarm(self, held: Head, shown: bytes, what: str, size: int) -> NoReturn:
        """Keep both statements and raise.

        Raises:
            Regression: always.
        """
        folder = await asyncio.to_thread(self._store.keep_contradiction, held.note, shown)
        # A server that was restored from an old backup does not know what it signed since.  Shown the note, it stops writing.
        with suppress(CasstoreError):
            await self._transport.request(
                "POST", "/v1/log/heads", step="alarm", body=held.note, body_media="text/plain"
            )
        raise Regression(
            f"REGRESSION: {what}. This client was shown a different history before",
            hint=f"both checkpoints are kept in {folder}: compare with another client before you trust this server",
            index=size,
        )

    async def _check_note(
        self, note: bytes, since: VerifiedState | None, bundle: ProofBundle | None = None
    ) -> OpenedCheckpoint:
        opened = self.open_note(note)
        # ORDER: an older or other history before its age: the first is an alarm, the second may be a wrong clock.
        await self._check_continues(self.held(since), opened, bundle)
        self.check_age(opened)
        return opened

    async def _check_continues(self, held: Head, shown: OpenedCheckpoint, bundle: ProofBundle | None = None) -> None:
        size, root = shown.checkpoint.size, shown.checkpoint.root
        if size < held.size:
            await self.raise_alarm(held, shown.note, f"the log has {size} entries, it had {held.size} before", size)
        if size == held.size and root != held.root:
            await self.raise_alarm(held, shown.note, f"the log of {size} entries has another root than before", size)
        if held.size in (0, size):
            return
        if bundle is not None and bundle.since == held.size:
            hashes = bundle.consistency  # the answer brought the proof along
        else:
            params = {"from": str(held.size), "to": str(size)}
            path = "/v1/log/proof/consistency"
            hashes = (await self._transport.get_json(path, ConsistencyAnswer, step="proof", params=params)).proof
        try:
            proof = [decode_b64(text) for text in hashes]
            verify_consistency(held.size, size, held.root, root, proof)
        except (VerificationError, InvalidInput) as error:
            what = f"the log of {size} entries does not continue that of {held.size}: {error.detail}"
            await self.raise_alarm(held, shown.note, what, size)

    async def _remember(
        self, opened: OpenedCheckpoint, flips: dict[str, int], since: VerifiedState | None = None
    ) -> None:
        """Save what was verified, whatever other processes of this user save meanwhile.

        Args:
            opened: the checkpoint, which continues ``since``.
            flips: the newest flip of pointers.
            since: what was verified before.
        """
        tip_index, tip = (await self._known_steps())[-1]
        for _ in range(_REPLACE_ATTEMPTS_MAX):
            newest = await self.baseline()
            note, known = opened.note, {} if newest is None else dict(newest.flips)
            if newest is not None:
                if since is None or newest.note != since.note:
                    note = await self._newer(newest, opened)
                if newest.policy_idx > tip_index:
                    tip_index, tip = newest.policy_idx, Policy(newest.policy)
            for name, flip in flips.items():
                known[name] = max(flip, known.get(name, 0))
            state = VerifiedState(note, tip_index, tip.document, (self.trust.log_vkey,), known)
            if state == newest or await asyncio.to_thread(self._store.replace, newest, state):
                return
        raise VerificationError("what was verified could not be saved: other processes were faster every time")

    async def _newer(self, newest: VerifiedState, opened: OpenedCheckpoint) -> bytes:
        """The larger of two verified checkpoints, once it is shown to continue the smaller one."""
        other = self.open_note(newest.note)
        if other.checkpoint == opened.checkpoint:
            return newest.note
        low, high = sorted([other, opened], key=lambda one: one.checkpoint.size)
        await self._check_continues(Head(low.checkpoint.size, low.checkpoint.root, low.note), high)
        return high.note

    # --- policy ------------------------------------------------------------------------------------------------------

    async def check_policy(self, index: int, document: dict[str, Any]) -> None:
        """Check that a policy is the newest one, walked to from the pinned genesis.

        Args:
            index: of the entry that carries it.
            document: the whole policy.

        Raises:
            VerificationError: it is not.
        """
        await self.policy_version()
        found, policy = self._steps[-1]
        if (index, document) != (found, policy.document):
            raise VerificationError(
                f"the server says that entry {index} carries the policy, the log proves that entry {found} carries another",
                index=found,
            )

    async def known_policy_version(self) -> int:
        """The version of the newest policy that the walk has reached; asks the server only if there was no walk yet.

        Raises:
            VerificationError: the walk does not hold.
        """
        return (await self._known_steps())[-1][1].version

    async def policy_version(self) -> int:
        """The version of the newest policy that the server shows, walked to from the pinned genesis.

        Raises:
            VerificationError: the walk does not hold.
        """
        index, policy = (await self._known_steps())[-1]
        answer = await self._transport.get_json(
            "/v1/log/policies", EntryList, step="policies", params={"after": str(index)}
        )
        if answer.entries:
            policy = (await self._walk())[-1][1]
        return policy.version

    async def _steps_to(self, leaf: PolicyLeaf) -> list[tuple[int, Policy]]:
        """The walk up to the policy that a state's policy leaf names.

        Raises:
            VerificationError: the walk does not lead there.
        """
        steps = await self._known_steps()
        if steps[-1][0] != leaf.idx:
            steps = await self._walk()
        steps = [step for step in steps if step[0] <= leaf.idx]
        index, policy = steps[-1] if steps else (-1, None)
        if policy is None or (index, policy.sha256, policy.version) != (leaf.idx, leaf.sha256, leaf.version):
            raise VerificationError(
                f"the state says that the policy is version {leaf.version} of entry {leaf.idx}; the walk from the genesis "
                "does not lead there",
                index=leaf.idx,
            )
        return steps

    async def _known_steps(self) -> list[tuple[int, Policy]]:
        if not self._steps:
            state = await self.baseline()
            if state is None:
                return await self._walk()
            self._steps = [(state.policy_idx, Policy(state.policy))]
        return self._steps

    async def _walk(self) -> list[tuple[int, Policy]]:
        """Fetch and judge every policy entry, from the genesis on."""
        since = await self.baseline()
        steps: list[tuple[int, Policy]] = []
        for _ in range(_POLICY_PAGES_MAX):
            params = {"after": str(steps[-1][0])} if steps else {}
            answer = await self._transport.get_json("/v1/log/policies", EntryList, step="policies", params=params)
            if not answer.entries:
                break
            checkpoint = (await self._check_note(answer.checkpoint.encode(), since)).checkpoint
            for proof in answer.entries:
                proven = check_entry(proof, checkpoint)
                if proven.idx <= (steps[-1][0] if steps else -1):
                    raise VerificationError("the server lists policy entries out of order", index=proven.idx)
                if not steps:
                    self.trust.check_genesis(proven.data)
                steps.append((proven.idx, judge_step(steps[-1][1] if steps else None, proven)))
        if not steps:
            raise VerificationError("the server shows no policy at all", index=0)
        self._steps = steps
        return steps


async def fetch_note(transport: Transport) -> bytes:
    """The newest checkpoint's note, unverified."""
    reply = await transport.request(
        "GET", "/log/checkpoint", step="checkpoint", media="text/plain", max_bytes=NOTE_SIZE_MAX_BYTES
    )
    return reply.body


def refuse_absence(name: str, since: VerifiedState | None) -> None:
    """Refuse to be told that a pointer never was, where this user has verified that it was: names do not go away.

    Raises:
        Regression: it was.
    """
    if since is not None and name in since.flips:
        raise Regression(f"the server says that {name} never was, it was at f{since.flips[name]} before")


def judge_step(policy: Policy | None, proven: ProvenEntry) -> Policy:
    """The policy that an entry brings, made by who may make it.

    Raises:
        VerificationError: it was not.
    """
    try:
        return next_policy(policy, proven.entry)
    except _UNFIT as error:
        raise VerificationError(
            f"the policy of entry {proven.idx} was not made by who may make it: {error.detail}", index=proven.idx
        ) from error


def _judge(proven: ProvenEntry, steps: list[tuple[int, Policy]]) -> Judged:
    """Judge an entry by the policy in force just before it."""
    before = [policy for index, policy in steps if index < proven.idx]
    if not before and proven.entry.type != "genesis":
        raise VerificationError(f"no policy was in force before entry {proven.idx}", index=proven.idx)
    try:
        return judge_entry(proven.entry, before[-1] if before else None)
    except _UNFIT as error:
        raise VerificationError(
            f"entry {proven.idx} stands in the log and was not allowed: {error.detail}", index=proven.idx
        ) from error
