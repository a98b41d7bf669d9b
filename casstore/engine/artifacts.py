"""What builds pushed: a name, a digest, labels, a number that orders them by arrival.

Owns the two artifact tables of the ledger.  They are not logged: an artifact is a convenience for finding a digest,
and a snapshot or flip never refers to a number.

Rows: ``ARTIFACTS`` u64be number → JSON record; ``ARTIFACT_NAMES`` name ‖ 0x00 ‖ u64be number → nothing, and 0x00 ‖
push id ‖ u64be number → nothing, by which a retried commit finds what it led to, over a restart too (no name begins
with 0x00).  ``META`` ``artifact-number`` → u64be, the highest number ever given, once one was removed: a number is never
given twice.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from casstore.clock import Clock
from casstore.errors import ArtifactNotFound, InvalidInput, MalformedDocument, TooLarge
from casstore.formats.snapshot import verify_label
from casstore.ids import ArtifactName, BlobDigest, PushId, TreeDigest
from casstore.limits import LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX
from casstore.storage.roles import Ledger, LedgerView, Table
from casstore.wire import Artifact, ArtifactList, CommitRequest, Label, format_time

# LIMIT: labels are found by looking at artifacts one by one.
LABELS_MAX: Final = 64
# LIMIT: rows that one filtered listing looks at; the cursor goes on behind them.
_SCAN_MAX: Final = 10_000
_SCAN_BATCH: Final = 500
_NUMBER: Final = struct.Struct(">Q")
_HIGHEST: Final = b"artifact-number"


class NewArtifact(NamedTuple):
    """An artifact that has no number yet."""

    push: PushId
    name: ArtifactName | None
    kind: Literal["tree", "blob"]
    digest: TreeDigest | BlobDigest
    labels: tuple[Label, ...]
    size_bytes: int
    files: int


class ArtifactRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An artifact as the ledger holds it.  ``pushed_at`` is milliseconds since the epoch."""

    name: str | None
    kind: Literal["tree", "blob"]
    digest: str
    labels: list[Label]
    size_bytes: int
    files: int
    pushed_at: int
    by: str
    push: str


def check_labels(labels: Sequence[Label]) -> None:
    """Hold labels against the rules that a snapshot's labels keep too.

    Raises:
        TooLarge: more than ``LABELS_MAX``.
        MalformedDocument: a key or value that breaks a rule, or the same label twice.
    """
    if len(labels) > LABELS_MAX:
        raise TooLarge(f"an artifact has at most {LABELS_MAX} labels", limit=LABELS_MAX)
    for label in labels:
        verify_label((label.k, label.v))
    if len(set(labels)) != len(labels):
        raise MalformedDocument("a label stands twice")


