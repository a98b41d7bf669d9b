"""The state: what the log amounts to, as a tree over small leaves whose root stands in every entry.

Owns the leaves (one for the policy, one for each pointer that ever was), their order, the tree over them and its
proofs. Must not know how an entry changes it: that is :mod:`casstore.transitions`.

Invariants: the state is a pure function of the entries; leaves are sorted by ``k`` and distinct; a leaf never goes
away.

A state proof shows what the log *claims*.  Replay of the entries makes it a fact; keys and policy are never taken
from here.

Source: docs/formats/state.md, RFC 6962 section 2.1
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from casstore.errors import CapacityError, MalformedDocument, PointerNotFound, VerificationError
from casstore.formats.acts import Count, HashHex, parse_id
from casstore.formats.canonical import decode_canonical, encode_canonical
from casstore.formats.entry import StateRoot
from casstore.ids import PointerName, SnapshotDigest
from casstore.limits import BAD_SNAPSHOTS_MAX, POINTERS_MAX
from casstore.merkle import StaticTree, leaf_hash, verify_inclusion

POLICY_KEY: Final = "policy"
POINTER_PREFIX: Final = "pointer/"
LEAF_SIZE_MAX_BYTES: Final = 8192  # 32 bad digests of 74 bytes each, a name of 255, with room


class HeldSince(NamedTuple):
    """A hold: the entry that put it on, and when it runs out (ms; None: when it is released)."""

    idx: int
    until: int | None

    def holds_at(self, ts: int) -> bool:
        """Whether it is in force at ``ts`` (ms).  Running out changes no state: whoever reads judges."""
        return self.until is None or ts < self.until


class PointerLeaf(NamedTuple):
    """One pointer."""

    pointer: PointerName
    snapshot: SnapshotDigest | None
    """None after a retire."""
    flip: int
    """Log index of the flip that made it so."""
    seq: int
    """How many flips it has had."""
    held: HeldSince | None
    bad: tuple[SnapshotDigest, ...]
    """Snapshots marked bad on this pointer, the newest ``BAD_SNAPSHOTS_MAX``, oldest first."""

    @property
    def key(self) -> str:
        return POINTER_PREFIX + self.pointer

    def encode(self) -> bytes:
        """The leaf's bytes."""
        return encode_canonical(
            {
                "bad": [str(digest) for digest in self.bad],
                "flip": self.flip,
                "held": None if self.held is None else {"idx": self.held.idx, "until": self.held.until},
                "k": self.key,
                "seq": self.seq,
                "snapshot": None if self.snapshot is None else str(self.snapshot),
            }
        )

    def with_bad(self, snapshot: SnapshotDigest) -> PointerLeaf:
        """The leaf with ``snapshot`` as the newest bad one."""
        others = tuple(digest for digest in self.bad if digest != snapshot)
        return self._replace(bad=(*others, snapshot)[-BAD_SNAPSHOTS_MAX:])

    def without_bad(self, snapshot: SnapshotDigest) -> PointerLeaf:
        """The leaf without ``snapshot`` among the bad ones."""
        return self._replace(bad=tuple(digest for digest in self.bad if digest != snapshot))


class PolicyLeaf(NamedTuple):
    """The policy in force: the entry that carries it, and SHA-256 of its canonical JSON."""

    idx: int
    sha256: bytes
    version: int

    @property
    def key(self) -> str:
        return POLICY_KEY

    def encode(self) -> bytes:
        """The leaf's bytes."""
        return encode_canonical(
            {"idx": self.idx, "k": POLICY_KEY, "sha256": self.sha256.hex(), "version": self.version}
        )


Leaf = PointerLeaf | PolicyLeaf


class _Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    idx: Count
    until: Count | None


class _PointerLeaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bad: Annotated[list[SnapshotDigest], msgspec.Meta(max_length=BAD_SNAPSHOTS_MAX)]
    flip: Count
    held: _Held | None
    k: str
    seq: Annotated[int, msgspec.Meta(ge=1)]
    snapshot: SnapshotDigest | None


class _PolicyLeaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    idx: Count
    k: str
    sha256: HashHex
    version: Annotated[int, msgspec.Meta(ge=1)]


