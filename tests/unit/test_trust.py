"""Trust file and verified state: where a verifier begins, and what it must never forget."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from casstore.errors import CasstoreError, InvalidName, MalformedDocument, TooLarge, VerificationError
from casstore.formats.trust import (
    TRUST_SIZE_MAX_BYTES,
    TrustFile,
    VerifiedState,
    decode_trust,
    decode_verified,
    encode_trust,
    encode_verified,
)
from casstore.signing import SignatureType, SigningKey
from tests.support.logworld import LOG_KEY, ORIGIN, World, key, policy_document

CLOCK = SigningKey(ORIGIN + "/clock", bytes(32), SignatureType.COSIGNATURE)
GENESIS = World().entries[0]


def trust(**changes: Any) -> TrustFile:
    base = TrustFile(
        origin=ORIGIN,
        log_vkey=LOG_KEY.verifier.encode(),
        clock_vkey=CLOCK.verifier.encode(),
        genesis_sha256=hashlib.sha256(GENESIS).digest(),
        minimum_size=1,
        minimum_root=bytes(32),
    )
    return base._replace(**changes)


def verified() -> VerifiedState:
    note = f"{ORIGIN}\n1\n\n— näme sig\n".encode()
    return VerifiedState(note, 3, policy_document(), (LOG_KEY.verifier.encode(),), {"prod/api": 7, "dev/x": 9})


def test_round_trip() -> None:
    assert decode_trust(encode_trust(trust())) == trust()
    assert decode_verified(encode_verified(verified())) == verified()
    assert trust().log_verifier == LOG_KEY.verifier
    assert trust().clock_verifier == CLOCK.verifier
    assert trust().max_age_s == 600


def test_a_person_may_reformat_it() -> None:
    """It travels by mail and by configuration management: white space and key order carry nothing."""
    document = json.loads(encode_trust(trust()))
    assert decode_trust(json.dumps(dict(reversed(document.items())), indent=7).encode()) == trust()


def test_the_genesis_is_pinned() -> None:
    """Another log under the same origin and key is another log."""
    trust().check_genesis(GENESIS)
    with pytest.raises(VerificationError):
        trust().check_genesis(GENESIS + b" ")


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": "casstore/other"},
        {"origin": "a b"},
        {"log_vkey": CLOCK.verifier.encode()},
        {"log_vkey": "x"},
        {"clock_vkey": key("clock").verifier.encode()},
        {"clock_vkey": SigningKey(ORIGIN, bytes(32), SignatureType.COSIGNATURE).verifier.encode()},
        {"genesis_sha256": b"short"},
        {"minimum_size": -1},
        {"minimum_size": 0},
        {"minimum_root": b""},
        {"max_age_s": 0},
        {"witnesses": "nonsense here"},
    ],
)
def test_trust_files_that_contradict_themselves(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedDocument):
        encode_trust(trust(**changes))


def test_the_clock_is_no_witness() -> None:
    """The server's own key in a quorum would let the server witness itself."""
    with pytest.raises(MalformedDocument, match="quorum"):
        encode_trust(trust(witnesses=f"witness w {CLOCK.verifier.encode()} https://w/\nquorum w\n"))


def test_one_key_for_log_and_clock_is_refused() -> None:
    """A cosignature does not say whose it is: one key for both would let time speak for content."""
    seed = hashlib.sha256(b"seed of " + ORIGIN.encode()).digest()
    same = SigningKey("clock", seed, SignatureType.COSIGNATURE)
    with pytest.raises(MalformedDocument, match="clock key"):
        encode_trust(trust(clock_vkey=same.verifier.encode()))


@pytest.mark.parametrize("changes", [{"v": 2}, {"extra": 1}, {"log_vkey": None}, {"minimum": {"size": 1}}])
def test_fields_are_not_free(changes: dict[str, Any]) -> None:
    document = {**json.loads(encode_trust(trust())), **changes}
    with pytest.raises(MalformedDocument):
        decode_trust(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 50_000, b'{"v":1,"v":1}', b"null"])
def test_bytes_that_are_no_document(data: bytes) -> None:
    for decode in (decode_trust, decode_verified):
        with pytest.raises(MalformedDocument):
            decode(data)
    with pytest.raises(TooLarge):
        decode_trust(b" " * (TRUST_SIZE_MAX_BYTES + 1))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"policy": {}}, MalformedDocument),
        ({"log_keys": []}, MalformedDocument),
        ({"log_keys": ["x"]}, MalformedDocument),
        ({"flips": [{"flip": 1, "pointer": "b"}, {"flip": 1, "pointer": "a"}]}, MalformedDocument),
        ({"flips": [{"flip": 1, "pointer": "B"}]}, InvalidName),
        ({"flips": {"a": 1}}, MalformedDocument),
        ({"v": 0}, MalformedDocument),
    ],
)
def test_verified_states_that_are_none(changes: dict[str, Any], error: type[CasstoreError]) -> None:
    """A damaged memory must stop the verifier, not start it afresh."""
    with pytest.raises(error):
        decode_verified(json.dumps({**json.loads(encode_verified(verified())), **changes}).encode())


def test_every_lost_byte_is_an_error_or_a_known_document() -> None:
    """The file is written atomically, but disks lie."""
    data = encode_trust(trust())
    for position in range(len(data)):
        try:
            read = decode_trust(data[:position] + data[position + 1 :])
        except CasstoreError:
            continue
        decode_trust(encode_trust(read))
