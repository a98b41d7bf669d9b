"""Checkpoints.  What breaks here lets someone who is not the log say what the log holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casstore import signing
from casstore.errors import CasstoreError, InvalidInput, MalformedDocument, VerificationError
from casstore.formats.checkpoint import Checkpoint, check_origin, decode_checkpoint, encode_checkpoint, open_checkpoint
from casstore.formats.note import cosign, sign_note
from casstore.merkle import EMPTY_ROOT
from casstore.signing import SignatureType, SigningKey, Verifier

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent.parent / "golden" / "checkpoint.json").read_text())
KEYS: dict[str, str] = GOLDEN["keys"]
ORIGIN = KEYS["origin"]
LOG = SigningKey.parse(KEYS["log_skey"])
CLOCK = SigningKey.parse(KEYS["clock_skey"])
WITNESS = Verifier.parse(KEYS["witness_vkey"])
MLDSA44 = Verifier.parse(KEYS["mldsa44_vkey"])
KNOWN = [CLOCK.verifier, WITNESS, MLDSA44]


@pytest.mark.parametrize("case", GOLDEN["good"], ids=lambda case: case["desc"])
def test_good_vectors(case: dict[str, Any]) -> None:
    opened = open_checkpoint(case["note"].encode(), LOG.verifier, ORIGIN, KNOWN)
    assert opened.checkpoint == Checkpoint(ORIGIN, case["size"], bytes.fromhex(case["root"]))
    assert opened.note == case["note"].encode()
    assert opened.cosigned_at_ms == case["cosigned_at_ms"]
    assert sign_note(encode_checkpoint(opened.checkpoint), [LOG]).decode() == case["note"][: len(_lone(case["note"]))]


def _lone(note: str) -> str:
    text, lines = note.split("\n\n")
    return f"{text}\n\n{lines.split(chr(10))[0]}\n"


@pytest.mark.parametrize("case", GOLDEN["bad_texts"], ids=lambda case: case["desc"])
def test_bad_vectors_are_refused_even_where_the_log_signed_them(case: dict[str, Any]) -> None:
    with pytest.raises(MalformedDocument):
        decode_checkpoint(case["text"])
    try:
        note = sign_note(case["text"], [LOG])
    except InvalidInput:
        return
    with pytest.raises(CasstoreError):
        open_checkpoint(note, LOG.verifier, ORIGIN)


def test_known_cosigners_that_did_not_sign_are_absent_and_unknown_ones_say_nothing() -> None:
    note = GOLDEN["good"][0]["note"].encode()
    assert open_checkpoint(note, LOG.verifier, ORIGIN, [WITNESS, MLDSA44]).cosigned_at_ms == {
        WITNESS.name: GOLDEN["good"][0]["cosigned_at_ms"][WITNESS.name]
    }
    assert open_checkpoint(note, LOG.verifier, ORIGIN).cosigned_at_ms == {}


def test_a_cosigner_does_not_stand_in_for_the_log() -> None:
    # A witness's or the clock's key signs every text it is handed: a checkpoint by it alone is no checkpoint.
    text = encode_checkpoint(Checkpoint(ORIGIN, 7, bytes(32)))
    alone = sign_note(text, [], [cosign(text, CLOCK, 1)])
    stranger = SigningKey(ORIGIN, b"\x42" * 32)
    for note in (alone, sign_note(text, [stranger], [cosign(text, CLOCK, 1)])):
        with pytest.raises(VerificationError, match="did not sign"):
            open_checkpoint(note, LOG.verifier, ORIGIN, [CLOCK.verifier])


def test_another_logs_checkpoint_is_refused_even_under_the_same_key() -> None:
    note = sign_note(encode_checkpoint(Checkpoint("casstore/other", 7, bytes(32))), [LOG])
    with pytest.raises(VerificationError, match="casstore/other"):
        open_checkpoint(note, LOG.verifier, ORIGIN)


def test_an_empty_tree_has_one_root() -> None:
    note = sign_note(encode_checkpoint(Checkpoint(ORIGIN, 0, bytes(32))), [LOG])
    with pytest.raises(VerificationError):
        open_checkpoint(note, LOG.verifier, ORIGIN)
    good = sign_note(encode_checkpoint(Checkpoint(ORIGIN, 0, EMPTY_ROOT)), [LOG])
    assert open_checkpoint(good, LOG.verifier, ORIGIN).checkpoint.size == 0


def test_a_bad_line_of_a_known_cosigner_refuses_the_checkpoint() -> None:
    text = encode_checkpoint(Checkpoint(ORIGIN, 7, bytes(32)))
    line = cosign(encode_checkpoint(Checkpoint(ORIGIN, 8, bytes(32))), CLOCK, 1)
    note = sign_note(text, [LOG], [line])
    assert open_checkpoint(note, LOG.verifier, ORIGIN).checkpoint.size == 7
    with pytest.raises(VerificationError):
        open_checkpoint(note, LOG.verifier, ORIGIN, [CLOCK.verifier])


def test_an_ml_dsa_cosignature_covers_name_time_origin_size_and_root() -> None:
    note = GOLDEN["good"][1]["note"]
    open_checkpoint(note.encode(), LOG.verifier, ORIGIN, [MLDSA44])
    renamed = Verifier("witness.example/other", SignatureType.MLDSA44_COSIGNATURE, MLDSA44.public)
    log_line = note.split("\n\n")[1].split("\n")[0]
    for text in (
        note.split("\n\n")[0].replace("300", "301") + "\n",
        note.split("\n\n")[0].replace("yjk9", "yjk8") + "\n",
    ):
        changed = sign_note(text, [LOG]).decode() + note.split("\n\n")[1].removeprefix(log_line + "\n")
        with pytest.raises(VerificationError):
            open_checkpoint(changed.encode(), LOG.verifier, ORIGIN, [MLDSA44])
    from casstore.formats.canonical import encode_b64
    from casstore.formats.note import split_note

    line = split_note(note.encode())[1][1]
    as_other = f"\u2014 {renamed.name} {encode_b64(renamed.key_id + line.signature)}"
    with pytest.raises(VerificationError):
        open_checkpoint(sign_note(split_note(note.encode())[0], [LOG], [as_other]), LOG.verifier, ORIGIN, [renamed])
    later = f"\u2014 {MLDSA44.name} {encode_b64(MLDSA44.key_id + bytes(8) + line.signature[8:])}"
    with pytest.raises(VerificationError):
        open_checkpoint(sign_note(split_note(note.encode())[0], [LOG], [later]), LOG.verifier, ORIGIN, [MLDSA44])


def test_without_ml_dsa_in_the_library_such_a_line_is_one_of_the_unknown() -> None:
    # An older library must still read checkpoints that carry such lines; it just cannot count them.
    note = GOLDEN["good"][1]["note"].encode()
    signing.can_verify_mldsa44.cache_clear()
    hidden = "cryptography.hazmat.primitives.asymmetric.mldsa"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, hidden, None)
        assert not signing.can_verify_mldsa44()
        assert open_checkpoint(note, LOG.verifier, ORIGIN, [MLDSA44]).cosigned_at_ms == {}
    signing.can_verify_mldsa44.cache_clear()
    assert open_checkpoint(note, LOG.verifier, ORIGIN, [MLDSA44]).cosigned_at_ms != {}


@pytest.mark.parametrize("origin", ["a", "casstore/0123456789abcdef", "a" * 255, "!~,*-"])
def test_origins(origin: str) -> None:
    check_origin(origin)
    assert decode_checkpoint(encode_checkpoint(Checkpoint(origin, 1, bytes(32)))).origin == origin


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\n", "a" * 256, "\u00e9", "a\x7f", "a\u00a0", "\x00"])
def test_what_cannot_be_an_origin(origin: str) -> None:
    with pytest.raises(MalformedDocument):
        check_origin(origin)
    with pytest.raises(MalformedDocument):
        encode_checkpoint(Checkpoint(origin, 1, bytes(32)))


@pytest.mark.parametrize(
    ("size", "root"), [(-1, bytes(32)), (2**63, bytes(32)), (1, b""), (1, bytes(31)), (1, bytes(33))]
)
def test_what_cannot_be_a_checkpoint(size: int, root: bytes) -> None:
    with pytest.raises(MalformedDocument):
        encode_checkpoint(Checkpoint(ORIGIN, size, root))


def test_the_newest_time_counts_where_two_keys_share_a_name() -> None:
    # A cosigner that changes its key keeps its name for a while.
    text = encode_checkpoint(Checkpoint(ORIGIN, 7, bytes(32)))
    old, new = (SigningKey("w", bytes([n]) * 32, SignatureType.COSIGNATURE) for n in (1, 2))
    note = sign_note(text, [LOG], [cosign(text, new, 20), cosign(text, old, 10)])
    opened = open_checkpoint(note, LOG.verifier, ORIGIN, [old.verifier, new.verifier])
    assert opened.cosigned_at_ms == {"w": 20_000}
    assert [cosignature.verifier for cosignature in opened.cosignatures] == [new.verifier, old.verifier]


SPECIAL = b"\n\x00\x1f +-=/0A\x7f\x80\x85\xa0\xe2\xff"
NOTE = GOLDEN["good"][0]["note"].encode()
TRUTH = open_checkpoint(NOTE, LOG.verifier, ORIGIN, KNOWN)


def _check_mutant(mutant: bytes) -> None:
    try:
        opened = open_checkpoint(mutant, LOG.verifier, ORIGIN, KNOWN)
    except CasstoreError:
        return
    assert opened.checkpoint == TRUTH.checkpoint
    # Refused, or a cosigner's line no longer counts: never another checkpoint, never another time.
    assert opened.cosigned_at_ms.items() < TRUTH.cosigned_at_ms.items()


def test_every_single_byte_mutation() -> None:
    for position, byte in enumerate(NOTE):
        for other in ({byte ^ 1 << bit for bit in range(8)} | set(SPECIAL)) - {byte}:
            _check_mutant(NOTE[:position] + bytes([other]) + NOTE[position + 1 :])


def test_every_byte_removed() -> None:
    for position in range(len(NOTE)):
        _check_mutant(NOTE[:position] + NOTE[position + 1 :])