class ArtifactService:
    """Artifacts by number, name and label.

    Args:
        ledger: where they are recorded.
        clock: says when.
    """

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    def add(self, new: NewArtifact, *, by: str) -> Artifact:
        """Record an artifact.

        Durability: durable when this returns.
        Threads: ledger writer.

        Raises:
            StoreFull, OutcomeUnknown: as the ledger says; nothing was recorded after ``StoreFull``.
        """
        labels = sorted(new.labels)
        row = ArtifactRow(
            name=None if new.name is None else str(new.name),
            kind=new.kind,
            digest=str(new.digest),
            labels=labels,
            size_bytes=new.size_bytes,
            files=new.files,
            pushed_at=self._clock.now_ms(),
            by=str(by),
            push=str(new.push),
        )
        with self._ledger.write() as transaction:
            before = _find_committed(transaction, new.push, row)
            if before is not None:
                return before
            number = _highest_number(transaction) + 1
            key = _NUMBER.pack(number)
            transaction.put(Table.ARTIFACTS, key, msgspec.json.encode(row))
            transaction.put(Table.ARTIFACT_NAMES, _push_prefix(new.push) + key, b"")
            if new.name is not None:
                transaction.put(Table.ARTIFACT_NAMES, _name_prefix(new.name) + key, b"")
        return _answer(number, row)

    def remove(self, number: int, *, dry_run: bool = False) -> Artifact:
        """Forget an artifact: its number, name and labels.  Content stays until collection finds that nothing needs it.

        What a snapshot or a pointer names is needed by those, whether or not an artifact names it too.

        Args:
            number: which.
            dry_run: change nothing.

        Returns:
            what it was.

        Raises:
            ArtifactNotFound: there is none of this number.
            StoreFull, OutcomeUnknown: as the ledger says; nothing was removed after ``StoreFull``.

        Durability: durable when this returns.
        Threads: ledger writer.
        """
        artifact = self.get(number)
        if dry_run:
            return artifact
        key = _NUMBER.pack(number)
        with self._ledger.write() as transaction:
            value = transaction.get(Table.ARTIFACTS, key)
            if value is None:
                raise _no_artifact(number)
            row = decode_row(value)
            # ORDER: in one transaction with the removal, so that the number of what is gone is never given again.
            transaction.put(Table.META, _HIGHEST, _NUMBER.pack(_highest_number(transaction)))
            transaction.delete(Table.ARTIFACTS, key)
            transaction.delete(Table.ARTIFACT_NAMES, _push_prefix(PushId.parse(row.push)) + key)
            if row.name is not None:
                transaction.delete(Table.ARTIFACT_NAMES, _name_prefix(ArtifactName.parse(row.name)) + key)
        return artifact

    def committed(self, push: PushId, request: CommitRequest) -> Artifact | None:
        """What an earlier commit of this push, asking for the same, led to."""
        wanted = ArtifactRow(request.name, request.kind, request.digest, sorted(request.labels), 0, 0, 0, "", "")
        with self._ledger.read() as view:
            return _find_committed(view, push, wanted)

    def get(self, number: int) -> Artifact:
        """One artifact.

        Raises:
            ArtifactNotFound: there is none of this number.
        """
        with self._ledger.read() as view:
            value = view.get(Table.ARTIFACTS, _NUMBER.pack(number)) if 0 <= number < 1 << 64 else None
        if value is None:
            raise _no_artifact(number)
        return _answer(number, decode_row(value))

    def list(
        self,
        *,
        name: str | None = None,
        label: str | None = None,
        after: str | None = None,
        limit: int = LIST_LIMIT_DEFAULT,
    ) -> ArtifactList:
        """Artifacts, newest first.

        Args:
            name: only those of this name.
            label: only those with this label, as ``key=value``, or with this key, as ``key``.
            after: the cursor ``next`` of the listing before.
            limit: 1 to ``LIST_LIMIT_MAX``.

        Returns:
            At most ``limit`` artifacts; ``next`` is set where more may follow (a filtered page may be short, even
            empty).

        Raises:
            InvalidName, InvalidInput: a bad name, cursor or limit.
        """
        if not 1 <= limit <= LIST_LIMIT_MAX:
            raise InvalidInput(f"limit is 1 to {LIST_LIMIT_MAX}, not {limit}")
        before = _parse_cursor(after)
        prefix = b"" if name is None else _name_prefix(ArtifactName.parse(name))
        table = Table.ARTIFACTS if name is None else Table.ARTIFACT_NAMES
        found: list[Artifact] = []
        looked = 0
        while looked < _SCAN_MAX:
            with self._ledger.read() as view:
                rows = view.scan(
                    table, prefix=prefix, before=before and prefix + before, reverse=True, limit=_SCAN_BATCH
                )
                numbers = [key[-8:] for key, _ in rows]
                values = [value if name is None else view.get(Table.ARTIFACTS, key[-8:]) for key, value in rows]
            for number, value in zip(numbers, values, strict=True):
                before = number
                if value is not None and _has_label(row := decode_row(value), label):
                    found.append(_answer(_NUMBER.unpack(number)[0], row))
                    if len(found) == limit:
                        return ArtifactList(artifacts=found, next=_format_cursor(number))
            looked += len(rows)
            if len(rows) < _SCAN_BATCH:
                return ArtifactList(artifacts=found)
        return ArtifactList(artifacts=found, next=None if before is None else _format_cursor(before))

    def expire(self, keys: Sequence[bytes]) -> int:
        """Forget artifacts whose content is about to be dropped.

        Args:
            keys: of their rows.

        Durability: gone for good when this returns.
        Threads: ledger writer.
        """
        count = 0
        with self._ledger.write() as transaction:
            for key in keys:
                value = transaction.get(Table.ARTIFACTS, key)
                if value is None:
                    continue
                row = decode_row(value)
                transaction.delete(Table.ARTIFACTS, key)
                transaction.delete(Table.ARTIFACT_NAMES, _push_prefix(PushId.parse(row.push)) + key)
                if row.name is not None:
                    transaction.delete(Table.ARTIFACT_NAMES, _name_prefix(ArtifactName.parse(row.name)) + key)
                count += 1
        return count

    def rows(self, *, after: int = 0, limit: int) -> Sequence[tuple[int, bytes]]:
        """Number and stored record of artifacts, ascending, behind number ``after``; undecoded, for fsck."""
        with self._ledger.read() as view:
            rows = view.scan(Table.ARTIFACTS, after=_NUMBER.pack(after), limit=limit)
        return [(int.from_bytes(key, "big"), value) for key, value in rows]


