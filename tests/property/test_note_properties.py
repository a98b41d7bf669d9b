"""Signed notes of any text, any keys and any junk."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from casstore.errors import CasstoreError, VerificationError
from casstore.formats.lines import is_key_name, parse_decimal
from casstore.formats.note import add_signature_line, cosign, cosignature_time, open_note, sign_note, split_note
from casstore.signing import SignatureType, SigningKey, Verifier

TEXTS = st.text(
    st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\n\u0085\u2028\u2029\u2014 +"), max_size=60
).map(lambda text: text + "\n")
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=20).filter(
    is_key_name
)
SEEDS = st.binary(min_size=32, max_size=32)
KEYS = st.builds(SigningKey, NAMES, SEEDS)
COSIGNERS = st.builds(SigningKey, NAMES, SEEDS, st.just(SignatureType.COSIGNATURE))


@settings(deadline=None)
@given(KEYS | COSIGNERS)
def test_keys_round_trip(key: SigningKey) -> None:
    assert Verifier.parse(key.verifier.encode()) == key.verifier
    again = SigningKey.parse(key.encode())
    assert (again.encode(), again.verifier) == (key.encode(), key.verifier)


@settings(deadline=None)
@given(TEXTS, st.lists(KEYS, min_size=1, max_size=4, unique_by=lambda key: key.verifier))
def test_notes_round_trip(text: str, keys: list[SigningKey]) -> None:
    note = sign_note(text, keys)
    opened = open_note(note, [key.verifier for key in keys])
    assert opened.text == text
    assert [signature.verifier for signature in opened.signatures] == [key.verifier for key in keys]
    assert not opened.unknown
    for key in keys:
        alone = open_note(note, [key.verifier])
        assert (alone.text, len(alone.signatures), len(alone.unknown)) == (text, 1, len(keys) - 1)
    with pytest.raises(VerificationError):
        open_note(note, [])


@settings(deadline=None)
@given(TEXTS, KEYS, COSIGNERS, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_cosignatures_round_trip_and_are_replaced(
    text: str, key: SigningKey, cosigner: SigningKey, first: int, second: int
) -> None:
    assume(key.verifier.public != cosigner.verifier.public)
    note = sign_note(text, [key])
    for seconds in (first, second):
        note = add_signature_line(note, cosign(text, cosigner, seconds), cosigner.verifier)
        opened = open_note(note, [key.verifier, cosigner.verifier])
        assert [cosignature_time(signature.line) for signature in opened.signatures[1:]] == [seconds]
        assert opened.text == text


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_junk_raises_our_errors_only(data: bytes) -> None:
    key = SigningKey("k", b"\x01" * 32)
    for candidate in (data, data + b"\n\n" + sign_note("t\n", [key]), sign_note("t\n", [key]) + data):
        try:
            opened = open_note(candidate, [key.verifier])
        except CasstoreError:
            continue
        assert opened.text == "t\n"


@settings(deadline=None)
@given(TEXTS, KEYS, st.data())
def test_any_change_is_refused_or_without_effect(text: str, key: SigningKey, data: st.DataObject) -> None:
    other = SigningKey("other.example", b"\x07" * 32)
    assume(key.verifier != other.verifier)
    note = sign_note(text, [key, other])
    position = data.draw(st.integers(0, len(note) - 1))
    mutant = note[:position] + data.draw(st.binary(max_size=3)) + note[position + data.draw(st.integers(0, 3)) :]
    assume(mutant != note)
    try:
        opened = open_note(mutant, [key.verifier, other.verifier])
    except CasstoreError:
        return
    assert opened.text == text
    lines = {line.text for line in split_note(note)[1]}
    assert all(signature.line.text in lines for signature in opened.signatures)


@given(st.integers(0, 2**63 - 1))
def test_decimals_round_trip(number: int) -> None:
    assert parse_decimal(str(number)) == number


@given(st.text(max_size=24) | st.from_regex(r"[+-]?[0-9_ ]{1,22}\n?", fullmatch=True))
def test_decimals_have_one_spelling(text: str) -> None:
    try:
        number = parse_decimal(text)
    except CasstoreError:
        return
    assert str(number) == text
