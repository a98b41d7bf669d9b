"""A log in memory with real keys, real hashes and a real replay, for the tests of transitions and formats.

Every act goes through the machine as on a server; :meth:`World.replay` judges the result anew as an auditor does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from casstore.formats.acts import (
    AnyArgs,
    Clear,
    FlipArgs,
    GenesisArgs,
    HoldArgs,
    Left,
    MarkArgs,
    Member,
    PolicyArgs,
    ReleaseArgs,
    SnapshotArgs,
    args_of,
    flip_args,
)
from casstore.formats.entry import Entry
from casstore.formats.intent import Intent, encode_intent, sign_intent
from casstore.formats.policy import first_policy
from casstore.ids import PointerName, PrincipalName, SnapshotDigest
from casstore.merkle import Frontier, leaf_hash
from casstore.signing import SigningKey
from casstore.transitions.effects import Planned
from casstore.transitions.lookup import MemoryLookup
from casstore.transitions.machine import Machine, SignedAct, UnsignedAct
from casstore.transitions.replay import Replay

ORIGIN = "casstore/0011223344556677"
START_MS = 1_785_888_000_000


def key(name: str) -> SigningKey:
    """The same key for the same name, in every run."""
    return SigningKey.generate(name, hashlib.sha256(b"seed of " + name.encode()).digest())


def snap(name: str) -> SnapshotDigest:
    """A digest to flip to."""
    return SnapshotDigest(hashlib.sha256(b"snapshot " + name.encode()).digest())


def ptr(name: str) -> PointerName:
    return PointerName.parse(name)


LOG_KEY = key(ORIGIN)


def rule(
    pointers: str, deploy: Sequence[str], rollback: Sequence[str] | None = None, /, **changes: Any
) -> dict[str, Any]:
    """A rule with threshold 1 for everything that is not changed."""
    back = sorted(deploy if rollback is None else rollback)
    return {
        "breakglass": None,
        "deploy": {"threshold": 1, "who": sorted(deploy)},
        "freeze": None,
        "gating": "none",
        "mark": None,
        "max_intent_ms": 3_600_000,
        "pointers": pointers,
        "require": [],
        "rollback": {"confirmed_good_only": False, "max_age_days": None, "threshold": 1, "who": back},
        "unsigned": False,
        "witness": {"deploy": "none", "rollback": "none"},
        **changes,
    }


def policy_document(
    *rules: dict[str, Any], people: Sequence[str] = ("alice", "bob", "carol"), **changes: Any
) -> dict[str, Any]:
    """A policy in which all of ``people`` are principals with one key each."""
    people = sorted(people)
    return {
        "hosts": [],
        "log_keys": [LOG_KEY.verifier.encode()],
        "principals": [{"keys": [key(name).verifier.encode()], "name": name} for name in people],
        "publishers": list(people),
        "root": {"threshold": 1, "who": [people[0]]},
        "rules": list(rules) or [rule("**", people)],
        "version": 1,
        "witnesses": "",
        **changes,
    }


class ServerLookup(MemoryLookup):
    """What a server knows beyond an auditor: which content is there."""

    def __init__(self, world: World) -> None:
        super().__init__(lambda size: world.roots[size])
        self.incomplete: set[SnapshotDigest] = set()

    def is_complete(self, snapshot: SnapshotDigest) -> bool | None:
        return snapshot not in self.incomplete

    def missing(self, snapshot: SnapshotDigest) -> tuple[list[str], int]:
        return ["blake3:" + "00" * 32], 1


class World:
    """A log that starts with a genesis and the snapshots A to F published."""

    def __init__(self, policy: dict[str, Any] | None = None, *, snapshots: str = "ABCDEF") -> None:
        self.machine = Machine(ORIGIN)
        self.frontier = Frontier()
        self.roots = [self.frontier.root]
        self.entries: list[bytes] = []
        self.lookup = ServerLookup(self)
        self.ts = START_MS
        self._nonce = 0
        document = policy or first_policy("alice", key("alice").verifier.encode(), LOG_KEY.verifier.encode())
        self.root_names = document["root"]["who"]
        self.do(GenesisArgs(policy=document, prev=None), self.root_names)
        for name in snapshots:
            self.publish(name)

    def intent(self, args: AnyArgs, **changes: Any) -> bytes:
        """A payload as an honest client would make it now, with ``changes``."""
        self._nonce += 1
        act = type(args).__name__.removesuffix("Args").lower()
        policy = self.machine.policy
        intent = Intent(
            act=act,
            args=args_of(args),
            exp=self.ts + 60_000,
            iat=self.ts,
            log=ORIGIN,
            nonce=f"{self._nonce:032x}",
            policy=0 if policy is None else policy.version,
            seen_root=self.roots[-1],
            seen_size=len(self.entries),
            why="because",
        )
        return encode_intent(intent._replace(**changes))

    def plan(self, act: SignedAct | UnsignedAct) -> Planned:
        return self.machine.plan(act, idx=len(self.entries), ts=self.ts, lookup=self.lookup)

    def commit(self, planned: Planned) -> Planned:
        """What a server does with a planned entry."""
        self.machine.apply(planned)
        if planned.entry is not None:
            self.lookup.record(planned)
            self.entries.append(planned.data)
            self.frontier.append(leaf_hash(planned.data))
            self.roots.append(self.frontier.root)
        return planned

    def sign(self, args: AnyArgs, who: Sequence[str] = ("alice",), **changes: Any) -> SignedAct:
        return SignedAct(sign_intent(self.intent(args, **changes), [key(name) for name in who]))

    def do(self, args: AnyArgs, who: Sequence[str] = ("alice",), **changes: Any) -> Planned:
        """Sign, plan, commit; a second passes."""
        planned = self.commit(self.plan(self.sign(args, who, **changes)))
        self.ts += 1000
        return planned

    def vouch(self, args: AnyArgs, principal: str = "alice") -> UnsignedAct:
        return UnsignedAct(self.intent(args), "0123456789abcdef", PrincipalName.parse(principal))

    def publish(self, name: str, who: Sequence[str] | None = None) -> Planned:
        who = ["alice"] if who is None else who
        return self.do(SnapshotArgs(digest=snap(name), parents=[], size=100), who)

    def member(self, pointer: str, to: str | None) -> Member:
        """A member that expects what is there now."""
        leaf = self.machine.state.pointer(ptr(pointer))
        target = None if to is None else snap(to)
        return Member(expect=None if leaf is None else leaf.flip, pointer=ptr(pointer), to=target)

    def flip_args(self, pointer: str, to: str | None, kind: Any = "deploy", **options: Any) -> FlipArgs:
        return flip_args(kind, [self.member(pointer, to)], **options)

    def flip(
        self, pointer: str, to: str | None, kind: Any = "deploy", who: Sequence[str] = ("alice",), **options: Any
    ) -> Planned:
        return self.do(self.flip_args(pointer, to, kind, **options), who)

    def rollback(
        self, pointer: str, to: str, who: Sequence[str] = ("alice",), *, left: tuple[bool, bool] = (True, True)
    ) -> Planned:
        """To what ``previous`` resolves to, which must be ``to``."""
        return self.do(self.flip_args(pointer, to, "rollback", resolve="previous", left=left), who)

    def mark(self, pointer: str, snapshot: str, verdict: Any, who: Sequence[str] = ("alice",)) -> Planned:
        return self.do(MarkArgs(pointer=ptr(pointer), snapshot=snap(snapshot), verdict=verdict), who)

    def hold(self, pointer: str, until: int | None = None, who: Sequence[str] = ("alice",)) -> Planned:
        return self.do(HoldArgs(pointer=ptr(pointer), until=until), who)

    def release(self, pointer: str, who: Sequence[str] = ("alice",)) -> Planned:
        return self.do(ReleaseArgs(pointer=ptr(pointer)), who)

    def set_policy(self, document: dict[str, Any], who: Sequence[str] = ("alice",)) -> Planned:
        return self.do(PolicyArgs(policy=document, version=document["version"]), who)

    def live(self, pointer: str) -> SnapshotDigest | None:
        leaf = self.machine.state.pointer(ptr(pointer))
        assert leaf is not None
        return leaf.snapshot

    def replay(self) -> Replay:
        """Judge the whole log anew; the machines must agree."""
        replay = Replay(lambda size: self.roots[size])
        for data in self.entries:
            replay.take(data)
        assert replay.machine.root == self.machine.root
        return replay

    def entry(self, index: int = -1) -> Entry:
        from casstore.formats.entry import decode_entry

        return decode_entry(self.entries[index])


__all__ = ["LOG_KEY", "ORIGIN", "START_MS", "Clear", "Left", "World", "key", "policy_document", "ptr", "rule", "snap"]
