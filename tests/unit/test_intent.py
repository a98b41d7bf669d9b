"""Intents: what is signed is exactly what is done."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from casstore.errors import (
    CasstoreError,
    InvalidDigest,
    InvalidName,
    MalformedDocument,
    SignatureInvalid,
    TooLarge,
    Unsupported,
)
from casstore.formats.acts import ACTS, LATER_ACTS, FlipArgs, Member, args_of, flip_args, parse_args
from casstore.formats.canonical import decode_b64, encode_b64, encode_canonical
from casstore.formats.intent import (
    PAYLOAD_TYPE,
    SIGNATURES_MAX,
    Intent,
    add_signatures,
    decode_intent,
    encode_intent,
    intent_id,
    keys_by_id,
    normalise_envelope,
    open_envelope,
    pae,
    sign_intent,
    verify_envelope,
)
from casstore.limits import FLIP_MEMBERS_MAX
from casstore.wire import Envelope, EnvelopeSignature, decode_json, encode_json
from tests.support.logworld import ORIGIN, START_MS, key, ptr, snap

GOLDEN = Path(__file__).parent.parent / "golden" / "intent.json"
ALICE, BOB = key("alice"), key("bob")
KEYS = keys_by_id([ALICE.verifier, BOB.verifier])


def flip(**changes: Any) -> dict[str, Any]:
    """Arguments of a deploy, with ``changes``."""
    return {**args_of(flip_args("deploy", [Member(expect=1, pointer=ptr("prod/api"), to=snap("A"))])), **changes}


def intent(act: str = "flip", args: dict[str, Any] | None = None, **changes: Any) -> Intent:
    base = Intent(
        act, flip() if args is None else args, START_MS + 1000, START_MS, ORIGIN, "0" * 32, 1, bytes(32), 2, "why"
    )
    return base._replace(**changes)


def document(**changes: Any) -> bytes:
    """A payload with fields changed behind the encoder's back; a change to Ellipsis takes the field away."""
    fields = json.loads(encode_intent(intent()))
    fields.update(changes)
    return encode_canonical({name: value for name, value in fields.items() if value is not ...}, keys_checked=False)


def member(**changes: Any) -> dict[str, Any]:
    return {"expect": 1, "pointer": "prod/api", "to": str(snap("A")), **changes}


def test_round_trip_and_id() -> None:
    payload = encode_intent(intent())
    assert decode_intent(payload) == intent()
    assert encode_intent(decode_intent(payload)) == payload
    assert str(intent_id(payload)) == hashlib.sha256(payload).hexdigest()


