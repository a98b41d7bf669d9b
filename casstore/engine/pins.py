"""Pins: somebody says that something is needed, and why.

Owns the table ``pins``.  A pin is not logged: it changes what is kept, never what a pointer names.  It holds a snapshot, tree or
blob with all that it needs until it is taken away or its time is over.

Rows: ``PINS`` 8-byte id → JSON record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from casstore.clock import Clock
from casstore.engine.claims import Claim, Claims
from casstore.errors import CapacityError, DamagedObject, InvalidInput, PinNotFound
from casstore.ids import BlobDigest
from casstore.storage.roles import Ledger, Table
from casstore.wire import Pin, PinList, format_time

PINS_MAX: Final = 10_000  # LIMIT: the list is answered whole, and each is walked by every mark
_TEXT_MAX: Final = 400
_ID_BYTES: Final = 8
Kind = Literal["snapshot", "tree", "blob"]


class PinRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pin as the ledger holds it; times in ms since the epoch."""

    id: str
    kind: Kind
    digest: str
    owner: str
    reason: str
    created_ms: int
    until_ms: int | None
    by: str


def decode_pin(key: bytes, value: bytes) -> PinRow:
    """Read a row.

    Raises:
        DamagedObject: it is none.
    """
    try:
        return msgspec.json.decode(value, type=PinRow)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamagedObject(
            f"the pin {key.hex()} is not readable: {error}", object=f"pin {key.hex()}", where="ledger, table pins"
        ) from error


class PinService:
    """Pins by id.

    Args:
        ledger: where they are.
        clock: says when.
        claims: what is pinned stays while the pin is being written.
        demand: raises if something is not all there.
        randomness: returns that many random bytes.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        claims: Claims,
        demand: Callable[[Kind, BlobDigest], None],
        randomness: Callable[[int], bytes],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._claims = claims
        self._demand = demand
        self._randomness = randomness

    def pin(self, kind: Kind, digest: BlobDigest, *, owner: str, reason: str, until_ms: int | None, by: str) -> Pin:
        """Keep something.

        Args:
            kind: what the digest names.
            digest: of a snapshot, tree or blob.
            owner: for whom, a person or a team.
            reason: why.
            until_ms: when it ends by itself, ms since the epoch; None: when it is taken away.
            by: the principal who asks.

        Raises:
            NotFound, SnapshotIncomplete: the store does not have it, or not all of it.
            InvalidInput: no owner, no reason, too long, or an end that has passed.
            CapacityError: too many pins.
            StoreFull, OutcomeUnknown: as the ledger says.

        Durability: durable when this returns.
        Threads: ledger writer.
        """
        for what, text in (("owner", owner), ("reason", reason)):
            if not text.strip() or len(text) > _TEXT_MAX or not text.isprintable():
                raise InvalidInput(f"a pin has an {what} of 1 to {_TEXT_MAX} printable characters")
        now = self._clock.now_ms()
        if until_ms is not None and until_ms <= now:
            raise InvalidInput("the pin would be over before it begins")
        id = self._randomness(_ID_BYTES)
        row = PinRow(id.hex(), kind, str(digest), owner, reason, now, until_ms, by)
        with self._ledger.write() as transaction:
            if transaction.count(Table.PINS) >= PINS_MAX:
                raise CapacityError(f"there are {PINS_MAX} pins already", hint="take some away: casstore unpin")
            # ORDER: claimed before it is looked up, inside the write: a collection at work keeps it from here on.
            self._claims.claim(Claim(kind, bytes(digest)))
            self._demand(kind, digest)
            transaction.put(Table.PINS, id, msgspec.json.encode(row))
        return _answer(row)

    def look_ahead(self, kind: Kind, digest: BlobDigest) -> None:
        """Have looked up what a pin needs, so that the writer finds the answer remembered.

        Raises:
            NotFound, SnapshotIncomplete: the store does not have it, or not all of it.

        Threads: any.
        """
        self._demand(kind, digest)

    def unpin(self, id: str) -> None:
        """Take a pin away.

        Raises:
            PinNotFound: there is none of this id.

        Threads: ledger writer.
        """
        try:
            key = bytes.fromhex(id) if len(id) == 2 * _ID_BYTES else b"\0"
        except ValueError:
            key = b"\0"
        with self._ledger.write() as transaction:
            if transaction.get(Table.PINS, key) is None:
                raise PinNotFound(f"there is no pin {id[:40]!r}")
            transaction.delete(Table.PINS, key)

    def list(self) -> PinList:
        """All pins, those whose time is over too until :meth:`expire`; oldest first."""
        with self._ledger.read() as view:
            rows = [decode_pin(key, value) for key, value in view.scan(Table.PINS, limit=PINS_MAX + 1)]
        rows.sort(key=lambda row: (row.created_ms, row.id))
        return PinList(pins=[_answer(row) for row in rows])

    def expire(self) -> int:
        """Remove pins whose time is over; returns how many.

        Threads: ledger writer.
        """
        now = self._clock.now_ms()
        with self._ledger.read() as view:
            rows = view.scan(Table.PINS, limit=PINS_MAX + 1)
        over = [key for key, value in rows if (until := decode_pin(key, value).until_ms) is not None and until <= now]
        if over:
            with self._ledger.write() as transaction:
                for key in over:
                    transaction.delete(Table.PINS, key)
        return len(over)


def _answer(row: PinRow) -> Pin:
    return Pin(
        id=row.id,
        kind=row.kind,
        digest=row.digest,
        owner=row.owner,
        reason=row.reason,
        created_at=format_time(row.created_ms),
        until=None if row.until_ms is None else format_time(row.until_ms),
        by=row.by,
    )
