"""The log tree: RFC 6962 hashes, proofs, and what must be stored to make them.

Owns the tree's arithmetic.  It must not know what an entry means, where nodes are stored, or how proofs travel.

A *node* ``(level, position)`` is the hash over the complete run of leaves ``[position * 2^level, (position + 1) *
2^level)``; level 0 are the leaf hashes.  Only complete nodes are stored, so a stored node never changes.  Functions
that need nodes take ``get_nodes``, which answers a whole list at once: every function here asks once.

Invariants: every proof that is made here verifies here; verification needs no node; ``verify_*`` raises or returns
None.

Source: RFC 6962 section 2.1, RFC 9162 sections 2.1.3 and 2.1.4
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from casstore.errors import InvalidInput, VerificationError

HASH_BYTES: Final = 32
PROOF_HASHES_MAX: Final = 63  # a tree of 2^63 leaves
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

NodeId = tuple[int, int]
GetNodes = Callable[[Sequence[NodeId]], Sequence[bytes]]

_sha256 = hashlib.sha256


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf: SHA-256 of 0x00 and the entry's bytes."""
    return _sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node: SHA-256 of 0x01 and its two children."""
    return _sha256(b"\x01" + left + right).digest()


# --- which nodes make up a run of leaves -----------------------------------------------------------------------------


def _split(size: int) -> int:
    """The largest power of two below ``size``, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def _nodes_of(start: int, end: int) -> list[NodeId]:
    """The complete nodes that cover ``[start, end)``, left to right.

    ``start`` is aligned to the largest power of two within the run: so it is for every run that RFC 6962 ever splits
    off.
    """
    nodes = []
    while start < end:
        level = (end - start).bit_length() - 1
        nodes.append((level, start >> level))
        start += 1 << level
    return nodes


def _fold(hashes: Sequence[bytes]) -> bytes:
    """The hash over a run, from the hashes of its complete nodes, left to right."""
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


def _hashes_of(runs: Sequence[tuple[int, int]], get_nodes: GetNodes) -> list[bytes]:
    """The hash over each run, with a single question to ``get_nodes``."""
    wanted = [_nodes_of(start, end) for start, end in runs]
    flat = [node for nodes in wanted for node in nodes]
    found = get_nodes(flat) if flat else []
    if len(found) != len(flat):
        raise InvalidInput(f"{len(flat)} nodes were asked for, {len(found)} came")
    hashes, position = [], 0
    for nodes in wanted:
        hashes.append(_fold(found[position : position + len(nodes)]))
        position += len(nodes)
    return hashes


# --- making proofs ---------------------------------------------------------------------------------------------------


def root_at(size: int, get_nodes: GetNodes) -> bytes:
    """The root of the tree of the first ``size`` leaves.

    Args:
        size: leaves, 0 included.
        get_nodes: answers complete nodes below ``size``.

    Raises:
        InvalidInput: a negative size.
    """
    if size < 0:
        raise InvalidInput(f"a tree cannot have {size} leaves")
    return _hashes_of([(0, size)], get_nodes)[0] if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, get_nodes: GetNodes) -> list[bytes]:
    """The hashes that lead from leaf ``index`` to the root at ``size``, the leaf's sibling first.

    Args:
        index: the leaf, from 0.
        size: leaves in the tree; ``index < size``.
        get_nodes: answers complete nodes below ``size``.

    Raises:
        InvalidInput: the index is not in the tree.

    Source: RFC 9162 section 2.1.3.1
    """
    if not 0 <= index < size:
        raise InvalidInput(f"leaf {index} is not in a tree of {size} leaves")
    start, end = 0, size
    siblings = []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            siblings.append((middle, end))
            end = middle
        else:
            siblings.append((start, middle))
            start = middle
    return _hashes_of(siblings[::-1], get_nodes)


def consistency_proof(size_from: int, size_to: int, get_nodes: GetNodes) -> list[bytes]:
    """The hashes that show the tree at ``size_to`` to continue the tree at ``size_from``.

    From size 0, and from a size to itself, nothing needs showing: the proof is empty.

    Args:
        size_from: leaves in the older tree.
        size_to: leaves in the newer tree; at least ``size_from``.
        get_nodes: answers complete nodes below ``size_to``.

    Raises:
        InvalidInput: sizes out of order.

    Source: RFC 9162 section 2.1.4.1
    """
    if not 0 <= size_from <= size_to:
        raise InvalidInput(f"a tree of {size_to} leaves cannot continue one of {size_from}")
    if size_from in (0, size_to):
        return []
    start, end = 0, size_to
    siblings = []
    while end != size_from:
        middle = start + _split(end - start)
        if size_from <= middle:
            siblings.append((middle, end))
            end = middle
        else:
            siblings.append((start, middle))
            start = middle
    # The verifier holds the older root: the run it starts from is sent unless that run is the whole older tree.
    runs = ([(start, end)] if start else []) + siblings[::-1]
    return _hashes_of(runs, get_nodes)