def test_golden_vectors() -> None:
    """These bytes are signed and hashed for ever."""
    for vector in json.loads(GOLDEN.read_text()):
        payload = vector["payload"].encode()
        assert encode_intent(decode_intent(payload)) == payload
        assert str(intent_id(payload)) == vector["id"]
        assert pae(PAYLOAD_TYPE, payload).hex() == vector["pae_hex"]
        envelope = decode_json(json.dumps(vector["envelope"]).encode(), Envelope)
        signer = key(vector["signer"])
        assert sign_intent(payload, [signer]) == envelope
        assert verify_envelope(envelope, keys_by_id([signer.verifier])).payload == payload


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"v": 2}, MalformedDocument),
        ({"v": ...}, MalformedDocument),
        ({"extra": 1}, MalformedDocument),
        ({"why": ...}, MalformedDocument),
        ({"why": None}, MalformedDocument),
        ({"why": "x" * 5000}, TooLarge),
        ({"nonce": "0" * 31}, MalformedDocument),
        ({"nonce": "0" * 32 + "\n"}, MalformedDocument),
        ({"nonce": "A" * 32}, MalformedDocument),
        ({"policy": -1}, MalformedDocument),
        ({"policy": True}, MalformedDocument),
        ({"exp": START_MS - 1}, MalformedDocument),
        ({"iat": "1"}, MalformedDocument),
        ({"log": "two words"}, MalformedDocument),
        ({"log": "a+b"}, MalformedDocument),
        ({"log": ""}, MalformedDocument),
        ({"log": "é"}, MalformedDocument),
        ({"log": "x" * 256}, MalformedDocument),
        ({"seen": {"root": "00" * 32, "size": -1}}, MalformedDocument),
        ({"seen": {"root": "AA" * 32, "size": 2}}, MalformedDocument),
        ({"seen": {"root": "00" * 31, "size": 2}}, MalformedDocument),
        ({"seen": {"root": "00" * 32, "size": 1}}, MalformedDocument),
        ({"act": "destroy"}, MalformedDocument),
        ({"act": "freeze"}, Unsupported),
        ({"args": []}, MalformedDocument),
        ({"args": {}}, MalformedDocument),
    ],
)
def test_a_payload_that_is_no_intent(changes: dict[str, Any], error: type[CasstoreError]) -> None:
    with pytest.raises(error):
        decode_intent(document(**changes))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"kind": "destroy"}, MalformedDocument),
        ({"kind": "breakglass"}, Unsupported),
        ({"guards": [{"pointer": "x"}]}, Unsupported),
        ({"effective_at": 5}, Unsupported),
        ({"effective_at": 0}, Unsupported),
        ({"rollout": {}}, Unsupported),
        ({"resolve": "previous"}, MalformedDocument),
        ({"resolve": "next"}, MalformedDocument),
        ({"left": {"bad": True, "hold": False}}, MalformedDocument),
        ({"left": {"bad": True}}, MalformedDocument),
        ({"clear": {"bad": False, "hold": False, "freeze": True}}, MalformedDocument),
        (
            {"kind": "rollback", "left": {"bad": False, "hold": True}, "clear": {"bad": False, "hold": True}},
            MalformedDocument,
        ),
        ({"members": []}, MalformedDocument),
        ({"members": [member(), member()]}, MalformedDocument),
        ({"members": [member(pointer="b"), member(pointer="a")]}, MalformedDocument),
        ({"members": [member(pointer=f"p{i:03d}") for i in range(FLIP_MEMBERS_MAX + 1)]}, TooLarge),
        ({"members": [member(expect=-1)]}, MalformedDocument),
        ({"members": [member(expect=2)]}, MalformedDocument),
        ({"members": [member(expect=1.5)]}, MalformedDocument),
        ({"members": [member(pointer="Prod")]}, InvalidName),
        ({"members": [member(pointer="a/../b")]}, InvalidName),
        ({"members": [member(pointer=7)]}, MalformedDocument),
        ({"members": [member(to="A")]}, InvalidDigest),
        ({"members": [member(to="sha256:" + "0" * 64)]}, InvalidDigest),
        ({"members": [member(to=None)]}, MalformedDocument),
        ({"kind": "retire"}, MalformedDocument),
        ({"kind": "init"}, MalformedDocument),
        ({"kind": "rollback", "members": [member(expect=None)]}, MalformedDocument),
    ],
)
def test_arguments_of_a_flip_that_contradict_each_other(changes: dict[str, Any], error: type[CasstoreError]) -> None:
    """None of these is silently taken as something near it."""
    with pytest.raises(error):
        decode_intent(document(args=flip(**changes)))


def test_every_act_is_known_or_refused_by_name() -> None:
    assert not set(ACTS) & LATER_ACTS
    for act in LATER_ACTS:
        with pytest.raises(Unsupported):
            parse_args(act, {})
    flipped = parse_args("flip", flip())
    assert isinstance(flipped, FlipArgs)
    assert args_of(flipped) == flip()


@pytest.mark.parametrize(
    ("act", "args"),
    [
        ("snapshot", {"digest": str(snap("A")), "parents": [], "size": 0}),
        ("snapshot", {"digest": str(snap("A")), "parents": [], "size": 1 << 30}),
        ("snapshot", {"digest": str(snap("A")), "parents": [str(snap("A")), str(snap("A"))], "size": 1}),
        ("snapshot", {"digest": str(snap("A")), "size": 1}),
        ("mark", {"pointer": "a", "snapshot": str(snap("A")), "verdict": "ugly"}),
        ("hold", {"pointer": "a", "until": -1}),
        ("release", {"pointer": "a", "until": None}),
        ("policy", {"policy": [], "version": 2}),
        ("genesis", {"policy": {}, "prev": {"origin": "a b", "root": "00" * 32, "size": 1}}),
        ("genesis", {"policy": {}}),
    ],
)
def test_arguments_of_the_other_acts(act: str, args: dict[str, Any]) -> None:
    with pytest.raises(MalformedDocument):
        parse_args(act, args)


