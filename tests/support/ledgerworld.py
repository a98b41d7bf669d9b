"""The ledger's side of a store over the storage in memory: real services, real keys, a clock that stands still.

What it holds outlives :meth:`LedgerWorld.reopen`, which builds every service anew over the same tables, as a restart does.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

from casstore.clock import ManualClock
from casstore.engine.blobs import BlobService
from casstore.engine.clockguard import ClockGuard
from casstore.engine.findings import Findings
from casstore.engine.fsck_ledger import fsck_ledger
from casstore.engine.log import LogHead, LogService
from casstore.engine.packs import PackService
from casstore.engine.pointers import Caller, Expect, PointerService, SignedSubmission, Submission, UnsignedFlip
from casstore.engine.presence import Presence
from casstore.engine.proofs import LogReader
from casstore.engine.snapshots import SnapshotService
from casstore.engine.tokens import TokenService
from casstore.engine.trees import TreeService
from casstore.errors import CasstoreError, OutcomeUnknown
from casstore.formats.acts import (
    FlipArgs,
    GenesisArgs,
    HoldArgs,
    MarkArgs,
    Member,
    PolicyArgs,
    ReleaseArgs,
    SnapshotArgs,
    args_of,
    flip_args,
)
from casstore.formats.canonical import decode_b64
from casstore.formats.checkpoint import OpenedCheckpoint, open_checkpoint
from casstore.formats.entry import decode_entry
from casstore.formats.intent import Intent, encode_intent, sign_intent
from casstore.formats.policy import first_policy
from casstore.formats.snapshot import Snapshot, encode_snapshot, snapshot_digest
from casstore.formats.state import LeafProof, PointerLeaf, verify_leaf
from casstore.ids import PackId, PointerName, PrincipalName, SnapshotDigest
from casstore.merkle import EMPTY_ROOT, leaf_hash, verify_inclusion
from casstore.signing import SignatureType, SigningKey
from casstore.storage.memory.index import MemoryChunkIndex
from casstore.storage.memory.ledger import MemoryLedger
from casstore.storage.memory.packs import MemoryPackStore
from casstore.wire import FsckReport, ProofBundle, Submitted

ORIGIN = "casstore/0123456789abcdef"
API = PointerName("prod/api")
WEB = PointerName("prod/web")
OPEN = PointerName("open/site")


def key_of(name: str, kind: SignatureType = SignatureType.ED25519) -> SigningKey:
    """The same key for the same name, in every run."""
    return SigningKey.generate(name, hashlib.sha256(b"ledger world " + name.encode()).digest(), kind)


class MemoryHeads:
    """Signed heads that outlive a reopen; ``failing`` makes the next append fail as a dying disk does."""

    def __init__(self) -> None:
        self.heads: list[LogHead] = []
        self.failing = False

    def make_room(self) -> None:
        """There is always room in memory."""

    def append(self, size: int, root: bytes) -> None:
        if self.failing:
            raise OutcomeUnknown("a head may or may not be on record: Input/output error")
        self.heads.append(LogHead(size, root))

    def read_all(self) -> list[LogHead]:
        return list(self.heads)

    def compact(self, size: int, root: bytes) -> None:
        self.heads = [LogHead(size, root)]


def world_policy(version: int = 1) -> dict[str, Any]:
    """operator may do everything everywhere; alice and bob deploy and roll back; ``open/**`` takes unsigned acts."""
    names = ["alice", "bob", "operator"]
    policy = first_policy("operator", key_of("operator").verifier.encode(), key_of(ORIGIN).verifier.encode())
    rule = policy["rules"][0]
    verb = {"threshold": 1, "who": names}
    rule |= {"deploy": verb, "mark": verb, "rollback": {**verb, "confirmed_good_only": False, "max_age_days": None}}
    unsigned = {**rule, "pointers": "open/**", "unsigned": True}
    policy["principals"] = [{"keys": [key_of(name).verifier.encode()], "name": name} for name in names]
    policy["publishers"] = names
    policy["rules"] = [unsigned, rule]
    policy["version"] = version
    return policy


class LedgerWorld:
    """One log, from its genesis on.

    Args:
        ledger: another one than :class:`MemoryLedger`, to make it fail.
        policy: another one than :func:`world_policy`.
    """

    def __init__(self, ledger: MemoryLedger | None = None, policy: dict[str, Any] | None = None) -> None:
        self.clock = ManualClock()
        self.random = random.Random(7)
        self.ledger = ledger or MemoryLedger()
        self.heads = MemoryHeads()
        names = iter(range(1, 1 << 30))
        self.packs = PackService(
            MemoryPackStore(), MemoryChunkIndex(), new_pack_id=lambda: PackId(next(names).to_bytes(16, "big"))
        )
        presence = Presence(self.packs)
        self.content = SnapshotService(self.packs, presence, TreeService(self.packs, presence), BlobService(self.packs))
        self.reopen()
        args = GenesisArgs(policy=policy or world_policy(), prev=None)
        self.one(self.sign("genesis", args, policy=0, seen_root=EMPTY_ROOT, seen_size=0))

    def reopen(self) -> None:
        """Build every service anew, as a restart does."""
        self.guard = ClockGuard(self.clock)
        self.log = LogService(self.ledger, self.heads, key_of(ORIGIN), self.clock_key, self.guard)
        self.reader = LogReader(self.ledger, self.log)
        self.pointers = PointerService(self.ledger, self.log, self.guard, self.content, self.random.randbytes)
        self.tokens = TokenService(self.ledger, self.clock, self.random.randbytes)
        self.log.recover()

    @property
    def clock_key(self) -> SigningKey:
        return key_of(ORIGIN + "/clock", SignatureType.COSIGNATURE)

    # --- asking ----------------------------------------------------------------------------------------------------------

    def sign(self, act: str, args: Any, by: str = "operator", **changes: Any) -> SignedSubmission:
        """A signed intent; ``changes`` replace fields of it before it is signed."""
        now = self.clock.now_ms()
        fields: dict[str, Any] = {
            "act": act,
            "args": args_of(args),
            "exp": now + 60_000,
            "iat": now,
            "log": ORIGIN,
            "nonce": self.random.randbytes(16).hex(),
            "policy": 1,
            "why": "CHG-1",
            **changes,
        }
        if "seen_size" not in fields:
            published = self.log.published()
            fields |= {"seen_root": published.root, "seen_size": published.size}
        return SignedSubmission(sign_intent(encode_intent(Intent(**fields)), [key_of(by)]))

    def ask_flip(
        self,
        pointer: PointerName,
        to: SnapshotDigest | None,
        expect: int | None,
        *,
        kind: str | None = None,
        resolve: str | None = None,
        left: tuple[bool, bool] = (False, False),
        clear: tuple[bool, bool] = (False, False),
        **changes: Any,
    ) -> SignedSubmission:
        """A signed flip of one pointer."""
        kind = kind or ("init" if expect is None else "deploy")
        members = [Member(expect=expect, pointer=pointer, to=to)]
        args: FlipArgs = flip_args(kind, members, resolve=resolve, left=left, clear=clear)  # type: ignore[arg-type]
        return self.sign("flip", args, **changes)

    def ask_rollback(self, pointer: PointerName, by: str = "operator", **changes: Any) -> SignedSubmission:
        """A signed rollback to what the server says is previous."""
        target = self.pointers.rollback_target(pointer)
        return self.ask_flip(
            pointer,
            SnapshotDigest.parse(target.target),
            target.current.flip,
            kind="rollback",
            resolve="previous",
            left=(True, True),
            by=by,
            **changes,
        )

    def ask_open(self, to: SnapshotDigest, expect: Expect, key: str | None = None, by: str = "alice") -> UnsignedFlip:
        """An unsigned flip of :data:`OPEN`."""
        return UnsignedFlip(OPEN, to, expect, "by hand", Caller("00112233aabbccdd", PrincipalName(by), key))

    def submit(self, *batch: Submission) -> list[Submitted | CasstoreError]:
        return self.pointers.submit(batch)

    def one(self, submission: Submission) -> Submitted:
        """Submit one; raise what rejects it."""
        answer = self.submit(submission)[0]
        if isinstance(answer, CasstoreError):
            raise answer
        return answer

    # --- doing -----------------------------------------------------------------------------------------------------------

    def publish(self, name: str) -> SnapshotDigest:
        """Store and publish a snapshot that needs no content."""
        document = encode_snapshot(Snapshot(metadata={"name": name}))
        self.content.put([document])
        digest = snapshot_digest(document)
        self.one(self.sign("snapshot", SnapshotArgs(digest=digest, parents=[], size=len(document))))
        return digest

    def flip(self, pointer: PointerName, to: SnapshotDigest | None, expect: int | None, **more: Any) -> int:
        """Flip, and return the new flip's number."""
        return self.one(self.ask_flip(pointer, to, expect, **more)).entry

    def rollback(self, pointer: PointerName, **more: Any) -> Submitted:
        return self.one(self.ask_rollback(pointer, **more))

    def mark(self, pointer: PointerName, snapshot: SnapshotDigest, verdict: str) -> Submitted:
        args = MarkArgs(pointer=pointer, snapshot=snapshot, verdict=verdict)  # type: ignore[arg-type]
        return self.one(self.sign("mark", args))

    def hold(self, pointer: PointerName, until: int | None = None) -> Submitted:
        return self.one(self.sign("hold", HoldArgs(pointer=pointer, until=until)))

    def release(self, pointer: PointerName) -> Submitted:
        return self.one(self.sign("release", ReleaseArgs(pointer=pointer)))

    def change_policy(self, policy: dict[str, Any]) -> Submitted:
        return self.one(self.sign("policy", PolicyArgs(policy=policy, version=policy["version"])))

    # --- judging ---------------------------------------------------------------------------------------------------------

    def fsck(self) -> FsckReport:
        findings = Findings()
        fsck_ledger(self.ledger, self.heads.read_all(), findings, origin=ORIGIN)
        return findings.report()

    def open_checkpoint(self, note: bytes) -> OpenedCheckpoint:
        return open_checkpoint(note, key_of(ORIGIN).verifier, ORIGIN, [self.clock_key.verifier])

    def verify(self, bundle: ProofBundle | None) -> list[PointerLeaf]:
        """Hold every fact of a bundle against its checkpoint, as a client does; returns the pointers' state leaves."""
        assert bundle is not None
        checkpoint = self.open_checkpoint(bundle.checkpoint.encode()).checkpoint
        assert checkpoint.size == bundle.size == bundle.head.index + 1
        for proof in (bundle.head, *bundle.entries):
            data = decode_b64(proof.entry)
            hashes = [decode_b64(value) for value in proof.proof]
            verify_inclusion(leaf_hash(data), proof.index, checkpoint.size, hashes, checkpoint.root)
            assert decode_entry(data).idx == proof.index
        head = decode_entry(decode_b64(bundle.head.entry))
        leaves = [
            verify_leaf(
                LeafProof(state.index, state.n, decode_b64(state.leaf), [decode_b64(value) for value in state.proof]),
                head.state,
            )
            for state in bundle.state
        ]
        return [leaf for leaf in leaves if isinstance(leaf, PointerLeaf)]