# --- verifying -------------------------------------------------------------------------------------------------------


def _check_hashes(hashes: Iterable[bytes]) -> None:
    if any(len(value) != HASH_BYTES for value in hashes):
        raise VerificationError(f"a hash of the log tree has {HASH_BYTES} bytes")


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf is in a tree.

    Args:
        leaf: the leaf's hash (:func:`leaf_hash`), 32 bytes.
        index: where it is said to be, from 0.
        size: leaves in the tree.
        proof: the hashes, the leaf's sibling first.
        root: the tree's root, 32 bytes, from a verified checkpoint.

    Raises:
        VerificationError: the proof does not lead from this leaf to this root.

    Source: RFC 9162 section 2.1.3.2
    """
    _check_hashes([leaf, root, *proof])
    if not 0 <= index < size:
        raise VerificationError(f"leaf {index} is not in a tree of {size} leaves", index=index)
    node, last = index, size - 1
    value = leaf
    for sibling in proof:
        if last == 0:
            raise VerificationError(f"the proof for leaf {index} of {size} is too long", index=index)
        if node & 1 or node == last:
            value = node_hash(sibling, value)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            value = node_hash(value, sibling)
        node >>= 1
        last >>= 1
    if last:
        raise VerificationError(f"the proof for leaf {index} of {size} is too short", index=index)
    if value != root:
        raise VerificationError(f"the proof does not lead from leaf {index} to the root at size {size}", index=index)


def verify_consistency(size_from: int, size_to: int, root_from: bytes, root_to: bytes, proof: Sequence[bytes]) -> None:
    """Check that the newer tree continues the older one.

    Args:
        size_from: leaves in the older tree, at least 1: who has seen nothing has nothing to check.
        size_to: leaves in the newer tree.
        root_from: root of the older tree, 32 bytes.
        root_to: root of the newer tree, 32 bytes.
        proof: the hashes; empty exactly where the sizes are equal.

    Raises:
        VerificationError: the newer tree is not shown to continue the older one.

    Source: RFC 9162 section 2.1.4.2
    """
    if not 1 <= size_from <= size_to:
        raise VerificationError(f"nothing can be shown from a tree of {size_from} leaves to one of {size_to}")
    if size_from == size_to:
        if proof:
            raise VerificationError(f"the proof from size {size_from} to itself is not empty")
        if root_from != root_to:
            raise VerificationError(f"there are two roots at size {size_from}")
        return
    _check_hashes([root_from, root_to, *proof])
    # Where the older tree is one complete node, that node is its root: the proof leaves it out.
    path = [root_from, *proof] if size_from & (size_from - 1) == 0 else list(proof)
    if len(path) < 2:
        raise VerificationError(f"the proof from size {size_from} to {size_to} is too short")
    node, last = size_from - 1, size_to - 1
    while node & 1:
        node >>= 1
        last >>= 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise VerificationError(f"the proof from size {size_from} to {size_to} is too long")
        if node & 1 or node == last:
            old = node_hash(sibling, old)
            new = node_hash(sibling, new)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            new = node_hash(new, sibling)
        node >>= 1
        last >>= 1
    if last:
        raise VerificationError(f"the proof from size {size_from} to {size_to} is too short")
    if old != root_from:
        raise VerificationError(f"the proof does not lead to the older root, at size {size_from}")
    if new != root_to:
        raise VerificationError(f"the proof does not lead to the newer root, at size {size_to}")


# --- growing ---------------------------------------------------------------------------------------------------------


class Frontier:
    """The right edge of a growing tree: enough to append and to know the root, in at most 63 hashes.

    Threads: one at a time.
    """

    __slots__ = ("_edge", "size")

    size: int
    """Leaves so far."""

    def __init__(self) -> None:
        self._edge: list[bytes] = []
        self.size = 0

    @classmethod
    def load(cls, size: int, get_nodes: GetNodes) -> Frontier:
        """The edge of a stored tree.

        Args:
            size: its leaves.
            get_nodes: answers complete nodes below ``size``; asked once, for at most 63.

        Raises:
            InvalidInput: a negative size, or an answer of another length than the question.
        """
        if size < 0:
            raise InvalidInput(f"a tree cannot have {size} leaves")
        frontier = cls()
        nodes = _nodes_of(0, size)
        edge = list(get_nodes(nodes)) if nodes else []
        if len(edge) != len(nodes):
            raise InvalidInput(f"{len(nodes)} nodes were asked for, {len(edge)} came")
        frontier._edge, frontier.size = edge, size
        return frontier

    def append(self, leaf: bytes) -> list[tuple[NodeId, bytes]]:
        """Add a leaf.

        Args:
            leaf: its hash (:func:`leaf_hash`).

        Returns:
            the nodes that became complete, the leaf first: what the caller stores.
        """
        position, level, value = self.size, 0, leaf
        new = [((0, position), value)]
        # Each 1-bit at the bottom of the old size is a complete node that now finds its right sibling.
        while position & 1:
            value = node_hash(self._edge.pop(), value)
            position >>= 1
            level += 1
            new.append(((level, position), value))
        self._edge.append(value)
        self.size += 1
        return new

    @property
    def root(self) -> bytes:
        """The root of the tree as it stands."""
        return _fold(self._edge) if self._edge else EMPTY_ROOT

    def copy(self) -> Frontier:
        """Another edge that starts from here: to try a batch that may yet be abandoned."""
        twin = Frontier()
        twin._edge, twin.size = self._edge.copy(), self.size
        return twin


def append_nodes(size: int, leaf: bytes, get_nodes: GetNodes) -> list[tuple[NodeId, bytes]]:
    """The nodes that become complete when one leaf is added, the leaf first.

    Args:
        size: leaves before.
        leaf: the new leaf's hash.
        get_nodes: answers complete nodes below ``size``.

    Raises:
        InvalidInput: a negative size.
    """
    return Frontier.load(size, get_nodes).append(leaf)


class StaticTree:
    """A whole tree in memory whose leaves may be replaced and inserted: the tree over the log's state.

    Replacing a leaf costs O(log n) hashes; inserting one costs the hashes of everything to its right.

    Args:
        leaves: the bytes of each leaf, in order (hashed here).

    Threads: one at a time.
    """

    __slots__ = ("_levels",)

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        # Level 0 are the leaf hashes; each higher level pairs up the one below, and an odd last one moves up as it is.
        # That is RFC 6962's tree: splitting at the largest power of two below n only ever separates such pairs.
        self._levels: list[list[bytes]] = [[leaf_hash(leaf) for leaf in leaves]]
        self._rebuild(0)

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        """The root of the tree as it stands."""
        return self._levels[-1][0] if self._levels[0] else EMPTY_ROOT

    def hash_at(self, index: int) -> bytes:
        """The hash of a leaf.

        Raises:
            InvalidInput: there is no such leaf.
        """
        self._check_index(index)
        return self._levels[0][index]

    def set(self, index: int, leaf: bytes) -> None:
        """Replace a leaf.

        Args:
            index: which, from 0.
            leaf: its new bytes.

        Raises:
            InvalidInput: there is no such leaf.
        """
        self._check_index(index)
        self._levels[0][index] = leaf_hash(leaf)
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            index >>= 1
            above[index] = _parent(below, index)

    def insert(self, index: int, leaf: bytes) -> None:
        """Put a new leaf before the one that is now at ``index``; at the end where ``index`` is the length.

        Raises:
            InvalidInput: the index is beyond the end.
        """
        if not 0 <= index <= len(self):
            raise InvalidInput(f"a leaf cannot go to {index} in a tree of {len(self)} leaves")
        self._levels[0].insert(index, leaf_hash(leaf))
        self._rebuild(index)

    def prove(self, index: int) -> list[bytes]:
        """The inclusion proof of a leaf, its sibling first.

        Raises:
            InvalidInput: there is no such leaf.
        """
        self._check_index(index)
        proof = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                proof.append(level[sibling])
            index >>= 1
        return proof

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise InvalidInput(f"leaf {index} is not in a tree of {len(self)} leaves")

    def _rebuild(self, start: int) -> None:
        """Hash again whatever lies above the leaves from ``start`` on."""
        level = 0
        while len(self._levels[level]) > 1:
            below = self._levels[level]
            start >>= 1
            if level + 1 == len(self._levels):
                self._levels.append([])
            above = self._levels[level + 1]
            above[start:] = [_parent(below, position) for position in range(start, (len(below) + 1) // 2)]
            level += 1


def _parent(below: Sequence[bytes], position: int) -> bytes:
    left = 2 * position
    return node_hash(below[left], below[left + 1]) if left + 1 < len(below) else below[left]
