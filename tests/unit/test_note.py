"""Signed notes.  What breaks here makes a host believe text that no one signed, or refuse text that someone did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import ConfigurationError, InvalidInput, MalformedDocument, TooLarge, VerificationError
from casstore.formats.note import (
    SignatureLine,
    add_signature_line,
    cosign,
    cosignature_time,
    cosigned_message,
    open_note,
    sign_note,
    split_note,
)
from casstore.limits import NOTE_LINES_MAX, NOTE_SIZE_MAX_BYTES
from casstore.signing import SignatureType, SigningKey, Verifier

GOLDEN = Path(__file__).parent.parent / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "note.json").read_text())

LOG = SigningKey("log.example", b"\x01" * 32)
SECOND = SigningKey("second.example", b"\x02" * 32)
STRANGER = SigningKey("stranger.example", b"\x03" * 32)
WITNESS = SigningKey("witness.example", b"\x04" * 32, SignatureType.COSIGNATURE)
TEXT = "log.example\n7\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["desc"])
def test_vectors(case: dict[str, Any]) -> None:
    known = [Verifier.parse(vkey) for vkey in case["known"]]
    if case["text"] is None:
        with pytest.raises((MalformedDocument, VerificationError)):
            open_note(case["note"].encode(), known)
        return
    opened = open_note(case["note"].encode(), known)
    assert opened.text == case["text"]
    assert [signature.verifier.name for signature in opened.signatures] == case["verified"]
    assert [line.name for line in opened.unknown] == case["unknown"]


def test_signing_gives_the_reference_implementations_bytes() -> None:
    key = SigningKey.parse("PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")
    assert sign_note(CASES[0]["text"], [key]) == CASES[0]["note"].encode()


def test_invalid_utf8_is_refused() -> None:
    note = sign_note(TEXT, [LOG])
    for bad in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe2\x80"):
        with pytest.raises(MalformedDocument):
            open_note(bad + note, [LOG.verifier])


@pytest.mark.parametrize("text", ["", "a", "a\r\n", "a\tb\n", "\x00\n", "\x1f\n", "\ud800\n"])
def test_text_that_no_note_can_carry_is_not_signed(text: str) -> None:
    with pytest.raises(InvalidInput):
        sign_note(text, [LOG])
    with pytest.raises(InvalidInput):
        cosign(text, WITNESS, 1)


def test_a_note_without_signature_is_not_made() -> None:
    with pytest.raises(InvalidInput):
        sign_note(TEXT, [])


def test_keys_sign_only_what_their_type_says() -> None:
    with pytest.raises(InvalidInput):
        sign_note(TEXT, [WITNESS])
    with pytest.raises(InvalidInput):
        cosign(TEXT, LOG, 1)


def test_lines_handed_in_must_be_lines() -> None:
    for line in ("", "x", "— a", cosign(TEXT, WITNESS, 1) + "\n", "— a b c"):
        with pytest.raises(MalformedDocument):
            sign_note(TEXT, [LOG], [line])


def test_sixteen_lines_and_more_are_accepted_and_a_hundred_and_one_are_not() -> None:
    keys = [SigningKey(f"k{number}", bytes([number]) * 32) for number in range(NOTE_LINES_MAX + 1)]
    note = sign_note(TEXT, keys[:-1])
    assert len(open_note(note, [key.verifier for key in keys]).signatures) == NOTE_LINES_MAX
    line = sign_note(TEXT, keys[-1:]).decode().split("\n\n")[1]
    with pytest.raises(TooLarge):
        open_note(note + line.encode(), [keys[0].verifier])
    with pytest.raises(TooLarge):
        sign_note(TEXT, keys)


def test_size_is_bounded() -> None:
    rest = len(sign_note("x\n", [LOG])) - 1
    note = sign_note("x" * (NOTE_SIZE_MAX_BYTES - rest) + "\n", [LOG])
    assert len(note) == NOTE_SIZE_MAX_BYTES
    open_note(note, [LOG.verifier])
    with pytest.raises(TooLarge):
        open_note(b"x" + note, [LOG.verifier])
    with pytest.raises(TooLarge):
        sign_note("x" * NOTE_SIZE_MAX_BYTES + "\n", [LOG])


def test_two_known_keys_with_one_identity_are_a_mistake_of_the_caller() -> None:
    # A four-byte key id collides for whoever tries; which of the two keys was meant is then anyone's guess.
    class Colliding(Verifier):
        @property
        def key_id(self) -> bytes:
            return LOG.verifier.key_id

    twin = Colliding("log.example", SignatureType.ED25519, SECOND.verifier.public)
    with pytest.raises(ConfigurationError):
        open_note(sign_note(TEXT, [LOG]), [LOG.verifier, twin])
    assert open_note(sign_note(TEXT, [LOG]), [LOG.verifier, LOG.verifier]).text == TEXT


# --- cosignatures ----------------------------------------------------------------------------------------------------


def test_cosigned_message_to_the_byte() -> None:
    assert cosigned_message(WITNESS.verifier, TEXT, 1679315147) == b"cosignature/v1\ntime 1679315147\n" + TEXT.encode()


def test_cosignature_carries_its_time() -> None:
    note = sign_note(TEXT, [LOG], [cosign(TEXT, WITNESS, 1679315147)])
    opened = open_note(note, [LOG.verifier, WITNESS.verifier])
    assert [signature.verifier for signature in opened.signatures] == [LOG.verifier, WITNESS.verifier]
    assert cosignature_time(opened.signatures[1].line) == 1679315147
    assert len(opened.signatures[1].line.signature) == 8 + 64


def test_time_is_signed() -> None:
    line = cosign(TEXT, WITNESS, 1679315147)
    signature = split_note(sign_note(TEXT, [LOG], [line]))[1][1].signature
    later = SignatureLine(WITNESS.name, WITNESS.verifier.key_id, b"\x00" * 7 + b"\x01" + signature[8:], "")
    with pytest.raises(VerificationError):
        open_note(_with(later), [LOG.verifier, WITNESS.verifier])


@pytest.mark.parametrize("seconds", [-1, 2**63, 2**64])
def test_times_out_of_range_are_not_signed(seconds: int) -> None:
    with pytest.raises(InvalidInput):
        cosign(TEXT, WITNESS, seconds)


@pytest.mark.parametrize("signature", [b"\x00", bytes(8), bytes(71), bytes(72), bytes(73), b"\xff" * 72])
def test_short_long_and_late_cosignatures_refuse_the_note(signature: bytes) -> None:
    line = SignatureLine(WITNESS.name, WITNESS.verifier.key_id, signature, "")
    with pytest.raises(VerificationError):
        open_note(_with(line), [LOG.verifier, WITNESS.verifier])
    assert open_note(_with(line), [LOG.verifier]).text == TEXT


def _with(line: SignatureLine) -> bytes:
    from casstore.formats.canonical import encode_b64

    return sign_note(TEXT, [LOG], [f"\u2014 {line.name} {encode_b64(line.key_id + line.signature)}"])


def test_a_cosignature_does_not_pass_for_a_signature_nor_the_reverse() -> None:
    # Same seed, same name, both types: the message keeps them apart.
    plain, cosigner = SigningKey("a", b"\x09" * 32), SigningKey("a", b"\x09" * 32, SignatureType.COSIGNATURE)
    stamped = split_note(sign_note(TEXT, [LOG], [cosign(TEXT, cosigner, 5)]))[1][1].signature
    as_plain = SignatureLine("a", plain.verifier.key_id, stamped[8:], "")
    with pytest.raises(VerificationError):
        open_note(_with(as_plain), [LOG.verifier, plain.verifier])
    bare = split_note(sign_note(TEXT, [plain]))[1][0].signature
    as_cosignature = SignatureLine("a", cosigner.verifier.key_id, bytes(8) + bare, "")
    with pytest.raises(VerificationError):
        open_note(_with(as_cosignature), [LOG.verifier, cosigner.verifier])


# --- merging lines ---------------------------------------------------------------------------------------------------


def test_a_line_is_appended_and_a_fresh_one_replaces_the_old_one() -> None:
    note = sign_note(TEXT, [LOG, STRANGER])
    once = add_signature_line(note, cosign(TEXT, WITNESS, 100), WITNESS.verifier)
    assert once == note + cosign(TEXT, WITNESS, 100).encode() + b"\n"
    with_more = add_signature_line(once, sign_note(TEXT, [SECOND]).decode().split("\n")[-2], SECOND.verifier)
    twice = add_signature_line(with_more, cosign(TEXT, WITNESS, 200), WITNESS.verifier)
    assert [line.name for line in split_note(twice)[1]] == [LOG.name, STRANGER.name, WITNESS.name, SECOND.name]
    opened = open_note(twice, [LOG.verifier, WITNESS.verifier])
    assert cosignature_time(opened.signatures[1].line) == 200


def test_replacing_removes_every_older_line_of_the_key() -> None:
    doubled = sign_note(TEXT, [LOG], [cosign(TEXT, WITNESS, 1), cosign(TEXT, WITNESS, 2)])
    merged = add_signature_line(doubled, cosign(TEXT, WITNESS, 3), WITNESS.verifier)
    assert merged == sign_note(TEXT, [LOG], [cosign(TEXT, WITNESS, 3)])


def test_a_bad_line_is_never_merged() -> None:
    # One such line would make every host that knows the witness refuse every checkpoint.
    note = sign_note(TEXT, [LOG])
    good = cosign(TEXT, WITNESS, 100)
    other_text = cosign(TEXT.replace("7", "8"), WITNESS, 100)
    changed = good[:-10] + ("A" if good[-10] != "A" else "B") + good[-9:]
    by_other = cosign(TEXT, SigningKey("witness.example", b"\x05" * 32, SignatureType.COSIGNATURE), 100)
    for line in (other_text, changed, by_other, good.replace(WITNESS.name, "other.example")):
        with pytest.raises(VerificationError):
            add_signature_line(note, line, WITNESS.verifier)
    for line in ("", "junk", good + "\n", good + " ", good + "\n" + good):
        with pytest.raises(MalformedDocument):
            add_signature_line(note, line, WITNESS.verifier)


def test_merging_keeps_the_bounds() -> None:
    keys = [SigningKey(f"k{number}", bytes([number]) * 32) for number in range(NOTE_LINES_MAX)]
    full = sign_note(TEXT, keys)
    with pytest.raises(TooLarge):
        add_signature_line(full, cosign(TEXT, WITNESS, 1), WITNESS.verifier)


# --- every byte ------------------------------------------------------------------------------------------------------


SPECIAL = b"\n\x00\x1f +-=/0A\x7f\x80\x85\xa0\xe2\xff"


def _check_mutant(mutant: bytes, text: str, count: int) -> None:
    """Refused, or the same text by fewer keys: never another text, never the changed line counted."""
    try:
        opened = open_note(mutant, [LOG.verifier, WITNESS.verifier])
    except (InvalidInput, VerificationError):
        return
    assert opened.text == text
    original = {line.text for line in split_note(MUTATED)[1]}
    assert all(signature.line.text in original for signature in opened.signatures)
    assert len(opened.signatures) <= count


MUTATED = sign_note(TEXT, [LOG, STRANGER], [cosign(TEXT, WITNESS, 1679315147)])


def test_every_single_byte_mutation() -> None:
    for position, byte in enumerate(MUTATED):
        others = {byte ^ 1 << bit for bit in range(8)} | set(SPECIAL)
        for other in others - {byte}:
            _check_mutant(MUTATED[:position] + bytes([other]) + MUTATED[position + 1 :], TEXT, 2)


def test_every_single_byte_removed_or_added() -> None:
    for position in range(len(MUTATED) + 1):
        _check_mutant(MUTATED[:position] + MUTATED[position + 1 :] if position < len(MUTATED) else b"", TEXT, 2)
        for other in SPECIAL:
            _check_mutant(MUTATED[:position] + bytes([other]) + MUTATED[position:], TEXT, 2)


def test_every_truncation_is_refused_or_loses_whole_lines() -> None:
    for length in range(len(MUTATED)):
        _check_mutant(MUTATED[:length], TEXT, 2)


@pytest.mark.slow
def test_every_single_byte_mutation_to_every_value() -> None:
    for position, byte in enumerate(MUTATED):
        for other in range(256):
            if other != byte:
                _check_mutant(MUTATED[:position] + bytes([other]) + MUTATED[position + 1 :], TEXT, 2)
