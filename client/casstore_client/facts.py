"""Proof bundles, checked: what a bundle says becomes facts of one log size, or an error.

Pure: takes bytes and gives values.  Whether the checkpoint itself may be believed is :mod:`casstore_client.verified_log`'s part.

Source: docs/formats/wire.md, docs/formats/state.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from casstore.errors import InvalidInput, MalformedDocument, Unsupported, VerificationError
from casstore.formats.canonical import decode_b64
from casstore.formats.checkpoint import Checkpoint
from casstore.formats.entry import Entry, Flipped, decode_entry, flips_of
from casstore.formats.state import Leaf, LeafProof, PointerLeaf, PolicyLeaf, pointer_key, verify_leaf
from casstore.ids import PointerName
from casstore.merkle import leaf_hash, verify_inclusion
from casstore.wire import EntryProof, ProofBundle, StateProof


class ProvenEntry(NamedTuple):
    """An entry whose place in the log is proven."""

    idx: int
    data: bytes
    entry: Entry


class Facts(NamedTuple):
    """What a bundle proves, all of one size."""

    checkpoint: Checkpoint
    head: ProvenEntry
    entries: dict[int, ProvenEntry]
    leaves: dict[str, Leaf]
    principals: Mapping[int, Sequence[str]] = MappingProxyType({})
    """Whose signatures (or token) each entry carries, where the envelopes were judged; sorted."""

    def pointer(self, name: PointerName) -> PointerLeaf:
        """The state of a pointer.

        Raises:
            VerificationError: the bundle does not prove it.
        """
        leaf = self.leaves.get(pointer_key(name))
        if not isinstance(leaf, PointerLeaf):
            raise VerificationError(f"the answer carries no proof of the state of {name}")
        return leaf

    def policy(self) -> PolicyLeaf:
        """The state of the policy.

        Raises:
            VerificationError: the bundle does not prove it.
        """
        leaf = self.leaves.get("policy")
        if not isinstance(leaf, PolicyLeaf):
            raise VerificationError("the answer carries no proof of which policy is in force")
        return leaf

    def flip_of(self, index: int, name: PointerName) -> tuple[ProvenEntry, Flipped]:
        """What the flip at ``index`` did to a pointer.

        Raises:
            VerificationError: the bundle does not prove that entry, or it is not a flip of that pointer.
        """
        proven = self.entries.get(index)
        if proven is None or proven.entry.type != "flip":
            raise VerificationError(f"the answer carries no proof of the flip f{index}", index=index)
        try:
            flips = flips_of(proven.entry)
        except (InvalidInput, Unsupported) as error:
            raise VerificationError(
                f"entry {index} is a flip that cannot be read: {error.detail}", index=index
            ) from error
        for flipped in flips:
            if flipped.pointer == name:
                return proven, flipped
        raise VerificationError(f"entry {index} is not a flip of {name}", index=index)


def check_entry(proof: EntryProof, checkpoint: Checkpoint) -> ProvenEntry:
    """Check that an entry is in the log, and is what it must be at its place.

    Raises:
        VerificationError: it is not, or it names another place or log.
    """
    data = _bytes(proof.entry)
    verify_inclusion(leaf_hash(data), proof.index, checkpoint.size, _hashes(proof.proof), checkpoint.root)
    try:
        entry = decode_entry(data)
    except InvalidInput as error:
        raise VerificationError(
            f"entry {proof.index} is in the log and is no entry: {error.detail}", index=proof.index
        ) from error
    if entry.idx != proof.index or entry.log != checkpoint.origin:
        raise VerificationError(f"entry {proof.index} says it is entry {entry.idx} of {entry.log}", index=proof.index)
    return ProvenEntry(proof.index, data, entry)


def check_bundle(bundle: ProofBundle, checkpoint: Checkpoint) -> Facts:
    """Check every proof of a bundle against one checkpoint.

    Raises:
        VerificationError: a proof does not hold, or the bundle is not of the checkpoint's size.
    """
    if bundle.size != checkpoint.size or bundle.head.index != checkpoint.size - 1:
        raise VerificationError(f"the proofs are of size {bundle.size}, the checkpoint is of size {checkpoint.size}")
    head = check_entry(bundle.head, checkpoint)
    entries = {proof.index: check_entry(proof, checkpoint) for proof in bundle.entries}
    leaves = [_check_leaf(proof, head) for proof in bundle.state]
    for leaf in leaves:
        last = leaf.flip if isinstance(leaf, PointerLeaf) else leaf.idx
        if last >= checkpoint.size:
            raise VerificationError(
                f"the state says that {leaf.key} was changed by entry {last}, which is not there yet"
            )
    return Facts(checkpoint, head, entries, {leaf.key: leaf for leaf in leaves})


def _check_leaf(proof: StateProof, head: ProvenEntry) -> Leaf:
    try:
        return verify_leaf(LeafProof(proof.index, proof.n, _bytes(proof.leaf), _hashes(proof.proof)), head.entry.state)
    except InvalidInput as error:
        raise VerificationError(f"a leaf of the state is none: {error.detail}", index=head.idx) from error


def _hashes(texts: Sequence[str]) -> list[bytes]:
    return [_bytes(text) for text in texts]


def _bytes(text: str) -> bytes:
    try:
        return decode_b64(text)
    except MalformedDocument as error:
        raise VerificationError(f"the answer's proof is not base64: {error.detail}") from error
