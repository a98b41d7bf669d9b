"""The index in memory: a dictionary for each kind of object.

Invariant: a pack's row and its frames' rows appear together, under one lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from casstore.errors import StateError
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.roles import FrameRow, Location, PackRecord

_ID_BYTES: Final = 32


class MemoryChunkIndex:
    """Implements :class:`~casstore.storage.roles.ChunkIndex`.

    Threads: any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[ObjectKind, dict[bytes, Location]] = {kind: {} for kind in ObjectKind}
        self._packs: dict[PackId, PackRecord] = {}
        self._memo: set[bytes] = set()
        self._closed = False

    def has(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[bool]:
        """See the role."""
        _check_ids(ids)
        with self._opened():
            known = self._objects[kind]
            return [key in known for key in ids]

    def locate(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[Location | None]:
        """See the role."""
        _check_ids(ids)
        with self._opened():
            return [self._objects[kind].get(key) for key in ids]

    def add_pack(self, pack: PackRecord, frames: Sequence[FrameRow]) -> None:
        """See the role."""
        _check_ids([frame.id for frame in frames])
        with self._opened():
            if pack.pack in self._packs:
                return
            self._packs[pack.pack] = pack
            for frame in frames:
                location = Location(pack.pack, frame.offset, frame.stored_length, frame.plain_length)
                self._objects[frame.kind].setdefault(bytes(frame.id), location)

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
        _check_ids(keys)
        with self._opened():
            self._memo.update(bytes(key) for key in keys)

    def close(self) -> None:
        """See the role."""
        self._closed = True

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise StateError("the index is closed")
            yield


def _check_ids(ids: Sequence[bytes]) -> None:
    for key in ids:
        if len(key) != _ID_BYTES:
            raise ValueError(f"an object id has {_ID_BYTES} bytes, this has {len(key)}")
