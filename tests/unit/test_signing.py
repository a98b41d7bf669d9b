"""Keys.  What breaks here lets a foreign key speak for a principal, or a secret leak into a log file."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from casstore import signing
from casstore.errors import InvalidInput, MalformedDocument, SignatureInvalid
from casstore.signing import SignatureType, SigningKey, Verifier, check_public_key, keyid_hex, verify_ed25519

SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
P = 2**255 - 19


def test_golden_pair_of_the_reference_implementation() -> None:
    key = SigningKey.parse(SKEY)
    assert key.verifier == Verifier.parse(VKEY)
    assert (key.encode(), key.verifier.encode()) == (SKEY, VKEY)
    assert key.verifier.key_id.hex() == "c74f20a3"


def test_base64_of_a_key_may_hold_a_plus() -> None:
    # A key split at its last '+' would be refused, one key in three.
    for number in range(64):
        key = SigningKey.generate("a", bytes([number]) * 32)
        if "+" in key.encode().removeprefix("PRIVATE+KEY+").split("+", 2)[2]:
            break
    else:
        raise AssertionError("no seed tried gives a '+'")
    assert SigningKey.parse(key.encode()).verifier == key.verifier


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PeterNeumann",
        "PeterNeumann+c74f20a3",
        "PeterNeumann+c74f20a3+",
        VKEY + "\n",
        " " + VKEY,
        VKEY.replace("c74f20a3", "C74F20A3"),
        VKEY.replace("c74f20a3", "c74f20a4"),
        VKEY.replace("c74f20a3", "0c74f20a3"),
        VKEY.replace("PeterNeumann", "PeterNeuman"),
        VKEY.replace("PeterNeumann", ""),
        VKEY.replace("PeterNeumann", "Peter Neumann"),
        VKEY.replace("PeterNeumann", "Peter\u00a0Neumann"),
        VKEY.replace("+AR", "+Ag"),
        VKEY.replace("+AR", "+AQ"),
        VKEY[:-1],
        VKEY + "=",
    ],
)
def test_a_verifier_key_has_one_spelling(text: str) -> None:
    with pytest.raises((MalformedDocument, InvalidInput)):
        Verifier.parse(text)


def test_every_changed_character_of_a_verifier_key_is_refused() -> None:
    for position in range(len(VKEY)):
        for other in "Aa0+/= \n\u0660":
            changed = VKEY[:position] + other + VKEY[position + 1 :]
            if changed != VKEY:
                with pytest.raises(InvalidInput):
                    Verifier.parse(changed)


def test_every_changed_character_of_a_signing_key_is_refused_without_telling_it() -> None:
    secret = SKEY.split("+", 4)[4]
    for position in range(len(SKEY)):
        for other in "Aa0+/= \n\u0660":
            changed = SKEY[:position] + other + SKEY[position + 1 :]
            if changed != SKEY:
                with pytest.raises(InvalidInput) as caught:
                    SigningKey.parse(changed)
                text = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.fields}"
                assert secret[4:16] not in text
                assert secret[16:28] not in text


def test_a_secret_shows_nowhere() -> None:
    key = SigningKey.parse(SKEY)
    seed = SKEY.split("+", 4)[4]
    assert len(seed) == 44
    assert seed[4:] not in repr(key) + str(key) + f"{key}"
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_signatures_verify_and_do_not_transfer() -> None:
    key, other = SigningKey.generate("a", b"\x01" * 32), SigningKey.generate("a", b"\x02" * 32)
    signature = key.sign(b"message")
    key.verifier.verify(b"message", signature)
    for verifier, message, changed in [
        (other.verifier, b"message", signature),
        (key.verifier, b"massage", signature),
        (key.verifier, b"message", signature[:-1]),
        (key.verifier, b"message", signature + b"\x00"),
        (key.verifier, b"message", b""),
        (key.verifier, b"message", bytes(64)),
    ]:
        with pytest.raises(SignatureInvalid):
            verifier.verify(message, changed)


def test_every_flipped_bit_of_a_signature_is_refused() -> None:
    key = SigningKey.generate("a", b"\x01" * 32)
    signature = key.sign(b"message")
    for bit in range(8 * len(signature)):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureInvalid):
            key.verifier.verify(b"message", bytes(changed))


def test_a_signature_with_its_scalar_raised_by_the_group_order_is_refused() -> None:
    # Malleable signatures would give one intent two envelopes.
    order = 2**252 + 27742317777372353535851937790883648493
    key = SigningKey.generate("a", b"\x01" * 32)
    signature = key.sign(b"message")
    scalar = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(SignatureInvalid):
        key.verifier.verify(b"message", signature[:32] + scalar.to_bytes(32, "little"))


def _small_order_keys() -> list[bytes]:
    ys = [0, 1, P - 1, P, P + 1]
    points = [y.to_bytes(32, "little") for y in ys]
    points += [
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    ]
    return points + [point[:31] + bytes([point[31] | 0x80]) for point in points]


@pytest.mark.parametrize("public", _small_order_keys(), ids=bytes.hex)
def test_keys_of_small_order_are_refused(public: bytes) -> None:
    # Under such a key one signature fits many messages: it would sign whatever its owner later denies.
    with pytest.raises(InvalidInput):
        check_public_key(public)
    with pytest.raises(InvalidInput):
        Verifier("a", SignatureType.ED25519, public)
    with pytest.raises(InvalidInput):
        verify_ed25519(public, b"", bytes(64))


@pytest.mark.parametrize("y", [P + 3, P + 18, 2**255 - 1])
def test_keys_in_a_second_spelling_are_refused(y: int) -> None:
    with pytest.raises(InvalidInput, match="canonical"):
        check_public_key(y.to_bytes(32, "little"))


def test_about_half_of_all_numbers_are_no_point_and_are_refused() -> None:
    refused = 0
    for y in range(2, 102):
        try:
            check_public_key(y.to_bytes(32, "little"))
        except InvalidInput:
            refused += 1
    assert 30 < refused < 70


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_keys_have_one_length(length: int) -> None:
    with pytest.raises(InvalidInput):
        check_public_key(bytes(length))
    with pytest.raises(InvalidInput):
        SigningKey("a", bytes(length))


def test_honest_keys_pass() -> None:
    for number in range(64):
        check_public_key(SigningKey.generate("a", bytes([number]) * 32).verifier.public)


def test_type_is_part_of_the_key_id() -> None:
    seed = b"\x07" * 32
    plain = SigningKey("a", seed).verifier
    cosigner = SigningKey("a", seed, SignatureType.COSIGNATURE).verifier
    assert plain.public == cosigner.public
    assert plain.key_id != cosigner.key_id
    assert plain != cosigner
    assert (plain.is_cosigner, cosigner.is_cosigner) == (False, True)


def test_cosigning_keys_have_a_text_form() -> None:
    key = SigningKey("witness.example/w", b"\x07" * 32, SignatureType.COSIGNATURE)
    assert SigningKey.parse(key.encode()).verifier == key.verifier == Verifier.parse(key.verifier.encode())


def test_ml_dsa_keys_only_verify() -> None:
    with pytest.raises(InvalidInput):
        SigningKey("a", b"\x07" * 32, SignatureType.MLDSA44_COSIGNATURE)
    with pytest.raises(InvalidInput):
        Verifier("a", SignatureType.MLDSA44_COSIGNATURE, bytes(32))


def test_envelope_key_id_is_the_hash_of_the_public_key() -> None:
    public = Verifier.parse(VKEY).public
    assert keyid_hex(public) == "c7a9d541f116ae828b693ee8c89482bbe3ec786faa1df159677bd65150394f0f"


def test_import_is_cheap() -> None:
    # The command line imports this to read a trust file; the library behind it takes longer than the rest of the start.
    code = "import sys, casstore.signing; sys.exit('cryptography' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


def test_the_points_of_small_order_are_those_of_the_curve() -> None:
    # Derived anew: doubling such a point three times gives the neutral element (0, 1).
    d, p = signing._D, signing._P
    for y in signing._SMALL_ORDER_Y:
        x2 = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        for _ in range(3):
            # With t = d x^2 y^2:  y' = (y^2 + x^2) / (1 - t)  and  x'^2 = 4 x^2 y^2 / (1 + t)^2.
            t = d * x2 * y * y % p
            x2, y = 4 * x2 * y * y * pow((1 + t) ** 2, -1, p) % p, (y * y + x2) * pow(1 - t, -1, p) % p
        assert (x2, y) == (0, 1)
