"""Intents: every one has a single spelling, and no byte of a signed one can be changed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import CasstoreError
from casstore.formats.acts import Member, args_of, flip_args, parse_args
from casstore.formats.canonical import encode_b64
from casstore.formats.intent import (
    Intent,
    decode_intent,
    encode_intent,
    keys_by_id,
    normalise_envelope,
    sign_intent,
    verify_envelope,
)
from casstore.ids import PointerName, SnapshotDigest
from casstore.wire import Envelope, EnvelopeSignature
from tests.support.logworld import key

ALICE = key("alice")
KEYS = keys_by_id([ALICE.verifier])
NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}(/[a-z0-9][a-z0-9._-]{0,8}){0,3}", fullmatch=True).map(PointerName)
DIGESTS = st.binary(min_size=32, max_size=32).map(SnapshotDigest)
COUNTS = st.integers(0, 2**53 - 2)


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    kind: Any = draw(st.sampled_from(["init", "deploy", "promote", "rollback", "retire"]))
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    expects = st.none() if kind == "init" else COUNTS if kind in ("rollback", "retire") else st.none() | COUNTS
    members = [
        Member(expect=draw(expects), pointer=name, to=None if kind == "retire" else draw(DIGESTS)) for name in names
    ]
    back = kind == "rollback"
    left = (draw(st.booleans()), draw(st.booleans())) if back else (False, False)
    clear = (draw(st.booleans()), draw(st.booleans()) and not left[1])
    resolve: Any = draw(st.sampled_from([None, "previous"])) if back else None
    args = args_of(flip_args(kind, members, resolve=resolve, left=left, clear=clear))
    iat = draw(st.integers(0, 2**52))
    seen = max((member.expect for member in members if member.expect is not None), default=0) + 1
    nonce = draw(st.binary(min_size=16, max_size=16)).hex()
    why = draw(st.text(st.characters(codec="utf-8"), max_size=20))
    return Intent(
        "flip", args, iat + draw(st.integers(0, 10**6)), iat, "casstore/x", nonce, draw(COUNTS), bytes(32), seen, why
    )


@given(intents())
def test_round_trip(intent: Intent) -> None:
    payload = encode_intent(intent)
    assert decode_intent(payload) == intent
    assert encode_intent(decode_intent(payload)) == payload
    assert args_of(parse_args("flip", intent.args)) == intent.args


@given(intents(), st.integers(0, 5000), st.integers(1, 255))
@settings(deadline=None)
def test_no_byte_of_a_signed_intent_can_be_changed(intent: Intent, at: int, flip: int) -> None:
    """Whatever a proxy or a server changes in what was signed, the signature falls."""
    payload = bytearray(encode_intent(intent))
    envelope = sign_intent(bytes(payload), [ALICE])
    verify_envelope(envelope, KEYS)
    payload[at % len(payload)] ^= flip
    changed = Envelope(
        payload=encode_b64(bytes(payload)), payload_type=envelope.payload_type, signatures=envelope.signatures
    )
    with pytest.raises(CasstoreError):
        verify_envelope(changed, KEYS)


@given(st.integers(0, 63), st.integers(0, 7))
@settings(deadline=None)
def test_no_bit_of_a_signature_can_be_changed(at: int, bit: int) -> None:
    payload = b"{}"
    signature = bytearray(sign(payload))
    signature[at] ^= 1 << bit
    keyid = sign_intent(payload, [ALICE]).signatures[0].keyid
    bad = Envelope(
        payload=encode_b64(payload),
        payload_type="application/vnd.casstore.intent+json",
        signatures=[EnvelopeSignature(keyid=keyid, sig=encode_b64(bytes(signature)))],
    )
    with pytest.raises(CasstoreError):
        verify_envelope(bad, KEYS)


def sign(payload: bytes) -> bytes:
    from casstore.formats.intent import PAYLOAD_TYPE, pae

    return ALICE.sign(pae(PAYLOAD_TYPE, payload))


@given(
    st.binary(max_size=200),
    st.lists(st.tuples(st.text(max_size=70), st.text(max_size=90)), max_size=3),
    st.text(max_size=9),
)
def test_any_envelope_gives_its_normal_form_or_our_own_error(
    payload: bytes, signatures: list[tuple[str, str]], junk: str
) -> None:
    envelope = Envelope(
        payload=encode_b64(payload) + junk,
        payload_type="application/vnd.casstore.intent+json",
        signatures=[EnvelopeSignature(keyid=keyid, sig=sig) for keyid, sig in signatures],
    )
    try:
        normal = normalise_envelope(envelope)
    except CasstoreError:
        return
    assert normalise_envelope(normal) == normal


@given(st.binary(max_size=300))
def test_any_bytes_give_our_own_error(data: bytes) -> None:
    with pytest.raises(CasstoreError):
        decode_intent(data)
