"""Keys: Ed25519 signatures, and the text forms of signing and verifying keys.

Owns what a key is and how it is written down (``vkey`` and ``skey`` of C2SP signed-note).  It must not know what is
signed: notes are :mod:`casstore.formats.note`, intents :mod:`casstore.formats.intent`.  Pure: seeds are handed in,
nothing is random.

Invariants: ``Verifier.parse(v.encode()) == v``; a key id is recomputed, never believed; a secret shows in no ``repr``,
no error and no pickle; a public key of small order, off the curve or in a second spelling is refused wherever it comes
in.

Source: https://c2sp.org/signed-note, https://c2sp.org/tlog-cosignature, RFC 8032
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final, NoReturn, Self

from casstore.errors import CasstoreError, InvalidInput, MalformedDocument, SignatureInvalid
from casstore.formats.canonical import decode_b64, encode_b64
from casstore.formats.lines import is_key_name

SEED_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
KEY_ID_BYTES: Final = 4
MLDSA44_PUBLIC_KEY_BYTES: Final = 1312
MLDSA44_SIGNATURE_BYTES: Final = 2420
SECRET_PREFIX: Final = "PRIVATE+KEY+"  # noqa: S105  (a format's fixed words, no secret)

_KEY_ID_HEX = re.compile(r"[0-9a-f]{8}\Z")

# Edwards25519: -x^2 + y^2 = 1 + d x^2 y^2 over the integers mod p.
_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P
# y of the eight points whose order divides 8.  A signature "by" such a key verifies for messages that no one signed.
_SMALL_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _P - 1,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    }
)


class SignatureType(IntEnum):
    """The algorithm byte of a note key."""

    ED25519 = 0x01
    """Ed25519 over the note's text."""
    COSIGNATURE = 0x04
    """Ed25519 over the note's text and a time."""
    MLDSA44_COSIGNATURE = 0x06
    """ML-DSA-44 over a checkpoint and a time; verified where the library can, never made here."""