def decode_leaf(data: bytes) -> Leaf:
    """Read a leaf.

    Raises:
        MalformedDocument: not a leaf in its one spelling, or of a kind that is not known here.
        InvalidName, InvalidDigest: the pointer's name or a digest.
    """
    document = decode_canonical(data, max_bytes=LEAF_SIZE_MAX_BYTES)
    key = document.get("k") if isinstance(document, dict) else None
    if not isinstance(key, str):
        raise MalformedDocument("a state leaf is an object with a key 'k'")
    try:
        if key == POLICY_KEY:
            policy = msgspec.convert(document, _PolicyLeaf)
            return PolicyLeaf(policy.idx, bytes.fromhex(policy.sha256), policy.version)
        pointer = msgspec.convert(document, _PointerLeaf, dec_hook=parse_id)
    except msgspec.ValidationError as error:
        raise MalformedDocument(f"the state leaf {key[:100]!r} is not well-formed: {error}") from error
    if not key.startswith(POINTER_PREFIX):
        raise MalformedDocument(f"a state leaf {key[:100]!r} is not known here")
    if len(set(pointer.bad)) != len(pointer.bad):
        raise MalformedDocument(f"the state leaf {key[:100]!r} names a bad snapshot twice")
    return PointerLeaf(
        pointer=PointerName.parse(key.removeprefix(POINTER_PREFIX)),
        snapshot=pointer.snapshot,
        flip=pointer.flip,
        seq=pointer.seq,
        held=None if pointer.held is None else HeldSince(pointer.held.idx, pointer.held.until),
        bad=tuple(pointer.bad),
    )


def pointer_key(pointer: PointerName) -> str:
    """The key of a pointer's leaf."""
    return POINTER_PREFIX + pointer


def policy_sha256(document: dict[str, Any]) -> bytes:
    """SHA-256 of a policy's canonical JSON, as the policy leaf holds it."""
    return hashlib.sha256(encode_canonical(document)).digest()


class LeafProof(msgspec.Struct, frozen=True):
    """A leaf, its position ``index`` among ``n``, and its inclusion proof, sibling first."""

    index: int
    n: int
    leaf: bytes
    proof: list[bytes]


class Draft(NamedTuple):
    """A state that may come to be: what would change, and the root that would result."""

    changes: tuple[Leaf, ...]
    after: StateRoot
    generation: int
    """Of the state that it was drafted on."""
    tree: StaticTree | None
    """The tree with the changes, where leaves came to be: built once, for the draft and for putting it in place."""


