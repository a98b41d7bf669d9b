"""Proof files.  What breaks here lets a file prove an entry that the log does not hold."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import CasstoreError, MalformedDocument, TooLarge, VerificationError
from casstore.formats.checkpoint import Checkpoint, encode_checkpoint
from casstore.formats.note import sign_note
from casstore.formats.proof import (
    EXTRA_SIZE_MAX_BYTES,
    PROOF_SIZE_MAX_BYTES,
    Proof,
    decode_proof,
    encode_proof,
    open_proof,
)
from casstore.merkle import leaf_hash
from casstore.signing import SigningKey, Verifier

GOLDEN = Path(__file__).parent.parent / "golden"
KEYS: dict[str, Any] = json.loads((GOLDEN / "checkpoint.json").read_text())["keys"]
DATA = (GOLDEN / "proof.tlog-proof").read_bytes()
LOG = Verifier.parse(KEYS["log_vkey"])
KNOWN = [Verifier.parse(KEYS["clock_vkey"]), Verifier.parse(KEYS["witness_vkey"])]
LEAF = leaf_hash(b"entry 137")


def test_golden_file_proves_its_entry() -> None:
    opened = open_proof(DATA, LEAF, LOG, KEYS["origin"], KNOWN)
    assert opened.checkpoint.size == 300
    assert set(opened.cosigned_at_ms) == {verifier.name for verifier in KNOWN}
    proof = decode_proof(DATA)
    assert (proof.index, len(proof.hashes), proof.extra) == (137, 9, b"hint")
    assert encode_proof(proof) == DATA


def test_it_proves_no_other_entry() -> None:
    for other in (b"entry 136", b"entry 138", b"", b"entry 137\n"):
        with pytest.raises(VerificationError):
            open_proof(DATA, leaf_hash(other), LOG, KEYS["origin"], KNOWN)


def test_a_tree_of_one_leaf_needs_no_hash() -> None:
    key = SigningKey("log", b"\x01" * 32)
    note = sign_note(encode_checkpoint(Checkpoint("log", 1, LEAF)), [key])
    data = encode_proof(Proof(0, [], note))
    assert data == b"c2sp.org/tlog-proof@v1\nindex 0\n\n" + note
    assert decode_proof(data) == Proof(0, [], note)
    assert open_proof(data, LEAF, key.verifier, "log").checkpoint.size == 1


HASH_LINE = base64.b64encode(bytes(range(32)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"c2sp.org/tlog-proof@v1\n\nnote",
        b"c2sp.org/tlog-proof@v2\nindex 0\n\nnote",
        b"\nc2sp.org/tlog-proof@v1\nindex 0\n\nnote",
        b"c2sp.org/tlog-proof@v1 \nindex 0\n\nnote",
        b"c2sp.org/tlog-proof@v1\r\nindex 0\r\n\r\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 0\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 00\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex +0\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex  0\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 0 \n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex -1\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 1_0\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 9223372036854775808\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex \n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex\n\nnote",
        b"c2sp.org/tlog-proof@v1\nIndex 0\n\nnote",
        "c2sp.org/tlog-proof@v1\nindex \u0660\n\nnote".encode(),
        b"c2sp.org/tlog-proof@v1\nindex 0\nindex 0\n\nnote",
        b"c2sp.org/tlog-proof@v1\nextra \nindex 0\n\nnote",
        b"c2sp.org/tlog-proof@v1\nextra YQ\nindex 0\n\nnote",
        b"c2sp.org/tlog-proof@v1\nextra YR==\nindex 0\n\nnote",
        b"c2sp.org/tlog-proof@v1\nextra YQ==\nextra YQ==\nindex 0\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 0\nextra YQ==\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 0\n" + HASH_LINE[:-1] + b"\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 0\n" + HASH_LINE[:-2] + b"9=\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 0\n" + HASH_LINE + b" \n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 0\n" + base64.b64encode(bytes(31)) + b"\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 0\n" + base64.b64encode(bytes(33)) + b"\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 0\n" + (HASH_LINE + b"\n") * 64 + b"\nnote",
    ],
)
def test_other_spellings_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedDocument):
        decode_proof(data)


def test_sixty_three_hashes_are_accepted() -> None:
    proof = Proof(2**63 - 1, [bytes([n]) * 32 for n in range(63)], b"note")
    assert decode_proof(encode_proof(proof)) == proof


def test_files_beyond_what_a_proof_needs_are_refused_unread() -> None:
    with pytest.raises(TooLarge):
        decode_proof(DATA + bytes(PROOF_SIZE_MAX_BYTES))
    with pytest.raises(TooLarge):
        encode_proof(Proof(0, [], b"note", bytes(EXTRA_SIZE_MAX_BYTES + 1)))
    with pytest.raises(TooLarge):
        encode_proof(Proof(0, [], bytes(PROOF_SIZE_MAX_BYTES)))


@pytest.mark.parametrize(
    "proof", [Proof(-1, [], b""), Proof(2**63, [], b""), Proof(0, [bytes(32)] * 64, b""), Proof(0, [bytes(31)], b"")]
)
def test_what_cannot_be_a_proof(proof: Proof) -> None:
    with pytest.raises(MalformedDocument):
        encode_proof(proof)


SPECIAL = b"\n\x00\x1f +-=/0A\x7f\x80\x85\xa0\xe2\xff"
TRUTH = open_proof(DATA, LEAF, LOG, KEYS["origin"], KNOWN)


def _check_mutant(mutant: bytes) -> None:
    try:
        opened = open_proof(mutant, LEAF, LOG, KEYS["origin"], KNOWN)
    except CasstoreError:
        return
    # Accepted only where the change is in what no one vouches for (the extra line) or in a line that no longer counts.
    assert opened.checkpoint == TRUTH.checkpoint
    assert opened.cosigned_at_ms.items() <= TRUTH.cosigned_at_ms.items()
    proof, truth = decode_proof(mutant), decode_proof(DATA)
    assert (proof.index, proof.hashes) == (truth.index, truth.hashes)
    assert proof.extra != truth.extra or opened.cosigned_at_ms.items() < TRUTH.cosigned_at_ms.items()


def test_every_single_byte_mutation() -> None:
    for position, byte in enumerate(DATA):
        for other in ({byte ^ 1 << bit for bit in range(8)} | set(SPECIAL)) - {byte}:
            _check_mutant(DATA[:position] + bytes([other]) + DATA[position + 1 :])


def test_every_byte_removed_or_doubled() -> None:
    for position in range(len(DATA)):
        _check_mutant(DATA[:position] + DATA[position + 1 :])
        _check_mutant(DATA[:position] + DATA[position : position + 1] + DATA[position:])
