"""The state tree: what is live, with a proof that fits the root in an entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from casstore.errors import InvalidDigest, InvalidName, MalformedDocument, PointerNotFound, VerificationError
from casstore.formats.canonical import encode_canonical
from casstore.formats.entry import StateRoot
from casstore.formats.state import (
    HeldSince,
    Leaf,
    LeafProof,
    PointerLeaf,
    PolicyLeaf,
    State,
    decode_leaf,
    pointer_key,
    policy_sha256,
    verify_absence,
    verify_leaf,
)
from casstore.limits import BAD_SNAPSHOTS_MAX
from casstore.merkle import EMPTY_ROOT
from tests.support.logworld import policy_document, ptr, snap

GOLDEN = Path(__file__).parent.parent / "golden" / "state.json"


def pointer(name: str, flip: int = 7, **changes: Any) -> PointerLeaf:
    return PointerLeaf(ptr(name), snap("A"), flip, 1, None, ())._replace(**changes)


def state(*names: str) -> State:
    return State([PolicyLeaf(0, bytes(32), 1), *(pointer(name) for name in names)])


def test_golden_vectors() -> None:
    vector = json.loads(GOLDEN.read_text())
    leaves = [decode_leaf(leaf.encode()) for leaf in vector["leaves"]]
    assert [leaf.encode().decode() for leaf in leaves] == vector["leaves"]
    built = State(reversed(leaves))
    assert (built.n, built.root.root.hex()) == (vector["n"], vector["root"])
    assert State().root.root.hex() == vector["empty_root"]
    for expected in vector["proofs"]:
        proof = built.prove(expected["key"])
        assert (proof.index, [value.hex() for value in proof.proof]) == (expected["index"], expected["proof"])


def test_every_leaf_is_proven_and_nothing_else() -> None:
    """A proof holds for its leaf, its place, its size and its root only."""
    names = [f"p/{letter}" for letter in "abcdefghijk"]
    built = state(*names)
    for leaf in built.leaves():
        proof = built.prove(leaf.key)
        assert verify_leaf(proof, built.root) == leaf
        replace = msgspec.structs.replace
        lies = [
            replace(proof, leaf=pointer("p/zzz").encode()),
            replace(proof, index=(proof.index + 1) % proof.n),
            replace(proof, n=proof.n + 1),
            replace(proof, proof=proof.proof[:-1]),
            replace(proof, proof=[*proof.proof, bytes(32)]),
        ]
        for lie in lies:
            with pytest.raises(VerificationError):
                verify_leaf(lie, built.root)
        with pytest.raises(VerificationError):
            verify_leaf(proof, StateRoot(built.n, bytes(32)))
    with pytest.raises(PointerNotFound):
        built.prove("pointer/none")


def test_absence_is_proven_by_neighbours() -> None:
    """`there is no such pointer` is an answer that a lying server would like to give."""
    built = state("b", "d", "f")
    for name in ("a", "c", "e", "g"):
        proofs = built.prove_absence(pointer_key(ptr(name)))
        verify_absence(pointer_key(ptr(name)), proofs, built.root)
    # in order: pointer/b, pointer/d, pointer/f, policy
    assert [len(built.prove_absence(key)) for key in ("a", "pointer/c", "zzz")] == [1, 2, 1]
    verify_absence("a", built.prove_absence("a"), built.root)
    verify_absence("zzz", built.prove_absence("zzz"), built.root)
    verify_absence("pointer/a", [], State().root)
    b, d, f = (built.prove(pointer_key(ptr(name))) for name in "bdf")
    for key, proofs in (
        ("pointer/d", [b, f]),
        ("pointer/c", [b]),
        ("pointer/c", [d]),
        ("pointer/c", []),
        ("pointer/c", [b, f]),
        ("pointer/c", [b, d, f]),
        ("pointer/d", [b, d]),
        ("pointer/d", [d]),
        ("pointer/z", [f]),
        ("pointer/c", [b, b]),
    ):
        with pytest.raises(VerificationError):
            verify_absence(key, proofs, built.root)
    with pytest.raises(MalformedDocument):
        built.prove_absence("pointer/b")


def test_a_draft_says_what_the_state_will_be() -> None:
    """Replacing in place, adding at every position, and both at once: the root is that of the state built anew."""
    built = state("c", "m")
    steps: list[list[Leaf]] = [
        [pointer("c", 9)],
        [pointer("a")],
        [pointer("z"), pointer("m", 10)],
        [pointer("d"), pointer("e"), PolicyLeaf(3, bytes(32), 2)],
        [],
    ]
    model = {leaf.key: leaf for leaf in built.leaves()}
    for changes in steps:
        before = built.root
        draft = built.draft(changes)
        assert built.root == before
        model |= {leaf.key: leaf for leaf in changes}
        built.apply(draft)
        assert built.root == draft.after == State(model.values()).root
        assert built.leaves() == [model[key] for key in sorted(model)]
    stale = built.draft([pointer("c", 11)])
    built.apply(built.draft([pointer("c", 12)]))
    with pytest.raises(ValueError, match="older state"):
        built.apply(stale)


def test_an_empty_state() -> None:
    assert State().root == StateRoot(0, EMPTY_ROOT)
    assert State().policy() is None
    assert State().pointer(ptr("a")) is None
    with pytest.raises(MalformedDocument, match="twice"):
        State([pointer("a"), pointer("a")])


def test_bad_marks_keep_the_newest() -> None:
    leaf = pointer("a")
    for number in range(BAD_SNAPSHOTS_MAX + 3):
        leaf = leaf.with_bad(snap(str(number)))
    assert leaf.bad[0] == snap("3")
    assert len(leaf.bad) == BAD_SNAPSHOTS_MAX
    again = leaf.with_bad(snap("3"))
    assert again.bad[-1] == snap("3")
    assert len(set(again.bad)) == BAD_SNAPSHOTS_MAX
    assert snap("3") not in again.without_bad(snap("3")).bad
    full = pointer("/".join(["p" * 63] * 4), bad=leaf.bad, held=HeldSince(2**52, 2**52))
    assert decode_leaf(full.encode()) == full


def test_holds_run_out_for_the_reader() -> None:
    assert HeldSince(1, None).holds_at(2**52)
    assert HeldSince(1, 100).holds_at(99)
    assert not HeldSince(1, 100).holds_at(100)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"k": "pointer/Prod"}, InvalidName),
        ({"k": "pointer/"}, InvalidName),
        ({"k": "freeze/prod"}, MalformedDocument),
        ({"k": 1}, MalformedDocument),
        ({"seq": 0}, MalformedDocument),
        ({"flip": -1}, MalformedDocument),
        ({"snapshot": "A"}, InvalidDigest),
        ({"bad": [str(snap("A"))] * 2}, MalformedDocument),
        ({"bad": [str(snap(str(n))) for n in range(BAD_SNAPSHOTS_MAX + 1)]}, MalformedDocument),
        ({"held": {"idx": 1}}, MalformedDocument),
        ({"extra": 1}, MalformedDocument),
    ],
)
def test_leaves_that_are_none(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        decode_leaf(encode_canonical({**json.loads(pointer("a").encode()), **changes}))


def test_policy_leaf() -> None:
    leaf = PolicyLeaf(3, policy_sha256(policy_document()), 1)
    assert decode_leaf(leaf.encode()) == leaf
    for data in (b"[]", b'{"k":"policy"}', b'{"idx":3,"k":"policy","sha256":"00","version":1}'):
        with pytest.raises(MalformedDocument):
            decode_leaf(data)
    assert LeafProof(index=0, n=1, leaf=b"", proof=[]).index == 0