class State:
    """All leaves and the tree over them.

    Args:
        leaves: in any order, with distinct keys.

    Threads: one at a time.  Memory: about 1 KiB a pointer.
    """

    def __init__(self, leaves: Iterable[Leaf] = ()) -> None:
        self._leaves: dict[str, Leaf] = {}
        for leaf in leaves:
            if leaf.key in self._leaves:
                raise MalformedDocument(f"the state has the leaf {leaf.key!r} twice")
            self._leaves[leaf.key] = leaf
        self._keys = sorted(self._leaves)
        self._data = {key: leaf.encode() for key, leaf in self._leaves.items()}
        self._tree = StaticTree(self._data[key] for key in self._keys)
        self._generation = 0

    @property
    def n(self) -> int:
        """How many leaves."""
        return len(self._keys)

    @property
    def root(self) -> StateRoot:
        """Number of leaves and root, as an entry states them."""
        return StateRoot(self.n, self._tree.root)

    def leaf(self, key: str) -> Leaf | None:
        """The leaf under ``key``."""
        return self._leaves.get(key)

    def pointer(self, name: PointerName) -> PointerLeaf | None:
        """The leaf of a pointer, or None if there never was such a pointer."""
        leaf = self._leaves.get(POINTER_PREFIX + name)
        assert leaf is None or isinstance(leaf, PointerLeaf)
        return leaf

    def policy(self) -> PolicyLeaf | None:
        """The policy's leaf; None in an empty log."""
        leaf = self._leaves.get(POLICY_KEY)
        assert leaf is None or isinstance(leaf, PolicyLeaf)
        return leaf

    def leaves(self) -> list[Leaf]:
        """All leaves, sorted by key."""
        return [self._leaves[key] for key in self._keys]

    def draft(self, changes: Sequence[Leaf]) -> Draft:
        """Compute the state with ``changes`` (distinct keys) put in place, without putting them there.

        Raises:
            CapacityError: there would be more than ``POINTERS_MAX`` pointers.
        """
        new = sorted(change.key for change in changes if change.key not in self._leaves)
        if not new:
            return Draft(tuple(changes), StateRoot(self.n, self._root_with(changes)), self._generation, None)
        if self.n + len(new) > POINTERS_MAX + 1:
            raise CapacityError(f"a log has at most {POINTERS_MAX} pointers")
        data = self._data | {change.key: change.encode() for change in changes}
        tree = StaticTree(data[key] for key in sorted(data))
        return Draft(tuple(changes), StateRoot(len(data), tree.root), self._generation, tree)

    def _root_with(self, changes: Sequence[Leaf]) -> bytes:
        """The root with leaves replaced: put them in, look, put the old ones back.  2 · O(log n) hashes a leaf."""
        for change in changes:
            self._tree.set(self._index(change.key), change.encode())
        root = self._tree.root
        for change in changes:
            self._tree.set(self._index(change.key), self._data[change.key])
        return root

    def apply(self, draft: Draft) -> None:
        """Put the changes of a draft in place.

        Raises:
            ValueError: the draft was made on another state than this is now (an error of the caller).
        """
        if draft.generation != self._generation:
            raise ValueError("the draft was made on an older state")
        for change in draft.changes:
            data = change.encode()
            if change.key not in self._leaves:
                self._keys.insert(self._index(change.key), change.key)
            elif draft.tree is None:
                self._tree.set(self._index(change.key), data)
            self._leaves[change.key] = change
            self._data[change.key] = data
        self._tree = self._tree if draft.tree is None else draft.tree
        self._generation += 1
        assert self.root == draft.after

    def _index(self, key: str) -> int:
        return bisect_left(self._keys, key)

    def prove(self, key: str) -> LeafProof:
        """The proof of a leaf.

        Raises:
            PointerNotFound: there is no leaf under ``key``.
        """
        if key not in self._leaves:
            raise PointerNotFound(f"the state has no leaf {key!r}")
        return self._prove(self._index(key))

    def prove_absence(self, key: str) -> list[LeafProof]:
        """The proofs of the neighbours between which ``key`` would stand: one at an edge, none if there is no leaf.

        Raises:
            MalformedDocument: there is a leaf under ``key``.
        """
        if key in self._leaves:
            raise MalformedDocument(f"the state has a leaf {key!r}: its absence cannot be proven")
        at = self._index(key)
        return [self._prove(index) for index in (at - 1, at) if 0 <= index < self.n]

    def _prove(self, index: int) -> LeafProof:
        return LeafProof(index, self.n, self._data[self._keys[index]], self._tree.prove(index))


def verify_leaf(proof: LeafProof, state: StateRoot) -> Leaf:
    """Check that a leaf is part of the state that an entry claims.

    Raises:
        VerificationError: it is not.
        MalformedDocument, InvalidName, InvalidDigest: the leaf's bytes are not a leaf.
    """
    if proof.n != state.n:
        raise VerificationError(f"the proof is for a state of {proof.n} leaves, the log claims {state.n}")
    verify_inclusion(leaf_hash(proof.leaf), proof.index, proof.n, proof.proof, state.root)
    return decode_leaf(proof.leaf)


def verify_absence(key: str, neighbours: Sequence[LeafProof], state: StateRoot) -> None:
    """Check that the state that an entry claims has no leaf under ``key``.

    Args:
        key: such as :func:`pointer_key` gives.
        neighbours: what :meth:`State.prove_absence` gave.
        state: from the entry.

    Raises:
        VerificationError: the neighbours do not show it.
        MalformedDocument, InvalidName, InvalidDigest: a leaf's bytes are not a leaf.
    """
    leaves = [verify_leaf(proof, state) for proof in neighbours]
    before = [proof.index for proof, leaf in zip(neighbours, leaves, strict=True) if leaf.key < key]
    behind = [proof.index for proof, leaf in zip(neighbours, leaves, strict=True) if leaf.key > key]
    # The gap must be where `key` would stand, with nothing between: so the neighbour before it is at the neighbour
    # behind it less one, the beginning counting as -1 and the end as n.
    left = before[0] if before else -1
    right = behind[0] if behind else state.n
    if len(before) > 1 or len(behind) > 1 or len(before) + len(behind) != len(leaves) or left + 1 != right:
        raise VerificationError(f"the proofs do not show that the state has no leaf {key!r}")
