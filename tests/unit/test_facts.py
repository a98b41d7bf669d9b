"""Bundles become facts, or nothing: a proof that does not hold must never reach a person as an answer."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from casstore.errors import VerificationError
from casstore.formats.entry import decode_entry, encode_entry
from casstore.merkle import leaf_hash
from casstore.wire import ProofBundle
from casstore_client.facts import check_bundle
from tests.support.bundles import Tree, bundle_of
from tests.support.logworld import World, ptr, snap

PTR = "prod/api"


def world_with_two_flips() -> World:
    world = World(snapshots="AB")
    world.flip(PTR, "A", "init")
    world.flip("test/api", "B", "init")
    return world


def check(world: World, bundle: ProofBundle) -> None:
    check_bundle(bundle, Tree(world.entries).checkpoint)


def replace(bundle: ProofBundle, **changes: object) -> ProofBundle:
    return msgspec.structs.replace(bundle, **changes)


def test_an_honest_bundle_tells_pointer_policy_and_flip() -> None:
    """What `status` prints is taken from here."""
    world = world_with_two_flips()
    facts = check_bundle(bundle_of(world, PTR), Tree(world.entries).checkpoint)
    leaf = facts.pointer(ptr(PTR))
    assert leaf.snapshot == snap("A")
    proven, flipped = facts.flip_of(leaf.flip, ptr(PTR))
    assert (proven.idx, flipped.to, flipped.expect) == (3, snap("A"), None)
    assert facts.policy().version == 1
    for missing in (lambda: facts.pointer(ptr("test/api")), lambda: facts.flip_of(4, ptr("test/api"))):
        with pytest.raises(VerificationError):
            missing()
    with pytest.raises(VerificationError, match="not a flip of"):
        facts.flip_of(3, ptr("test/api"))


def test_any_bit_of_a_proof_matters() -> None:
    """One flipped bit in any base64 field (entry, leaf, hash) and the bundle is refused."""
    world = world_with_two_flips()
    bundle = bundle_of(world, PTR)
    document = msgspec.to_builtins(bundle)
    proofs = [document["head"], *document["state"], *document["entries"]]
    places: list[tuple[Any, Any]] = [(proof, key) for proof in proofs for key in ("entry", "leaf") if key in proof]
    places += [(proof["proof"], at) for proof in proofs for at in range(len(proof["proof"]))]
    assert len(places) > 8
    for holder, key in places:
        honest = holder[key]
        raw = bytearray(base64.b64decode(honest))
        for at in {0, len(raw) // 2, len(raw) - 1}:
            raw[at] ^= 1
            holder[key] = base64.b64encode(raw).decode()
            with pytest.raises(VerificationError):
                check(world, msgspec.convert(document, ProofBundle))
            raw[at] ^= 1
        holder[key] = "not base64!"
        with pytest.raises(VerificationError):
            check(world, msgspec.convert(document, ProofBundle))
        holder[key] = honest
    check(world, msgspec.convert(document, ProofBundle))


def test_proofs_of_another_place_or_size_are_refused() -> None:
    """An old head carries an old state: it must be the last leaf of the checkpoint."""
    world = world_with_two_flips()
    bundle, tree = bundle_of(world, PTR), Tree(world.entries)
    lies = [
        replace(bundle, head=tree.prove(len(world.entries) - 2)),
        replace(bundle, size=bundle.size - 1),
        replace(bundle, entries=[msgspec.structs.replace(bundle.entries[0], index=2)]),
        replace(bundle, state=[msgspec.structs.replace(bundle.state[0], n=bundle.state[0].n + 1)]),
        replace(bundle, state=[msgspec.structs.replace(bundle.state[0], index=1)]),
    ]
    for lie in lies:
        with pytest.raises(VerificationError):
            check(world, lie)


def test_an_entry_that_names_another_place_is_refused() -> None:
    """The log's key may sign any bytes: an entry must be the one of its index and of this log."""
    world = world_with_two_flips()
    entries = list(world.entries)
    for lie in (
        encode_entry(decode_entry(entries[4])._replace(idx=3)),
        encode_entry(decode_entry(entries[4])._replace(log="casstore/another")),
        b'{"not":"an entry"}',
    ):
        tree = Tree([*entries[:4], lie])
        bundle = replace(
            tree.bundle(world.machine.state, ["policy"], []), checkpoint=tree.note.decode(), head=tree.prove(4)
        )
        with pytest.raises(VerificationError):
            check_bundle(bundle, tree.checkpoint)


def test_a_body_that_disagrees_with_its_payload_is_refused() -> None:
    """The signature covers the payload alone; a server that writes another target into the body lies."""
    world = world_with_two_flips()
    document = json.loads(world.entries[3])
    document["body"]["members"][0]["to"] = str(snap("B"))
    forged = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    assert leaf_hash(forged) != leaf_hash(world.entries[3])
    tree = Tree([*world.entries[:3], forged, *world.entries[4:]])
    facts = check_bundle(tree.bundle(world.machine.state, ["policy"], [3]), tree.checkpoint)
    with pytest.raises(VerificationError, match="not what was signed"):
        facts.flip_of(3, ptr(PTR))


def test_a_state_from_the_future_is_refused() -> None:
    """A leaf that names an entry which is not there yet would make every later honest answer look like a regression."""
    world = world_with_two_flips()
    ahead = World(snapshots="AB")
    ahead.flip(PTR, "A", "init")
    ahead.flip("test/api", "B", "init")
    ahead.flip(PTR, "B")
    head = decode_entry(world.entries[4])._replace(state=ahead.machine.root)
    tree = Tree([*world.entries[:4], encode_entry(head)])
    bundle = tree.bundle(ahead.machine.state, [f"pointer/{PTR}"], [])
    with pytest.raises(VerificationError, match="not there yet"):
        check_bundle(bundle, tree.checkpoint)
