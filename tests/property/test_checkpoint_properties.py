"""Checkpoints and proof files of any content, and of junk."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import CasstoreError, InvalidInput
from casstore.formats.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint, open_checkpoint
from casstore.formats.note import sign_note
from casstore.formats.proof import Proof, decode_proof, encode_proof
from casstore.merkle import EMPTY_ROOT
from casstore.signing import SigningKey

ORIGINS = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="+"), min_size=1, max_size=40
)
HASHES = st.binary(min_size=32, max_size=32)
CHECKPOINTS = st.builds(Checkpoint, ORIGINS, st.integers(0, 2**63 - 1), HASHES)
KEY = SigningKey("log", b"\x01" * 32)


@given(CHECKPOINTS)
def test_checkpoints_round_trip(checkpoint: Checkpoint) -> None:
    assert decode_checkpoint(encode_checkpoint(checkpoint)) == checkpoint


@settings(deadline=None)
@given(CHECKPOINTS)
def test_signed_checkpoints_open(checkpoint: Checkpoint) -> None:
    checkpoint = checkpoint if checkpoint.size else checkpoint._replace(root=EMPTY_ROOT)
    note = sign_note(encode_checkpoint(checkpoint), [KEY])
    assert open_checkpoint(note, KEY.verifier, checkpoint.origin).checkpoint == checkpoint


@given(CHECKPOINTS, st.data())
def test_one_spelling(checkpoint: Checkpoint, data: st.DataObject) -> None:
    text = encode_checkpoint(checkpoint)
    position = data.draw(st.integers(0, len(text) - 1))
    changed = text[:position] + data.draw(st.text(max_size=3)) + text[position + data.draw(st.integers(0, 3)) :]
    try:
        decoded = decode_checkpoint(changed)
    except InvalidInput:
        return
    assert encode_checkpoint(decoded) == changed


PROOFS = st.builds(
    Proof, st.integers(0, 2**63 - 1), st.lists(HASHES, max_size=63), st.binary(max_size=80), st.binary(max_size=40)
)


@given(PROOFS)
def test_proof_files_round_trip(proof: Proof) -> None:
    assert decode_proof(encode_proof(proof)) == proof


@given(PROOFS, st.data())
def test_proof_files_have_one_spelling(proof: Proof, data: st.DataObject) -> None:
    encoded = encode_proof(proof)
    position = data.draw(st.integers(0, len(encoded) - 1))
    changed = encoded[:position] + data.draw(st.binary(max_size=3)) + encoded[position + data.draw(st.integers(0, 3)) :]
    for candidate in (changed, data.draw(st.binary(max_size=60))):
        try:
            decoded = decode_proof(candidate)
        except CasstoreError:
            continue
        assert encode_proof(decoded) == candidate
