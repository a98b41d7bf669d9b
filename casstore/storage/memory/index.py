"""The index in memory: a dictionary for each kind of object.

Invariant: a pack's row and its frames' rows appear together, under one lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from casstore.errors import PackNotFound, StateError
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.roles import (
    CondemnedRow,
    FileProof,
    FrameRow,
    Location,
    Move,
    PackRecord,
    PackUsage,
    QuarantinedRow,
)

_ID_BYTES: Final = 32
_NOTE_MAX_BYTES: Final = 64 * 1024
_Key = tuple[ObjectKind, bytes]
_Row = TypeVar("_Row")


class MemoryChunkIndex:
    """Implements :class:`~casstore.storage.roles.ChunkIndex`.

    Threads: any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[ObjectKind, dict[bytes, Location]] = {kind: {} for kind in ObjectKind}
        self._packs: dict[PackId, PackRecord] = {}
        self._retired: dict[PackId, tuple[PackRecord, int]] = {}
        self._condemned: dict[_Key, CondemnedRow] = {}
        self._quarantined: dict[_Key, QuarantinedRow] = {}
        self._notes: dict[str, bytes] = {}
        self._memo: set[bytes] = set()
        self._file_memo: set[FileProof] = set()
        self._losses = 0
        self._closed = False

    @property
    def losses(self) -> int:
        """See the role."""
        return self._losses

    def has(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[bool]:
        """See the role."""
        _check_ids(ids)
        with self._opened():
            known = self._objects[kind]
            return [key in known for key in ids]

    def locate(self, kind: ObjectKind, ids: Sequence[bytes], *, live: bool = False) -> list[Location | None]:
        """See the role."""
        _check_ids(ids)
        with self._opened():
            places = [self._objects[kind].get(key) for key in ids]
            if live:
                return places
            rows = [self._condemned.get((kind, key)) for key in ids]
            return [place or (row and row.location) for place, row in zip(places, rows, strict=True)]

    def remember(
        self,
        packs: Sequence[tuple[PackRecord, Sequence[FrameRow]]] = (),
        *,
        memo: Sequence[bytes] = (),
        files: Sequence[FileProof] = (),
    ) -> None:
        """See the role."""
        _check_ids([frame.id for _, frames in packs for frame in frames])
        _check_ids(memo)
        _check_ids([id for proof in files for id in proof])
        with self._opened():
            self._memo.update(bytes(key) for key in memo)
            self._file_memo.update(files)
            for pack, frames in packs:
                self._add_pack(pack, frames)

    def add_pack(self, pack: PackRecord, frames: Sequence[FrameRow]) -> None:
        """See the role."""
        self.remember([(pack, frames)])

    def _add_pack(self, pack: PackRecord, frames: Sequence[FrameRow]) -> None:
        if pack.pack in self._packs:
            return
        retired = self._retired.pop(pack.pack, None)
        self._packs[pack.pack] = pack if retired is None else retired[0]
        for frame in frames:
            location = Location(pack.pack, frame.offset, frame.stored_length, frame.plain_length)
            self._objects[frame.kind].setdefault(bytes(frame.id), location)
            self._condemned.pop((frame.kind, bytes(frame.id)), None)
            self._quarantined.pop((frame.kind, bytes(frame.id)), None)

    def add_frames(self, pack: PackId, frames: Sequence[FrameRow]) -> None:
        """See the role."""
        _check_ids([frame.id for frame in frames])
        with self._opened():
            if pack not in self._packs:
                raise PackNotFound(f"the index does not know pack {pack}")
            self._add_rows(pack, frames)

    def _add_rows(self, pack: PackId, frames: Sequence[FrameRow]) -> None:
        for frame in frames:
            location = Location(pack, frame.offset, frame.stored_length, frame.plain_length)
            self._objects[frame.kind].setdefault(bytes(frame.id), location)
            self._condemned.pop((frame.kind, bytes(frame.id)), None)
            self._quarantined.pop((frame.kind, bytes(frame.id)), None)

    def pack(self, pack: PackId) -> PackRecord | None:
        """See the role."""
        with self._opened():
            return self._packs.get(pack)

    def packs(self, *, after: PackId | None = None, limit: int) -> list[PackRecord]:
        """See the role."""
        with self._opened():
            names = sorted(pack for pack in self._packs if after is None or pack > after)
            return [self._packs[name] for name in names[: max(limit, 0)]]

    def objects(self, kind: ObjectKind, *, after: bytes = b"", limit: int) -> list[tuple[bytes, Location]]:
        """See the role."""
        with self._opened():
            known = self._objects[kind]
            ids = sorted(key for key in known if key > after)
            return [(key, known[key]) for key in ids[: max(limit, 0)]]

    def count(self, kind: ObjectKind) -> int:
        """See the role."""
        with self._opened():
            return len(self._objects[kind])

    def memo_has(self, keys: Sequence[bytes]) -> list[bool]:
        """See the role."""
        _check_ids(keys)
        with self._opened():
            return [key in self._memo for key in keys]

    def memo_add(self, keys: Sequence[bytes]) -> None:
        """See the role."""
        self.remember(memo=keys)

    def memo_drop(self, keys: Sequence[bytes]) -> None:
        """See the role."""
        _check_ids(keys)
        with self._opened():
            self._memo.difference_update(keys)

    def files_have(self, proofs: Sequence[FileProof]) -> list[bool]:
        """See the role."""
        _check_ids([id for proof in proofs for id in proof])
        with self._opened():
            return [proof in self._file_memo for proof in proofs]

    def files_add(self, proofs: Sequence[FileProof]) -> None:
        """See the role."""
        self.remember(files=proofs)

    # --- collection --------------------------------------------------------------------------------------------------

    def condemn(self, kind: ObjectKind, ids: Sequence[bytes], *, at_ms: int, mark: int) -> int:
        """See the role."""
        _check_ids(ids)
        count = 0
        with self._opened():
            for key in set(ids):
                location = self._objects[kind].pop(key, None)
                if location is not None:
                    self._condemned[kind, key] = CondemnedRow(kind, bytes(key), location, at_ms, mark)
                    count += 1
            self._losses += bool(count)
        return count

    def revive(self, wanted: Iterable[tuple[ObjectKind, Sequence[bytes]]]) -> list[tuple[ObjectKind, bytes]]:
        """See the role."""
        keys: list[_Key] = []
        for kind, ids in wanted:
            _check_ids(ids)
            keys += [(kind, key) for key in sorted(set(ids))]
        with self._opened():
            asleep = [key for key in keys if key[1] not in self._objects[key[0]]]
            absent = [key for key in asleep if key not in self._condemned]
            if not absent:
                for kind, id in set(asleep):
                    self._objects[kind][id] = self._condemned.pop((kind, id)).location
            return absent

    def condemned(self, *, after: tuple[ObjectKind, bytes] | None = None, limit: int) -> list[CondemnedRow]:
        """See the role."""
        with self._opened():
            return _behind(self._condemned, after, limit)

    def drop(self, rows: Sequence[CondemnedRow]) -> int:
        """See the role."""
        with self._opened():
            gone = {row.id for row in rows if row.kind is ObjectKind.CHUNK and self._condemned.get(row[:2]) == row}
            self._file_memo = {proof for proof in self._file_memo if proof.chunk not in gone}
            count = _remove(self._condemned, rows)
            self._losses += bool(count)
            return count

    def restart_grace(self, at_ms: int) -> None:
        """See the role."""
        with self._opened():
            self._condemned = {key: row._replace(at_ms=at_ms) for key, row in self._condemned.items()}

    def quarantine(self, kind: ObjectKind, id: bytes, location: Location, *, at_ms: int, reason: str) -> bool:
        """See the role."""
        _check_ids([id])
        with self._opened():
            row = self._condemned.get((kind, id))
            if self._objects[kind].get(id) == location:
                del self._objects[kind][id]
            elif row is not None and row.location == location:
                del self._condemned[kind, id]
            else:
                return False
            self._quarantined[kind, id] = QuarantinedRow(kind, bytes(id), location, at_ms, reason)
            self._losses += 1
            return True

    def release(self, kind: ObjectKind, id: bytes) -> bool:
        """See the role."""
        _check_ids([id])
        with self._opened():
            row = self._quarantined.pop((kind, id), None)
            if row is not None:
                self._objects[kind][id] = row.location
            return row is not None

    def quarantined(self, *, after: tuple[ObjectKind, bytes] | None = None, limit: int) -> list[QuarantinedRow]:
        """See the role."""
        with self._opened():
            return _behind(self._quarantined, after, limit)

    def find_quarantined(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[QuarantinedRow | None]:
        """See the role."""
        _check_ids(ids)
        with self._opened():
            return [self._quarantined.get((kind, id)) for id in ids]

    def forget_quarantined(self, rows: Sequence[QuarantinedRow]) -> int:
        """See the role."""
        with self._opened():
            return _remove(self._quarantined, rows)

    def move(self, pack: PackRecord, moves: Sequence[Move]) -> int:
        """See the role."""
        count = 0
        with self._opened():
            self._packs[pack.pack] = pack
            for kind, id, old, new in moves:
                row = self._condemned.get((kind, id))
                if self._objects[kind].get(id) == old:
                    self._objects[kind][id] = new
                elif row is not None and row.location == old:
                    self._condemned[kind, id] = row._replace(location=new)
                else:
                    continue
                count += 1
        return count

    def usage(self) -> Mapping[PackId, PackUsage]:
        """See the role."""
        with self._opened():
            sums = {pack: [0, 0, 0, 0] for pack in self._packs}
            live = [place for known in self._objects.values() for place in known.values()]
            columns = (
                live,
                [row.location for row in self._condemned.values()],
                [row.location for row in self._quarantined.values()],
            )
            for column, places in enumerate(columns):
                for place in places:
                    if place.pack in sums:
                        sums[place.pack][column] += place.stored_length
                        sums[place.pack][3] += 1
            return {pack: PackUsage(*row) for pack, row in sums.items()}

    def retire_pack(self, pack: PackId, *, at_ms: int) -> None:
        """See the role."""
        with self._opened():
            record = self._packs.pop(pack, None)
            if record is not None:
                self._retired[pack] = (record, at_ms)

    def retired(self, *, after: PackId | None = None, limit: int) -> list[tuple[PackRecord, int]]:
        """See the role."""
        with self._opened():
            waiting = sorted(pack for pack in self._retired if after is None or pack > after)
            return [self._retired[pack] for pack in waiting[: max(limit, 0)]]

    def is_retired(self, pack: PackId) -> bool:
        """See the role."""
        with self._opened():
            return pack in self._retired

    def forget_pack(self, pack: PackId) -> None:
        """See the role."""
        with self._opened():
            self._retired.pop(pack, None)

    def read_note(self, name: str) -> bytes | None:
        """See the role."""
        with self._opened():
            return self._notes.get(name)

    def write_note(self, name: str, value: bytes | None) -> None:
        """See the role."""
        if value is not None and len(value) > _NOTE_MAX_BYTES:
            raise ValueError(f"a note has at most {_NOTE_MAX_BYTES} bytes, this has {len(value)}")
        with self._opened():
            if value is None:
                self._notes.pop(name, None)
            else:
                self._notes[name] = bytes(value)

    def verify_storage(self) -> None:
        """See the role: there is no storage that could be damaged."""

    def close(self) -> None:
        """See the role."""
        self._closed = True

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise StateError("the index is closed")
            yield


def _behind(rows: Mapping[_Key, _Row], after: _Key | None, limit: int) -> list[_Row]:
    return [rows[key] for key in sorted(key for key in rows if after is None or key > after)[: max(limit, 0)]]


def _remove(rows: dict[_Key, _Row], gone: Sequence[_Row]) -> int:
    keys = [key for key, row in rows.items() if row in gone]
    for key in keys:
        del rows[key]
    return len(keys)


def _check_ids(ids: Sequence[bytes]) -> None:
    for key in ids:
        if len(key) != _ID_BYTES:
            raise ValueError(f"an object id has {_ID_BYTES} bytes, this has {len(key)}")
