"""The log tree at sizes that no test can enumerate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import VerificationError
from casstore.merkle import (
    EMPTY_ROOT,
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


@cache
def _level(level: int) -> bytes:
    """The hash of a complete node over 2^level equal leaves."""
    return node_hash(_level(level - 1), _level(level - 1)) if level else leaf_hash(b"same")


def _nodes(ids: Sequence[NodeId]) -> list[bytes]:
    # A log whose entries are all equal has known nodes at every size up to 2^63, without storing any.
    return [_level(level) for level, _ in ids]


SIZES = st.one_of(st.integers(1, 2**63 - 1), st.integers(0, 62).map(lambda n: 1 << n), st.integers(1, 300))


@settings(deadline=None)
@given(st.data(), SIZES)
def test_inclusion_at_any_size(data: st.DataObject, size: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, _nodes)
    verify_inclusion(_level(0), index, size, proof, root_at(size, _nodes))
    with pytest.raises(VerificationError):
        verify_inclusion(leaf_hash(b"other"), index, size, proof, root_at(size, _nodes))
    if proof:
        with pytest.raises(VerificationError):
            verify_inclusion(_level(0), index, size, proof[:-1], root_at(size, _nodes))


@settings(deadline=None)
@given(st.data(), SIZES)
def test_consistency_at_any_two_sizes(data: st.DataObject, size_to: int) -> None:
    size_from = data.draw(st.integers(1, size_to))
    root_from, root_to = root_at(size_from, _nodes), root_at(size_to, _nodes)
    proof = consistency_proof(size_from, size_to, _nodes)
    verify_consistency(size_from, size_to, root_from, root_to, proof)
    for wrong_from, wrong_to in ((leaf_hash(b"other"), root_to), (root_from, leaf_hash(b"other"))):
        with pytest.raises(VerificationError):
            verify_consistency(size_from, size_to, wrong_from, wrong_to, proof)


@settings(deadline=None)
@given(SIZES)
def test_nodes_asked_for_are_complete(size: int) -> None:
    def check(ids: Sequence[NodeId]) -> list[bytes]:
        assert len(set(ids)) == len(ids)
        for level, position in ids:
            assert 0 <= (position + 1) << level <= size
        return _nodes(ids)

    root_at(size, check)
    inclusion_proof(size // 3, size, check)
    consistency_proof(size // 2, size, check)
    for (level, position), _ in append_nodes(size, leaf_hash(b"new"), check):
        assert size < (position + 1) << level <= size + 1


@settings(deadline=None)
@given(st.lists(st.binary(max_size=8), max_size=80))
def test_frontier_storage_and_static_tree_agree(entries: list[bytes]) -> None:
    frontier, stored = Frontier(), dict[NodeId, bytes]()
    for entry in entries:
        stored.update(frontier.append(leaf_hash(entry)))
    tree = StaticTree(entries)

    def get(ids: Sequence[NodeId]) -> list[bytes]:
        return [stored[node] for node in ids]

    assert tree.root == frontier.root == root_at(len(entries), get)
    for index, entry in enumerate(entries):
        assert tree.prove(index) == inclusion_proof(index, len(entries), get)
        verify_inclusion(leaf_hash(entry), index, len(entries), tree.prove(index), tree.root)


STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 10**6), st.binary(max_size=4)), max_size=60)


@settings(deadline=None)
@given(STEPS)
def test_static_tree_follows_a_list(steps: list[tuple[bool, int, bytes]]) -> None:
    model: list[bytes] = []
    tree = StaticTree()
    assert tree.root == EMPTY_ROOT
    for replace, where, leaf in steps:
        if replace and model:
            model[where % len(model)] = leaf
            tree.set(where % len(model), leaf)
        else:
            position = where % (len(model) + 1)
            model.insert(position, leaf)
            tree.insert(position, leaf)
        assert tree.root == StaticTree(model).root