@lru_cache(maxsize=4096)
def check_public_key(public: bytes) -> None:
    """Refuse what looks like an Ed25519 public key but is none.

    Args:
        public: 32 bytes.

    Raises:
        InvalidInput: wrong length, a second spelling (y ≥ p), no point of the curve, or a point of small order.

    Source: RFC 8032 section 5.1.3
    """
    if len(public) != PUBLIC_KEY_BYTES:
        raise InvalidInput(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, this has {len(public)}")
    y = int.from_bytes(public, "little") & ((1 << 255) - 1)
    if y >= _P:
        raise InvalidInput("the Ed25519 public key is not in canonical form")
    if y in _SMALL_ORDER_Y:
        raise InvalidInput("the Ed25519 public key is a point of small order")
    numerator, denominator = (y * y - 1) % _P, (_D * y * y + 1) % _P
    # x^2 = numerator / denominator has a root exactly if numerator * denominator is a square (Euler's criterion).
    if pow(numerator * denominator % _P, (_P - 1) // 2, _P) != 1:
        raise InvalidInput("the Ed25519 public key is not a point of the curve")


def verify_ed25519(public: bytes, message: bytes, signature: bytes) -> None:
    """Check one Ed25519 signature.

    Args:
        public: 32 bytes, already through :func:`check_public_key` or checked here.
        message: what was signed, at most some MiB.
        signature: 64 bytes.

    Raises:
        SignatureInvalid: the signature is not this key's over this message.
        InvalidInput: ``public`` is no acceptable key.
    """
    # Loading the library takes longer than everything else in this module: only who verifies pays for it.
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    check_public_key(public)
    if len(signature) != SIGNATURE_BYTES:
        raise SignatureInvalid(f"an Ed25519 signature has {SIGNATURE_BYTES} bytes, this has {len(signature)}")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        raise SignatureInvalid("the Ed25519 signature does not verify") from None


@lru_cache(maxsize=1)
def can_verify_mldsa44() -> bool:
    """Whether the installed library verifies ML-DSA-44."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415

    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey  # noqa: PLC0415

        MLDSA44PublicKey.from_public_bytes(bytes(MLDSA44_PUBLIC_KEY_BYTES))
    except (ImportError, UnsupportedAlgorithm):
        return False
    return True


def _verify_mldsa44(public: bytes, message: bytes, signature: bytes) -> None:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

    if not can_verify_mldsa44():
        raise SignatureInvalid("the installed library cannot verify ML-DSA-44")
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey  # noqa: PLC0415

    if len(signature) != MLDSA44_SIGNATURE_BYTES:
        raise SignatureInvalid(f"an ML-DSA-44 signature has {MLDSA44_SIGNATURE_BYTES} bytes, this has {len(signature)}")
    try:
        MLDSA44PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        raise SignatureInvalid("the ML-DSA-44 signature does not verify") from None


def key_id(name: str, signature_type: int, public: bytes) -> bytes:
    """The four bytes that, with the name, tell a verifier which key a signature line is by.

    >>> key_id("PeterNeumann", 1, decode_b64("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:]).hex()
    'c74f20a3'
    """
    return hashlib.sha256(name.encode() + b"\n" + bytes([signature_type]) + public).digest()[:KEY_ID_BYTES]


def keyid_hex(public: bytes) -> str:
    """The ``keyid`` of an envelope: SHA-256 of the public key, as 64 lower-case hex digits."""
    return hashlib.sha256(public).hexdigest()


def _split_key(text: str, *, what: str) -> tuple[str, str, SignatureType, bytes]:
    """Name, key id in hex, type and key material; the base64 part may hold ``+`` itself."""
    parts = text.split("+", 2)
    if len(parts) != 3:
        raise MalformedDocument(f"a {what} is <name>+<8 hex digits>+<base64>")
    name, id_hex, material = parts
    if not is_key_name(name):
        raise MalformedDocument(f"the {what}'s name is empty or holds a space or a control character")
    if not _KEY_ID_HEX.match(id_hex):
        raise MalformedDocument(f"the key id of the {what} {name!r} is not 8 lower-case hex digits")
    try:
        raw = decode_b64(material)
        return name, id_hex, SignatureType(raw[0]), raw[1:]
    except (CasstoreError, ValueError, IndexError):
        # TRUST: the cause is dropped, for it may quote the material, and the material may be a secret.
        raise MalformedDocument(f"the {what} {name!r} is not base64 of a key of a type known here") from None


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key with the name and type that it signs under.

    Args:
        name: the key's name; not empty, no Unicode space, no ``+``.
        type: what it signs, and how.
        public: 32 bytes, or 1,312 for ML-DSA-44.

    Raises:
        MalformedDocument: a name that no key may have.
        InvalidInput: ``public`` is no acceptable key.
    """

    name: str
    type: SignatureType
    public: bytes

    def __post_init__(self) -> None:
        if not is_key_name(self.name):
            raise MalformedDocument(f"{self.name[:100]!r} cannot name a key: it is empty, or holds a space or '+'")
        if self.type is SignatureType.MLDSA44_COSIGNATURE:
            if len(self.public) != MLDSA44_PUBLIC_KEY_BYTES:
                raise InvalidInput(f"an ML-DSA-44 public key has {MLDSA44_PUBLIC_KEY_BYTES} bytes")
        else:
            check_public_key(self.public)

    @classmethod
    def parse(cls, vkey: str) -> Self:
        """Read ``<name>+<8 hex digits>+<base64 of type and key>``.

        Raises:
            MalformedDocument: any other spelling, or a key id that is not this key's.
            InvalidInput: the key is not acceptable.
        """
        name, id_hex, kind, public = _split_key(vkey, what="verifier key")
        verifier = cls(name, kind, public)
        if verifier.key_id.hex() != id_hex:
            raise MalformedDocument(f"the verifier key {name!r} says its id is {id_hex}; it is {verifier.key_id.hex()}")
        return verifier

    def encode(self) -> str:
        """The ``vkey`` text."""
        return f"{self.name}+{self.key_id.hex()}+{encode_b64(bytes([self.type]) + self.public)}"

    @property
    def key_id(self) -> bytes:
        """Four bytes."""
        return key_id(self.name, self.type, self.public)

    @property
    def is_cosigner(self) -> bool:
        """Whether its signatures carry a time."""
        return self.type is not SignatureType.ED25519

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a bare signature: the caller builds the message (for a cosignature, the one with the time).

        Raises:
            SignatureInvalid: it is not this key's signature over this message.
        """
        if self.type is SignatureType.MLDSA44_COSIGNATURE:
            _verify_mldsa44(self.public, message, signature)
        else:
            verify_ed25519(self.public, message, signature)


class SigningKey:
    """An Ed25519 seed with the name and type that it signs under.

    Threads: any; signing changes nothing.
    """

    __slots__ = ("_key", "verifier")

    verifier: Verifier

    def __init__(self, name: str, seed: bytes, signature_type: SignatureType = SignatureType.ED25519) -> None:
        """Make the key of a seed.

        Args:
            name: the key's name.
            seed: 32 secret bytes; the same seed is the same key.
            signature_type: ``ED25519`` or ``COSIGNATURE``.

        Raises:
            InvalidInput: a seed of another length, or a type that is not made here.
            MalformedDocument: a name that no key may have.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

        if len(seed) != SEED_BYTES:
            raise InvalidInput(f"a seed has {SEED_BYTES} bytes, this has {len(seed)}")
        if signature_type not in (SignatureType.ED25519, SignatureType.COSIGNATURE):
            raise InvalidInput("only Ed25519 keys sign here")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier = Verifier(name, signature_type, self._key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str, seed: bytes, signature_type: SignatureType = SignatureType.ED25519) -> Self:
        """A new key, of randomness that the caller draws: ``SigningKey.generate(name, os.urandom(32))``.

        Args:
            name: the key's name.
            seed: 32 bytes fresh from the system's random source.
            signature_type: ``ED25519`` or ``COSIGNATURE``.

        Raises:
            InvalidInput: as the constructor.
            MalformedDocument: as the constructor.
        """
        return cls(name, seed, signature_type)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the ``skey`` text.

        Raises:
            MalformedDocument: any other spelling, or a key id that is not this key's.  No error quotes the secret.
            InvalidInput: a type that is not made here.
        """
        if not text.startswith(SECRET_PREFIX):
            raise MalformedDocument(f"a signing key begins with {SECRET_PREFIX}")
        name, id_hex, kind, seed = _split_key(text.removeprefix(SECRET_PREFIX), what="signing key")
        key = cls(name, seed, kind)
        if key.verifier.key_id.hex() != id_hex:
            raise MalformedDocument(f"the signing key {name!r} says its id is {id_hex}; it is not")
        return key

    @property
    def name(self) -> str:
        """The key's name."""
        return self.verifier.name

    def encode(self) -> str:
        """The ``skey`` text: a secret."""
        material = encode_b64(bytes([self.verifier.type]) + self._key.private_bytes_raw())
        return f"{SECRET_PREFIX}{self.name}+{self.verifier.key_id.hex()}+{material}"

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature over ``message``; deterministic."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey({self.name!r}, {self.verifier.key_id.hex()}, secret withheld)"

    def __reduce__(self) -> NoReturn:
        # TRUST: a pickled key would lie in caches and crash reports.
        raise TypeError("a signing key is not pickled: use encode()")
