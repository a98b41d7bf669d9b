"""The identifiers: one frozen type each, so that no bare ``bytes`` or ``str`` id crosses a public border.

Owns how every identifier is spelled.  Binary ids are ``bytes`` subclasses: they compare, hash, sort and slice at the speed
of ``bytes`` (chunk ids are looked up by the million), yet a :class:`ChunkId` where a :class:`TreeDigest` is wanted does not
type-check.  Each has exactly one text form; ``parse`` accepts that form and nothing else.

Invariant: ``T.parse(str(x)) == x`` for every id ``x`` of type ``T``.
"""

from __future__ import annotations

import re
from typing import ClassVar, Self

from casstore.errors import InvalidDigest, InvalidName

_HEX = re.compile(r"[0-9a-f]*\Z")


class _BinaryId(bytes):
    """A fixed-size binary id; subclasses give the size and the prefix of the text form."""

    __slots__ = ()
    SIZE: ClassVar[int] = 32
    PREFIX: ClassVar[str] = ""

    def __new__(cls, value: bytes) -> Self:
        if len(value) != cls.SIZE:
            raise InvalidDigest(f"a {cls.__name__} has {cls.SIZE} bytes, this has {len(value)}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the one text form.

        Args:
            text: ``PREFIX`` and then ``2 * SIZE`` lower-case hex digits.

        Raises:
            InvalidDigest: any other spelling.
        """
        digits = text.removeprefix(cls.PREFIX)
        if not text.startswith(cls.PREFIX) or len(digits) != 2 * cls.SIZE or not _HEX.match(digits):
            raise InvalidDigest(f"expected {cls.PREFIX}<{2 * cls.SIZE} hex digits>, found {text[:100]!r}")
        return cls(bytes.fromhex(digits))

    def __str__(self) -> str:
        return self.PREFIX + self.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @property
    def short(self) -> str:
        """The first 12 hex digits, for people."""
        return self.hex()[:12]


class _Blake3Digest(_BinaryId):
    __slots__ = ()
    PREFIX = "blake3:"


class ChunkId(_Blake3Digest):
    """BLAKE3-256 of a chunk's plain bytes."""

    __slots__ = ()


class BlobDigest(_Blake3Digest):
    """BLAKE3-256 of the bytes of a file or blob."""

    __slots__ = ()


class PageDigest(_Blake3Digest):
    """Identity of a page of a tree (BLAKE3 ``derive_key``, context ``casstore v1 page``)."""

    __slots__ = ()


class TreeDigest(_Blake3Digest):
    """Identity of a directory tree: the digest of its root (context ``casstore v1 tree``)."""

    __slots__ = ()


class SnapshotDigest(_Blake3Digest):
    """Identity of a snapshot document (context ``casstore v1 snapshot``)."""

    __slots__ = ()


class PackId(_BinaryId):
    """128 random bits that name a pack; text form is 32 hex digits."""

    __slots__ = ()
    SIZE = 16


class PushId(_BinaryId):
    """128 random bits, chosen by the client, that name one push; text form is 32 hex digits."""

    __slots__ = ()
    SIZE = 16


class IntentId(_BinaryId):
    """SHA-256 of an intent's payload; text form is 64 hex digits."""

    __slots__ = ()


class _Name(str):
    """A validated name; subclasses give the pattern and the rule in words."""

    __slots__ = ()
    PATTERN: ClassVar[re.Pattern[str]]
    RULE: ClassVar[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Accept ``text`` if it keeps the rule.

        Raises:
            InvalidName: it does not; the message states the rule.
        """
        if not cls.PATTERN.match(text):
            raise InvalidName(f"{text[:100]!r} is not a {cls.__name__}: {cls.RULE}")
        return cls(text)


class PointerName(_Name):
    """A pointer's name, such as ``prod/api``."""

    __slots__ = ()
    PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(/[a-z0-9][a-z0-9._-]{0,62}){0,3}\Z")
    RULE = "one to four parts joined by '/', each [a-z0-9][a-z0-9._-]{0,62}"


class ArtifactName(_Name):
    """What a build calls what it pushed, such as ``api`` or ``team/api``."""

    __slots__ = ()
    PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,126}(/[A-Za-z0-9][A-Za-z0-9._+-]{0,126}){0,3}\Z")
    RULE = "one to four parts joined by '/', each [A-Za-z0-9][A-Za-z0-9._+-]{0,126}"


class ComponentName(_Name):
    """A component of a snapshot."""

    __slots__ = ()
    PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
    RULE = "[a-z0-9][a-z0-9._-]{0,62}"


class PrincipalName(_Name):
    """Who acts: a person or a machine named by the policy."""

    __slots__ = ()
    PATTERN = re.compile(r"[a-z0-9][a-z0-9._@-]{0,62}\Z")
    RULE = "[a-z0-9][a-z0-9._@-]{0,62}"
