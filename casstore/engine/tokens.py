"""Bearer tokens: who is asking, and what that one may do.

Owns the token table, the text form of a token, and what a permission means.  Knows nothing of HTTP, and nothing of the
policy: a request must pass its token *and* the policy, and the policy is judged where the act is planned.

Invariants: a secret is never stored, only its SHA-256; comparing takes the same time whatever differs; no permission
implies another, so what a token may do stands in its list and nowhere else.

Text form: ``cas_<16 hex digits of the id>_<43 characters of urlsafe base64 of the 32-byte secret>``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from casstore.clock import Clock
from casstore.errors import DamagedObject, InvalidInput, NotPermitted, TokenNotFound, Unauthenticated
from casstore.formats.policy import glob_matches, validate_glob
from casstore.ids import PrincipalName
from casstore.storage.roles import Ledger, LedgerTransaction, LedgerView, Table
from casstore.wire import Token, TokenList, format_time

_TEXT = re.compile(r"cas_([0-9a-f]{16})_([A-Za-z0-9_-]{43})\Z")

PLAIN_PERMISSIONS: Final = ("content:read", "content:push", "snapshot:publish", "host:report", "operate", "admin")
"""Permissions without a scope."""
SCOPED_PERMISSIONS: Final = ("pointer:read", "flip", "rollback", "mark", "hold", "freeze", "approve")
"""Permissions that end in a glob of pointer names: ``flip:prod/**``."""
ALL_PERMISSIONS: Final = (*PLAIN_PERMISSIONS, *(f"{verb}:**" for verb in SCOPED_PERMISSIONS))
"""Everything, spelled out: what the first token of a store may do."""

TOKENS_MAX: Final = 10_000  # LIMIT: the list is answered whole; a store with more wants an identity provider
TOKEN_PERMISSIONS_MAX: Final = 64  # LIMIT: checked one by one on every request


class Identity(NamedTuple):
    """Who is asking: one token, one principal."""

    id: str
    """16 hex digits."""
    principal: str
    permissions: tuple[str, ...]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the token table."""

    name: str
    permissions: tuple[str, ...]
    created_ms: int
    expires_ms: int | None
    secret_sha256: str


def permits(identity: Identity, verb: str, pointer: str | None = None) -> bool:
    """Whether ``identity`` has the permission ``verb``.

    Args:
        verb: one of :data:`PLAIN_PERMISSIONS`, or of :data:`SCOPED_PERMISSIONS` together with a pointer.
        pointer: the pointer that the scope must cover.
    """
    if pointer is None:
        return verb in identity.permissions
    prefix = verb + ":"
    return any(
        permission.startswith(prefix) and glob_matches(permission[len(prefix) :], pointer)
        for permission in identity.permissions
    )


def demand_permission(identity: Identity, verb: str, pointer: str | None = None) -> None:
    """Refuse unless :func:`permits`.

    Raises:
        NotPermitted: it does not; the field ``permission`` names the one that is missing.
    """
    if not permits(identity, verb, pointer):
        missing = verb if pointer is None else f"{verb}:{pointer}"
        raise NotPermitted(f"the token of {identity.principal} lacks the permission {missing}", permission=missing)


def validate_permission(text: str) -> None:
    """Accept a permission that this version knows.

    Raises:
        InvalidInput: an unknown verb, a scope that is missing or not wanted, or a malformed glob.
    """
    if text in PLAIN_PERMISSIONS:
        return
    verb, colon, glob = text.rpartition(":")
    if not colon or verb not in SCOPED_PERMISSIONS:
        raise InvalidInput(
            f"{text[:100]!r} is not a permission",
            hint=f"one of {', '.join(PLAIN_PERMISSIONS)}, or {', '.join(f'{name}:<glob>' for name in SCOPED_PERMISSIONS)}",
        )
    try:
        validate_glob(glob)
    except InvalidInput as error:
        raise InvalidInput(f"the scope of the permission {text[:200]!r} is wrong: {error.detail}") from error


class TokenService:
    """The token table of one store.

    Args:
        ledger: where the table lies.
        clock: for expiry.
        randomness: returns that many random bytes.

    Threads: reads from any; :meth:`create` and :meth:`revoke` belong to the ledger writer.
    """

    def __init__(self, ledger: Ledger, clock: Clock, randomness: Callable[[int], bytes]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._randomness = randomness

    def create(self, name: str, permissions: Sequence[str], *, expires_in_s: int | None = None) -> Token:
        """Make a token.

        Args:
            name: the principal that it names.
            permissions: 1 to ``TOKEN_PERMISSIONS_MAX``.
            expires_in_s: seconds from now, at least 1; None never expires.

        Returns:
            the token with its secret text, which is told this once and stored nowhere.

        Raises:
            InvalidName: not a principal's name.
            InvalidInput: an unknown permission, too many of them, or an expiry below 1.
            StoreFull: no space is left; nothing was written.
            OutcomeUnknown: the commit failed.

        Durability: the token is durable when this returns.
        Threads: ledger writer.
        """
        PrincipalName.parse(name)
        distinct = tuple(sorted(set(permissions)))
        if not 1 <= len(distinct) <= TOKEN_PERMISSIONS_MAX:
            raise InvalidInput(f"a token has 1 to {TOKEN_PERMISSIONS_MAX} permissions, this would have {len(distinct)}")
        for permission in distinct:
            validate_permission(permission)
        if expires_in_s is not None and not 1 <= expires_in_s <= 2**32:
            raise InvalidInput(f"a token may expire in 1 s to {2**32} s, not in {expires_in_s} s")
        now = self._clock.now_ms()
        token, secret = self._randomness(8).hex(), self._randomness(32)
        record = _Record(
            name=str(name),
            permissions=distinct,
            created_ms=now,
            expires_ms=None if expires_in_s is None else now + 1000 * expires_in_s,
            secret_sha256=hashlib.sha256(secret).hexdigest(),
        )
        with self._ledger.write() as tx:
            self._put(tx, token, record)
        return _answer(token, record, secret=format_token(token, secret))

    def _put(self, tx: LedgerTransaction, token: str, record: _Record) -> None:
        if tx.count(Table.TOKENS) >= TOKENS_MAX:
            raise InvalidInput(f"the store has {TOKENS_MAX} tokens already: revoke some first")
        if tx.get(Table.TOKENS, token.encode()) is not None:
            raise InvalidInput("the random token id is taken: try again")
        tx.put(Table.TOKENS, token.encode(), msgspec.json.encode(record))

    def list(self) -> TokenList:
        """All tokens, oldest first, without their secrets; expired ones too."""
        with self._ledger.read() as view:
            rows = view.scan(Table.TOKENS, limit=TOKENS_MAX)
        tokens = [(key.decode(), _decode(key, value)) for key, value in rows]
        tokens.sort(key=lambda row: (row[1].created_ms, row[0]))
        return TokenList(tokens=[_answer(token, record) for token, record in tokens])

    def revoke(self, token: str) -> None:
        """Forget a token; requests that carry it are refused from now on.

        Raises:
            TokenNotFound: there is none of that id.

        Durability: durable when this returns.
        Threads: ledger writer.
        """
        with self._ledger.write() as tx:
            if not re.fullmatch(r"[0-9a-f]{16}", token) or tx.get(Table.TOKENS, token.encode()) is None:
                raise TokenNotFound(f"there is no token {token[:32]!r}")
            tx.delete(Table.TOKENS, token.encode())

    def authenticate(self, text: str) -> Identity:
        """Find out who carries the token ``text``.

        Raises:
            Unauthenticated: not a token, an unknown or revoked one, a wrong secret, or expired.  The sentence is the same for
                the first three, so that nobody learns which ids exist.
        """
        match = _TEXT.match(text)
        if match is None:
            raise Unauthenticated("the bearer token is not valid")
        token, secret_text = match.groups()
        with self._ledger.read() as view:
            record = _find(view, token)
        secret = _decode_secret(secret_text)
        found = hashlib.sha256(secret).hexdigest()
        # TRUST: an unknown id is compared too, so that the time taken does not say whether it exists.
        expected = record.secret_sha256 if record is not None else "0" * 64
        # 43 characters hold 258 bits, two more than the secret has: only the one spelling is taken.
        same = hmac.compare_digest(found, expected) and _encode_secret(secret) == secret_text
        if record is None or not same:
            raise Unauthenticated("the bearer token is not valid")
        if record.expires_ms is not None and self._clock.now_ms() >= record.expires_ms:
            raise Unauthenticated(f"the bearer token expired at {format_time(record.expires_ms)}")
        return Identity(token, record.name, record.permissions)


def check_token_row(key: bytes, row: bytes) -> None:
    """Refuse a row of the token table that is none.

    Raises:
        DamagedObject: it is none.
        InvalidInput: it holds a permission that no token has.
    """
    if not re.fullmatch(rb"[0-9a-f]{16}", key):
        raise DamagedObject(f"{key!r} is not the id of a token", object=f"token {key!r}", where="ledger, table tokens")
    for permission in _decode(key, row).permissions:
        validate_permission(permission)


def format_token(token: str, secret: bytes) -> str:
    """The text that a client presents.

    Args:
        token: its id, 16 hex digits.
        secret: 32 bytes.
    """
    return f"cas_{token}_{_encode_secret(secret)}"


def _encode_secret(secret: bytes) -> str:
    return base64.urlsafe_b64encode(secret).rstrip(b"=").decode()


def _decode_secret(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=")


def _find(view: LedgerView, token: str) -> _Record | None:
    row = view.get(Table.TOKENS, token.encode())
    return None if row is None else _decode(token.encode(), row)


def _decode(key: bytes, row: bytes) -> _Record:
    try:
        return msgspec.json.decode(row, type=_Record)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamagedObject(
            f"the record of token {key!r} is not readable: {error}",
            object=f"token {key!r}",
            where="ledger, table tokens",
        ) from error


def _answer(token: str, record: _Record, secret: str | None = None) -> Token:
    return Token(
        id=token,
        name=record.name,
        permissions=list(record.permissions),
        created_at=format_time(record.created_ms),
        expires_at=None if record.expires_ms is None else format_time(record.expires_ms),
        secret=secret,
    )