def test_an_encoder_never_writes_what_the_decoder_refuses() -> None:
    """A client learns of its mistake before it signs."""
    with pytest.raises(MalformedDocument):
        encode_intent(intent(nonce="short"))
    with pytest.raises(Unsupported):
        encode_intent(intent(args=flip(guards=[{}])))


# --- envelopes ---------------------------------------------------------------------------------------------------------


def test_the_pae_is_the_one_of_dsse() -> None:
    """The example of the DSSE specification."""
    assert (
        pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_several_signers_and_approval() -> None:
    payload = encode_intent(intent())
    both = sign_intent(payload, [ALICE, BOB])
    assert [s.keyid for s in both.signatures] == sorted(s.keyid for s in both.signatures)
    assert verify_envelope(both, KEYS).keys == {ALICE.verifier.public, BOB.verifier.public}
    assert add_signatures(sign_intent(payload, [ALICE]), [BOB]) == both
    assert add_signatures(both, [BOB]) == both
    assert verify_envelope(both, KEYS).id == intent_id(payload)


def test_other_spellings_come_to_one_form() -> None:
    """Two requests that differ in base64 alphabet or order of signatures are one entry, byte for byte."""
    normal = sign_intent(encode_intent(intent(why="???>>>~~~")), [ALICE, BOB])

    def respell(text: str) -> str:
        return base64.urlsafe_b64encode(decode_b64(text)).decode()

    other = Envelope(
        payload=respell(normal.payload),
        payload_type=PAYLOAD_TYPE,
        signatures=[EnvelopeSignature(keyid=s.keyid, sig=respell(s.sig)) for s in reversed(normal.signatures)],
    )
    assert other != normal
    assert normalise_envelope(other) == normal
    assert decode_json(encode_json(normal), Envelope) == normal


def test_envelopes_that_are_none() -> None:
    good = sign_intent(encode_intent(intent()), [ALICE])
    one = good.signatures[0]
    replace = msgspec.structs.replace
    for bad in (
        replace(good, payload_type="application/json"),
        replace(good, signatures=[]),
        replace(good, signatures=[one, one]),
        replace(good, signatures=[replace(one, keyid=one.keyid.upper())]),
        replace(good, signatures=[replace(one, keyid="")]),
        replace(good, signatures=[replace(one, sig=one.sig[:-4])]),
        replace(good, payload=good.payload + "="),
        replace(good, payload="-/" + good.payload),
    ):
        with pytest.raises(MalformedDocument):
            normalise_envelope(bad)
    many = [EnvelopeSignature(keyid=f"{n:064x}", sig=one.sig) for n in range(SIGNATURES_MAX + 1)]
    with pytest.raises(TooLarge):
        normalise_envelope(replace(good, signatures=many))


def test_a_bad_signature_spoils_the_envelope() -> None:
    """Also beside a good one: what an approver signed is all or nothing."""
    payload = encode_intent(intent())
    both = sign_intent(payload, [ALICE, BOB])
    broken = msgspec.structs.replace(
        both, signatures=[both.signatures[0], msgspec.structs.replace(both.signatures[1], sig=encode_b64(bytes(64)))]
    )
    with pytest.raises(SignatureInvalid):
        verify_envelope(broken, KEYS)
    with pytest.raises(SignatureInvalid, match="does not know"):
        verify_envelope(both, keys_by_id([ALICE.verifier]))
    opened = open_envelope(both, keys_by_id([ALICE.verifier]))
    assert opened.keys == {ALICE.verifier.public}
    assert len(opened.unknown) == 1


def test_a_signature_over_the_bare_payload_does_not_count() -> None:
    """Only the DSSE encoding is signed, so a signature made for another purpose is worth nothing here."""
    payload = encode_intent(intent())
    good = sign_intent(payload, [ALICE])
    bare = EnvelopeSignature(keyid=good.signatures[0].keyid, sig=encode_b64(ALICE.sign(payload)))
    with pytest.raises(SignatureInvalid):
        verify_envelope(msgspec.structs.replace(good, signatures=[bare]), KEYS)
