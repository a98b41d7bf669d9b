"""Proof files (``.tlog-proof``): that an entry is in a log, in one file that needs no network.

Owns the file's lines.  It must not know what an entry says: the caller hashes the entry that it has and asks whether
the file proves that hash.

Invariants: ``encode_proof(decode_proof(b)) == b``; the ``extra`` line is carried, never believed.

Source: https://c2sp.org/tlog-proof
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from casstore.errors import MalformedDocument, TooLarge
from casstore.formats.canonical import decode_b64, encode_b64
from casstore.formats.checkpoint import OpenedCheckpoint, open_checkpoint
from casstore.formats.lines import HASH_BYTES, UINT63_MAX, parse_decimal, parse_hash
from casstore.limits import NOTE_SIZE_MAX_BYTES
from casstore.merkle import PROOF_HASHES_MAX, verify_inclusion
from casstore.signing import Verifier

FIRST_LINE: Final = "c2sp.org/tlog-proof@v1"
EXTRA_SIZE_MAX_BYTES: Final = 65_536  # it is for hints; what matters is in the entry
# First line, extra in base64, index, hashes of 44 digits each, with their newlines; then the note.
PROOF_SIZE_MAX_BYTES: Final = 256 + EXTRA_SIZE_MAX_BYTES * 4 // 3 + PROOF_HASHES_MAX * 45 + NOTE_SIZE_MAX_BYTES


@dataclass(frozen=True, slots=True)
class Proof:
    """What a proof file holds; nothing in it is verified (:func:`open_proof` does that)."""

    index: int
    """The entry's position in the log, from 0."""
    hashes: list[bytes]
    """The inclusion proof, the leaf's sibling first; at most 63."""
    note: bytes
    """The checkpoint's note, with whatever cosignatures it has."""
    extra: bytes = b""
    """Opaque and not authenticated; empty where the file has no such line."""


def encode_proof(proof: Proof) -> bytes:
    """The bytes of a proof file.

    Raises:
        MalformedDocument: an index, hash or number of hashes that no proof has.
        TooLarge: an extra or a note beyond its bound.
    """
    if not 0 <= proof.index <= UINT63_MAX or len(proof.hashes) > PROOF_HASHES_MAX:
        raise MalformedDocument(f"a proof has an index up to 2^63 - 1 and at most {PROOF_HASHES_MAX} hashes")
    if any(len(value) != HASH_BYTES for value in proof.hashes):
        raise MalformedDocument(f"a hash of a proof has {HASH_BYTES} bytes")
    if len(proof.extra) > EXTRA_SIZE_MAX_BYTES:
        raise TooLarge(f"the extra of a proof has at most {EXTRA_SIZE_MAX_BYTES} bytes", limit=EXTRA_SIZE_MAX_BYTES)
    if len(proof.note) > NOTE_SIZE_MAX_BYTES:
        raise TooLarge(f"a note has at most {NOTE_SIZE_MAX_BYTES} bytes", limit=NOTE_SIZE_MAX_BYTES)
    lines = [FIRST_LINE]
    if proof.extra:
        lines.append(f"extra {encode_b64(proof.extra)}")
    lines.append(f"index {proof.index}")
    lines.extend(encode_b64(value) for value in proof.hashes)
    return "".join(f"{line}\n" for line in [*lines, ""]).encode() + proof.note


def decode_proof(data: bytes) -> Proof:
    """Read a proof file.  The note is taken as it is: opening it is :func:`open_proof`'s part.

    Raises:
        MalformedDocument: any other spelling.
        TooLarge: the file is beyond what any proof needs.
    """
    if len(data) > PROOF_SIZE_MAX_BYTES:
        raise TooLarge(f"a proof file has at most {PROOF_SIZE_MAX_BYTES} bytes", limit=PROOF_SIZE_MAX_BYTES)
    # The *first* blank line: no line of the proof is empty, while the note has a blank line of its own.
    head, blank, note = data.partition(b"\n\n")
    if not blank or not head.isascii():
        raise MalformedDocument("a proof file is lines of ASCII, a blank line, and a checkpoint")
    lines = head.decode("ascii").split("\n")
    if lines.pop(0) != FIRST_LINE:
        raise MalformedDocument(f"a proof file begins with {FIRST_LINE}")
    extra = b""
    if lines and lines[0].startswith("extra "):
        extra = decode_b64(lines.pop(0).removeprefix("extra "))
        if not extra:
            raise MalformedDocument("an extra line that holds nothing is left out")
    if not lines or not lines[0].startswith("index "):
        raise MalformedDocument("the proof file has no index line where it belongs")
    index = parse_decimal(lines.pop(0).removeprefix("index "), what="index")
    if len(lines) > PROOF_HASHES_MAX:
        raise MalformedDocument(f"a proof has at most {PROOF_HASHES_MAX} hashes, this has {len(lines)}")
    proof = Proof(index, [parse_hash(line, what="hash of the proof") for line in lines], note, extra)
    if encode_proof(proof) != data:
        raise MalformedDocument("the proof file is not in its one spelling")
    return proof


def open_proof(
    data: bytes, leaf: bytes, log: Verifier, origin: str, clocks: Sequence[Verifier] = ()
) -> OpenedCheckpoint:
    """Verify that a proof file proves a leaf.

    Args:
        data: the file's bytes.
        leaf: the hash of the entry that the caller has (:func:`casstore.merkle.leaf_hash`).
        log: the log's key.
        origin: the log's origin.
        clocks: cosigners whose times matter.

    Returns:
        the checkpoint that the leaf is under.

    Raises:
        MalformedDocument: the file, its note or its checkpoint does not parse.
        TooLarge: the file or its note is beyond its bound.
        VerificationError: a bad signature, none by the log, another origin, or a leaf that is not there.
        ConfigurationError: two different keys share name and key id.
    """
    proof = decode_proof(data)
    opened = open_checkpoint(proof.note, log, origin, clocks)
    verify_inclusion(leaf, proof.index, opened.checkpoint.size, proof.hashes, opened.checkpoint.root)
    return opened
