"""Packs in memory: a dictionary from id to bytes.

Invariant: what is in the dictionary was committed and never changes.
"""

from __future__ import annotations

import threading

from casstore.errors import Conflict, DamagedObject, PackNotFound, StateError
from casstore.ids import PackId


class MemoryPackStore:
    """Implements :class:`~casstore.storage.roles.PackStore`.

    Threads: any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packs: dict[PackId, bytes] = {}
        self._writers: set[MemoryPackWriter] = set()
        self._closed = False

    def create(self, pack: PackId) -> MemoryPackWriter:
        """See the role."""
        self._check()
        with self._lock:
            if pack in self._packs:
                raise _taken(pack)
            writer = MemoryPackWriter(self, pack)
            self._writers.add(writer)
        return writer

    def read(self, pack: PackId, offset: int, length: int) -> bytes:
        """See the role."""
        data = self._get(pack)
        found = data[offset : offset + length]
        if len(found) != length:
            raise DamagedObject(
                f"pack {pack} ends early: {length} bytes at {offset} expected, {len(found)} found",
                object=str(pack),
                where=f"{pack}:{offset}",
                expected=str(length),
                found=str(len(found)),
            )
        return found

    def size(self, pack: PackId) -> int:
        """See the role."""
        return len(self._get(pack))

    def list(self, *, after: PackId | None = None, limit: int) -> list[PackId]:
        """See the role."""
        self._check()
        with self._lock:
            names = sorted(pack for pack in self._packs if after is None or pack > after)
        return names[: max(limit, 0)]

    def delete(self, pack: PackId) -> None:
        """See the role."""
        self._check()
        with self._lock:
            self._packs.pop(pack, None)

    def path(self, pack: PackId) -> str | None:
        """See the role: always None, for nothing here is a file."""
        self._get(pack)
        return None

    def close(self) -> None:
        """See the role; idempotent."""
        with self._lock:
            writers = list(self._writers)
            self._closed = True
        for writer in writers:
            writer.abort()

    # --- for the writers ---------------------------------------------------------------------------------------------

    def finish(self, writer: MemoryPackWriter, pack: PackId, data: bytes | None) -> None:
        """End a writer; name its bytes unless they are None.

        Raises:
            Conflict: the name is taken.
        """
        with self._lock:
            self._writers.discard(writer)
            if data is not None:
                if pack in self._packs:
                    raise _taken(pack)
                self._packs[pack] = data

    def _get(self, pack: PackId) -> bytes:
        self._check()
        with self._lock:
            data = self._packs.get(pack)
        if data is None:
            raise PackNotFound(f"there is no pack {pack}")
        return data

    def _check(self) -> None:
        if self._closed:
            raise StateError("the pack store is closed")


class MemoryPackWriter:
    """Implements :class:`~casstore.storage.roles.PackWriter`."""

    def __init__(self, store: MemoryPackStore, pack: PackId) -> None:
        self._store = store
        self._pack = pack
        self._data: bytearray | None = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        """See the role.

        Raises:
            StateError: the writer has ended.
        """
        self._writable().extend(data)

    def commit(self) -> None:
        """See the role."""
        data = bytes(self._writable())
        self._data = None
        self._store.finish(self, self._pack, data)

    def abort(self) -> None:
        """See the role."""
        if self._data is not None:
            self._data = None
            self._store.finish(self, self._pack, None)

    def _writable(self) -> bytearray:
        if self._data is None:
            raise StateError(f"the writer of pack {self._pack} has ended")
        return self._data


def _taken(pack: PackId) -> Conflict:
    return Conflict(f"pack {pack} exists, and a pack is put once")
