"""Proof bundles over a log in memory, signed with its real keys: what an honest server would answer, and what a lying one could."""

from __future__ import annotations

from collections.abc import Sequence

from casstore.formats.canonical import encode_b64
from casstore.formats.checkpoint import Checkpoint, encode_checkpoint
from casstore.formats.note import cosign, sign_note
from casstore.formats.state import LeafProof, State, pointer_key
from casstore.formats.trust import TrustFile
from casstore.ids import PointerName
from casstore.merkle import EMPTY_ROOT, Frontier, consistency_proof, inclusion_proof, leaf_hash
from casstore.signing import SignatureType, SigningKey
from casstore.wire import ConsistencyAnswer, EntryList, EntryProof, ProofBundle, StateProof
from tests.support.logworld import LOG_KEY, ORIGIN, START_MS, World

CLOCK_KEY = SigningKey.generate(f"{ORIGIN}/clock", bytes(range(32)), SignatureType.COSIGNATURE)


class Tree:
    """The log tree over some entries.

    Args:
        entries: their bytes.
        now_ms: what the clock key says.
    """

    def __init__(self, entries: Sequence[bytes], now_ms: int = START_MS) -> None:
        self.entries = list(entries)
        self.now_ms = now_ms
        self._nodes: dict[tuple[int, int], bytes] = {}
        self.frontier = Frontier()
        for entry in entries:
            self._nodes.update(self.frontier.append(leaf_hash(entry)))

    def _get(self, nodes: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self._nodes[node] for node in nodes]

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(ORIGIN, len(self.entries), self.frontier.root)

    @property
    def note(self) -> bytes:
        text = encode_checkpoint(self.checkpoint)
        return sign_note(text, [LOG_KEY], [cosign(text, CLOCK_KEY, self.now_ms // 1000)])

    def prove(self, index: int) -> EntryProof:
        hashes = inclusion_proof(index, len(self.entries), self._get)
        return EntryProof(
            index=index, entry=encode_b64(self.entries[index]), proof=[encode_b64(value) for value in hashes]
        )

    def list(self, indices: Sequence[int]) -> EntryList:
        proofs = [self.prove(index) for index in indices]
        return EntryList(checkpoint=self.note.decode(), size=len(self.entries), entries=proofs)

    def consistency(self, first: int, size: int) -> ConsistencyAnswer:
        hashes = consistency_proof(first, size, self._get) if 0 < first < size else []
        return ConsistencyAnswer(from_size=first, to_size=size, proof=[encode_b64(value) for value in hashes])

    def bundle(self, state: State, keys: Sequence[str], indices: Sequence[int]) -> ProofBundle:
        return ProofBundle(
            checkpoint=self.note.decode(),
            size=len(self.entries),
            head=self.prove(len(self.entries) - 1),
            state=[state_proof(state.prove(key)) for key in keys],
            entries=[self.prove(index) for index in indices],
        )


def state_proof(proof: LeafProof) -> StateProof:
    return StateProof(
        index=proof.index,
        n=proof.n,
        leaf=encode_b64(proof.leaf),
        proof=[encode_b64(value) for value in proof.proof],
    )


def bundle_of(world: World, *pointers: str, entries: Sequence[int] | None = None) -> ProofBundle:
    """What an honest server answers about pointers of ``world``; ``entries`` by default their flips."""
    names = [PointerName.parse(name) for name in pointers]
    leaves = [world.machine.state.pointer(name) for name in names]
    flips = sorted({leaf.flip for leaf in leaves if leaf is not None}) if entries is None else list(entries)
    keys = [*(pointer_key(name) for name in names), "policy"]
    return Tree(world.entries, world.ts).bundle(world.machine.state, keys, flips)


def trust_of(world: World) -> TrustFile:
    """The trust file of ``world``."""
    import hashlib

    return TrustFile(
        origin=ORIGIN,
        log_vkey=LOG_KEY.verifier.encode(),
        clock_vkey=CLOCK_KEY.verifier.encode(),
        genesis_sha256=hashlib.sha256(world.entries[0]).digest(),
        minimum_size=0,
        minimum_root=EMPTY_ROOT,
    )