def decode_row(value: bytes) -> ArtifactRow:
    """Read a stored record.

    Raises:
        InvalidInput: it is not one.
    """
    try:
        return msgspec.json.decode(value, type=ArtifactRow)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(f"not an artifact record: {error}") from error


def _no_artifact(number: int) -> ArtifactNotFound:
    return ArtifactNotFound(f"there is no artifact {number}")


def _highest_number(view: LedgerView) -> int:
    """The highest number that was ever given, or 0."""
    last = view.scan(Table.ARTIFACTS, reverse=True, limit=1)
    kept = view.get(Table.META, _HIGHEST)
    return max((_NUMBER.unpack(key)[0] for key in (last[0][0] if last else None, kept) if key is not None), default=0)


def _find_committed(view: LedgerView, push: PushId, wanted: ArtifactRow) -> Artifact | None:
    for key, _ in view.scan(Table.ARTIFACT_NAMES, prefix=_push_prefix(push), limit=LIST_LIMIT_MAX):
        value = view.get(Table.ARTIFACTS, key[-8:])
        if value is None:
            continue
        row = decode_row(value)
        if (row.name, row.kind, row.digest, row.labels) == (wanted.name, wanted.kind, wanted.digest, wanted.labels):
            return _answer(_NUMBER.unpack(key[-8:])[0], row)
    return None


def _answer(number: int, row: ArtifactRow) -> Artifact:
    return Artifact(
        number=number,
        name=row.name,
        kind=row.kind,
        digest=row.digest,
        labels=row.labels,
        size_bytes=row.size_bytes,
        files=row.files,
        pushed_at=format_time(row.pushed_at),
        by=row.by,
    )


def _name_prefix(name: ArtifactName) -> bytes:
    return name.encode() + b"\0"


def _push_prefix(push: PushId) -> bytes:
    return b"\0" + push


def _has_label(row: ArtifactRow, label: str | None) -> bool:
    if label is None:
        return True
    key, equals, value = label.partition("=")
    return any(have.k == key and (not equals or have.v == value) for have in row.labels)


def _format_cursor(number: bytes) -> str:
    return str(_NUMBER.unpack(number)[0])


def _parse_cursor(text: str | None) -> bytes | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise InvalidInput(f"{text[:50]!r} is not a cursor of this listing")
    return _NUMBER.pack(int(text))
