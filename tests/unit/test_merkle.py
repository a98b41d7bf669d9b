"""The log tree against the public vectors, and against its definition at every small size.

What breaks here makes an honest log look forked, or a forked one honest.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import InvalidInput, VerificationError
from casstore.merkle import (
    EMPTY_ROOT,
    PROOF_HASHES_MAX,
    Frontier,
    NodeId,
    StaticTree,
    append_nodes,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_at,
    verify_consistency,
    verify_inclusion,
)

GOLDEN = Path(__file__).parent.parent / "golden"
INCLUSION: list[dict[str, Any]] = json.loads((GOLDEN / "merkle-inclusion.json").read_text())
CONSISTENCY: list[dict[str, Any]] = json.loads((GOLDEN / "merkle-consistency.json").read_text())
ROOTS: dict[str, Any] = json.loads((GOLDEN / "merkle-roots.json").read_text())
SIZES = 130

LEAVES = [leaf_hash(b"entry %d" % number) for number in range(SIZES)]


@cache
def mth(start: int, end: int) -> bytes:
    """The definition, word for word: RFC 6962 section 2.1."""
    if end - start == 1:
        return LEAVES[start]
    k = 1
    while 2 * k < end - start:
        k *= 2
    return node_hash(mth(start, start + k), mth(start + k, end))


def path(m: int, start: int, end: int) -> list[bytes]:
    """PATH(m, D[n]) of RFC 6962 section 2.1.1."""
    if end - start == 1:
        return []
    k = 1
    while 2 * k < end - start:
        k *= 2
    if m < start + k:
        return [*path(m, start, start + k), mth(start + k, end)]
    return [*path(m, start + k, end), mth(start, start + k)]


def subproof(m: int, start: int, end: int, complete: bool) -> list[bytes]:
    """SUBPROOF(m, D[n], b) of RFC 6962 section 2.1.2; ``m`` counts from ``start``."""
    if m == end - start:
        return [] if complete else [mth(start, end)]
    k = 1
    while 2 * k < end - start:
        k *= 2
    if m <= k:
        return [*subproof(m, start, start + k, complete), mth(start + k, end)]
    return [*subproof(m - k, start + k, end, False), mth(start, start + k)]


class Nodes:
    """Complete nodes, and only those: asking for another one, or twice in one call, is an error."""

    def __init__(self) -> None:
        self.stored: dict[NodeId, bytes] = {}
        self.questions = 0

    def get(self, ids: Sequence[NodeId]) -> list[bytes]:
        assert ids
        assert len(set(ids)) == len(ids)
        self.questions += 1
        return [self.stored[node] for node in ids]


def grow(size: int) -> Nodes:
    nodes, frontier = Nodes(), Frontier()
    for leaf in LEAVES[:size]:
        nodes.stored.update(frontier.append(leaf))
    return nodes


def unpack(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def test_all_public_vectors_are_there() -> None:
    assert (len(INCLUSION), len(CONSISTENCY)) == (98, 98)
    for cases in (INCLUSION, CONSISTENCY):
        assert {case["wantErr"] for case in cases} == {True, False}


@pytest.mark.parametrize("case", INCLUSION, ids=lambda case: case["case"])
def test_inclusion_vectors(case: dict[str, Any]) -> None:
    proof = [unpack(value) for value in case["proof"] or []]
    arguments = unpack(case["leafHash"]), case["leafIdx"], case["treeSize"], proof, unpack(case["root"])
    if case["wantErr"]:
        with pytest.raises(VerificationError):
            verify_inclusion(*arguments)
    else:
        verify_inclusion(*arguments)


@pytest.mark.parametrize("case", CONSISTENCY, ids=lambda case: case["case"])
def test_consistency_vectors(case: dict[str, Any]) -> None:
    proof = [unpack(value) for value in case["proof"] or []]
    arguments = case["size1"], case["size2"], unpack(case["root1"]), unpack(case["root2"]), proof
    if case["wantErr"]:
        with pytest.raises(VerificationError):
            verify_consistency(*arguments)
    else:
        verify_consistency(*arguments)


def test_roots_of_the_reference_tree() -> None:
    frontier = Frontier()
    roots = [frontier.root.hex()]
    for leaf in ROOTS["leaves"]:
        frontier.append(leaf_hash(bytes.fromhex(leaf)))
        roots.append(frontier.root.hex())
    assert roots == ROOTS["roots"]
    assert roots[0] == EMPTY_ROOT.hex()


def test_roots_at_every_size() -> None:
    nodes = grow(SIZES)
    for size in range(1, SIZES + 1):
        assert root_at(size, nodes.get) == mth(0, size)
    assert root_at(0, nodes.get) == EMPTY_ROOT


def test_only_complete_nodes_are_stored_each_once() -> None:
    frontier = Frontier()
    seen: dict[NodeId, bytes] = {}
    for size, leaf in enumerate(LEAVES):
        new = frontier.append(leaf)
        assert new[0] == ((0, size), leaf)
        for (level, position), value in new:
            assert (level, position) not in seen
            assert (position + 1) << level <= size + 1
            assert value == mth(position << level, (position + 1) << level)
            seen[level, position] = value
    complete = {(level, position) for level in range(8) for position in range(SIZES >> level)}
    assert set(seen) == complete


def test_appending_from_storage_is_appending_in_memory() -> None:
    nodes = Nodes()
    for size, leaf in enumerate(LEAVES):
        twin = Frontier.load(size, nodes.get)
        assert twin.root == (mth(0, size) if size else EMPTY_ROOT)
        new = append_nodes(size, leaf, nodes.get)
        assert new == twin.append(leaf)
        assert (twin.size, twin.root) == (size + 1, mth(0, size + 1))
        nodes.stored.update(new)


def test_a_copied_frontier_goes_its_own_way() -> None:
    frontier = Frontier()
    for leaf in LEAVES[:5]:
        frontier.append(leaf)
    twin = frontier.copy()
    twin.append(LEAVES[5])
    assert (frontier.size, frontier.root) == (5, mth(0, 5))
    assert (twin.size, twin.root) == (6, mth(0, 6))


def test_every_inclusion_proof_up_to_130() -> None:
    nodes = grow(SIZES)
    for size in range(1, SIZES + 1):
        root = mth(0, size)
        for index in range(size):
            before = nodes.questions
            proof = inclusion_proof(index, size, nodes.get)
            assert nodes.questions - before == (1 if proof else 0)
            assert proof == path(index, 0, size)
            verify_inclusion(LEAVES[index], index, size, proof, root)


def test_every_consistency_proof_up_to_130() -> None:
    nodes = grow(SIZES)
    for size_to in range(1, SIZES + 1):
        for size_from in range(1, size_to + 1):
            before = nodes.questions
            proof = consistency_proof(size_from, size_to, nodes.get)
            assert nodes.questions - before == (1 if proof else 0)
            assert proof == subproof(size_from, 0, size_to, True)
            verify_consistency(size_from, size_to, mth(0, size_from), mth(0, size_to), proof)


def test_no_proof_of_one_leaf_or_size_passes_for_another() -> None:
    nodes = grow(20)
    for size in range(1, 21):
        root = mth(0, size)
        for index in range(size):
            proof = inclusion_proof(index, size, nodes.get)
            for other in range(-1, size + 2):
                if other != index:
                    with pytest.raises(VerificationError):
                        verify_inclusion(LEAVES[index], other, size, proof, root)
        for size_from in range(1, size):
            proof = consistency_proof(size_from, size, nodes.get)
            for other in range(-1, size + 2):
                if other != size_from:
                    with pytest.raises(VerificationError):
                        verify_consistency(other, size, mth(0, size_from), root, proof)


def test_every_flipped_bit_and_every_lost_or_added_hash_is_refused() -> None:
    nodes = grow(21)
    inclusion, root = inclusion_proof(13, 21, nodes.get), mth(0, 21)
    for changed in _broken(inclusion):
        with pytest.raises(VerificationError):
            verify_inclusion(LEAVES[13], 13, 21, changed, root)
    for size_from in (8, 13):
        consistency = consistency_proof(size_from, 21, nodes.get)
        for changed in _broken(consistency):
            with pytest.raises(VerificationError):
                verify_consistency(size_from, 21, mth(0, size_from), root, changed)


def _broken(proof: list[bytes]) -> list[list[bytes]]:
    broken = []
    for position, value in enumerate(proof):
        for bit in range(256):
            other = (int.from_bytes(value, "big") ^ 1 << bit).to_bytes(32, "big")
            broken.append([*proof[:position], other, *proof[position + 1 :]])
        broken.append([*proof[:position], *proof[position + 1 :]])
        broken.append([*proof[:position], value[:-1], *proof[position + 1 :]])
        broken.append([*proof[:position], value + b"\x00", *proof[position + 1 :]])
        broken.append([*proof[:position], value, *proof[position:]])
    broken += [[], [*proof, bytes(32)], [bytes(32), *proof], [*proof, *proof], proof[::-1]]
    return broken


def test_hashes_of_other_lengths_are_refused_everywhere() -> None:
    for leaf, root in [(b"", EMPTY_ROOT), (LEAVES[0], b""), (LEAVES[0][:31], LEAVES[0][:31])]:
        with pytest.raises(VerificationError):
            verify_inclusion(leaf, 0, 1, [], root)
        with pytest.raises(VerificationError):
            verify_consistency(1, 2, leaf, root, [LEAVES[1]])
    with pytest.raises(VerificationError):
        verify_consistency(1, 2, LEAVES[0], mth(0, 2), [LEAVES[1][:31]])


def test_nothing_shows_from_an_empty_tree() -> None:
    nodes = grow(3)
    assert consistency_proof(0, 3, nodes.get) == consistency_proof(3, 3, nodes.get) == []
    with pytest.raises(VerificationError):
        verify_consistency(0, 3, EMPTY_ROOT, mth(0, 3), [])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 3), (3, 3), (4, 3)])
def test_leaves_outside_the_tree_have_no_proof(index: int, size: int) -> None:
    with pytest.raises(InvalidInput):
        inclusion_proof(index, size, grow(3).get)


@pytest.mark.parametrize(("size_from", "size_to"), [(-1, 3), (3, 2), (0, -1)])
def test_sizes_out_of_order_have_no_proof(size_from: int, size_to: int) -> None:
    with pytest.raises(InvalidInput):
        consistency_proof(size_from, size_to, grow(3).get)


def test_negative_sizes_are_refused() -> None:
    for call in (lambda: root_at(-1, grow(1).get), lambda: Frontier.load(-1, grow(1).get)):
        with pytest.raises(InvalidInput):
            call()


def test_storage_that_answers_too_little_is_noticed() -> None:
    for call in (
        lambda: root_at(3, lambda _: []),
        lambda: Frontier.load(3, lambda _: [LEAVES[0]]),
        lambda: inclusion_proof(0, 3, lambda ids: LEAVES[: len(ids) + 1]),
    ):
        with pytest.raises(InvalidInput):
            call()


def test_the_largest_tree_needs_no_more_than_the_bound() -> None:
    proof = inclusion_proof(0, 2**63 - 1, lambda ids: [bytes(32)] * len(ids))
    assert len(proof) == PROOF_HASHES_MAX
    assert len(consistency_proof(3, 2**63 - 1, lambda ids: [bytes(32)] * len(ids))) <= PROOF_HASHES_MAX + 1


# --- the tree over the state -----------------------------------------------------------------------------------------


def test_static_tree_is_the_same_tree() -> None:
    raw = [b"entry %d" % number for number in range(SIZES)]
    for size in range(SIZES + 1):
        tree = StaticTree(raw[:size])
        assert tree.root == (mth(0, size) if size else EMPTY_ROOT)
        assert len(tree) == size
        for index in range(size):
            assert tree.prove(index) == path(index, 0, size)
            assert tree.hash_at(index) == LEAVES[index]


def test_replacing_a_leaf_at_every_place_of_every_small_size() -> None:
    for size in range(1, 34):
        raw = [b"%d" % number for number in range(size)]
        tree = StaticTree(raw)
        for index in range(size):
            raw[index] = b"new %d" % index
            tree.set(index, raw[index])
            assert tree.root == StaticTree(raw).root
            verify_inclusion(leaf_hash(raw[index]), index, size, tree.prove(index), tree.root)


def test_inserting_a_leaf_at_every_place_of_every_small_size() -> None:
    for size in range(34):
        for index in range(size + 1):
            raw = [b"%d" % number for number in range(size)]
            tree = StaticTree(raw)
            tree.insert(index, b"new")
            raw.insert(index, b"new")
            twin = StaticTree(raw)
            assert tree.root == twin.root
            assert [tree.prove(i) for i in range(size + 1)] == [twin.prove(i) for i in range(size + 1)]


@pytest.mark.parametrize("index", [-1, 2])
def test_static_tree_has_no_other_leaves(index: int) -> None:
    tree = StaticTree([b"a", b"b"])
    beyond = index + 1 if index > 0 else index
    for call in (tree.prove, tree.hash_at, lambda i: tree.set(i, b""), lambda _: tree.insert(beyond, b"")):
        with pytest.raises(InvalidInput):
            call(index)
